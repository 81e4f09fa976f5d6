"""System checks: what is wired so that events would be lost, or late."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, router
from django.db.migrations.executor import MigrationExecutor

from cqrs_sync.consumer import Consumer
from cqrs_sync.integrations.django.transactions import Atomic
from cqrs_sync.integrations.django.wiring import (
    KEYS,
    consumer_of_settings,
    group_of_settings,
    inbox_of,
    mediator_of_settings,
    outbox_of,
    unknown_keys,
)
from cqrs_sync.mediator import RequestMediator
from cqrs_sync.messages import Command
from cqrs_sync.sql.dialects import DIALECTS
from cqrs_sync.threads.pool import ThreadPool

_LABEL = "cqrs_sync"


@checks.register(_LABEL)
def check_mediator(app_configs: Any, **_: Any) -> Sequence[checks.CheckMessage]:
    """Look at the mediator that the settings name; where they name none, nobody asks for it."""
    del app_configs
    if not getattr(settings, "CQRS_SYNC", None):
        return []
    found = list(_keys())
    try:
        consumer = consumer_of_settings()
        mediator = mediator_of_settings(consumer)
        found += _group(consumer)
    except ImproperlyConfigured as error:
        return [*found, checks.Error(str(error), id="cqrs_sync.E001")]
    return [*found, *_wiring(mediator)]


def _keys() -> Iterator[checks.CheckMessage]:
    for key in unknown_keys():
        near = difflib.get_close_matches(str(key).upper(), KEYS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        yield checks.Error(
            f"CQRS_SYNC has the key {key!r}, which nobody looks at",
            hint=f"{hint}its keys are {', '.join(KEYS)}",
            id="cqrs_sync.E007",
        )


def _group(consumer: Consumer | None) -> Iterator[checks.CheckMessage]:
    group = group_of_settings()
    if consumer is not None and group and group != consumer.group.name:
        yield checks.Error(
            f'CQRS_SYNC["GROUP"] is {group!r}, and the consumer in CQRS_SYNC["CONSUMER"] is one of the group '
            f"{consumer.group.name!r}",
            hint="leave out GROUP: a consumer says its group itself",
            id="cqrs_sync.E008",
        )


def _wiring(mediator: RequestMediator) -> Sequence[checks.CheckMessage]:
    place = _place_of(mediator)
    if place is None:
        return []
    if place.using not in settings.DATABASES:
        return [
            checks.Error(
                f"the {place.what} is in {place.using!r}, which is not in DATABASES",
                hint=f"its aliases are {', '.join(settings.DATABASES)}",
                id="cqrs_sync.E002",
            )
        ]
    return [*_database(place), *_transactions(mediator), *_threads(mediator), *_sqlite(place)]


@checks.register(_LABEL, checks.Tags.database)
def check_database(app_configs: Any, databases: Sequence[str] | None = None, **_: Any) -> Sequence[checks.CheckMessage]:
    """Ask the database of outbox and inbox; the others may be what they like."""
    del app_configs
    try:
        place = _place_of(mediator_of_settings())
    except ImproperlyConfigured:
        # Another check tells.
        return []
    if place is None or place.using not in (databases or ()) or place.using not in settings.DATABASES:
        return []
    return [*_skip_locked(place), *_characters(place), *_tables(place)]


@attrs.frozen
class _Place:
    """Where outbox or inbox of a mediator are; where there are both, it is the same."""

    what: str
    using: str
    model: str


def _place_of(mediator: RequestMediator) -> _Place | None:
    outbox, inbox = outbox_of(mediator), inbox_of(mediator)
    if outbox is not None:
        return _Place("outbox", outbox.using, "delivery")
    return None if inbox is None else _Place("inbox", inbox.using, "receipt")


def _database(place: _Place) -> Iterator[checks.CheckMessage]:
    alias = place.using
    if connections[alias].vendor not in DIALECTS:
        yield checks.Error(
            f"the {place.what} is in {alias!r}, whose kind it does not know: {connections[alias].vendor}",
            hint="use PostgreSQL, MariaDB, MySQL or SQLite",
            id="cqrs_sync.E004",
        )
    if not connections[alias].settings_dict["AUTOCOMMIT"]:
        yield checks.Error(
            f"autocommit is off on {alias!r}: nothing that the {place.what} does would ever be committed",
            hint=f'leave DATABASES[{alias!r}]["AUTOCOMMIT"] as it is',
            id="cqrs_sync.E005",
        )
    if not router.allow_migrate(alias, _LABEL, model_name=place.model):
        yield checks.Error(
            f"the {place.what} is in {alias!r}, and a router of DATABASE_ROUTERS keeps its tables out of there",
            hint=f"let allow_migrate({alias!r}, 'cqrs_sync') return True or None",
            id="cqrs_sync.E006",
        )


def _transactions(mediator: RequestMediator) -> Iterator[checks.CheckMessage]:
    outbox = outbox_of(mediator)
    if outbox is None:
        # The inbox opens them itself.
        return
    chosen = mediator.wiring.middleware.of(Command)
    has_own = any(isinstance(each, Atomic) and each.using == outbox.using for each in chosen)
    if not has_own and not settings.DATABASES[outbox.using].get("ATOMIC_REQUESTS"):
        yield checks.Warning(
            "commands have an outbox and no transaction: raising an event in one will be an error",
            hint="make the mediator with cqrs_sync.integrations.django.bootstrap, or add Atomic() to its middleware",
            id="cqrs_sync.W001",
        )


def _sqlite(place: _Place) -> Iterator[checks.CheckMessage]:
    database = settings.DATABASES[place.using]
    if "sqlite3" in database["ENGINE"] and database.get("OPTIONS", {}).get("transaction_mode") != "IMMEDIATE":
        yield checks.Warning(
            f"transactions on {place.using!r} begin by reading: SQLite refuses those that another has overtaken",
            hint='set "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20}, and they wait (Django 5.1, later)',
            id="cqrs_sync.W002",
        )


def _threads(mediator: RequestMediator) -> Iterator[checks.CheckMessage]:
    threads = mediator.wiring.threads
    if isinstance(threads, ThreadPool) and threads.around is None:
        yield checks.Warning(
            "threads of the pool keep their database connections for ever, broken ones as well",
            hint="give bootstrap a number of threads, or a ThreadPool(around=old_connections_closed)",
            id="cqrs_sync.W003",
        )


def _skip_locked(place: _Place) -> Iterator[checks.CheckMessage]:
    connection = connections[place.using]
    if connection.vendor in ("mysql", "postgresql") and not connection.features.has_select_for_update_skip_locked:
        yield checks.Error(
            f"the database {place.using!r} has no SKIP LOCKED, which the {place.what} needs",
            hint="use MariaDB 10.6, MySQL 8 or later",
            id="cqrs_sync.E003",
        )


def _characters(place: _Place) -> Iterator[checks.CheckMessage]:
    connection = connections[place.using]
    if connection.vendor != "mysql":
        return
    connection.ensure_connection()
    if connection.connection.character_set_name() != "utf8mb4":
        yield checks.Warning(
            f"connections to {place.using!r} take not every character: an emoji in the key of an event is an error",
            hint='set "OPTIONS": {"charset": "utf8mb4"}, which is what Django 5.2 does by itself',
            id="cqrs_sync.W004",
        )


def _tables(place: _Place) -> Iterator[checks.CheckMessage]:
    executor = MigrationExecutor(connections[place.using])
    latest = [node for node in executor.loader.graph.leaf_nodes() if node[0] == _LABEL]
    missing = [migration.name for migration, _ in executor.migration_plan(latest)]
    if missing:
        # `migrate` asks for checks as well, before it does so: no warning.
        yield checks.Info(
            f"tables of outbox and inbox are not in {place.using!r} yet, or not as this version needs them: "
            f"{', '.join(missing)} did not run there",
            hint=f"`manage.py migrate cqrs_sync --database {place.using}` makes them",
            id="cqrs_sync.I001",
        )
