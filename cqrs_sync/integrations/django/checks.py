"""System checks: find settings with which events would be lost or late."""

from __future__ import annotations

import difflib
import sys
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
    SourceMissing,
    consumer_of_settings,
    group_of_settings,
    inbox_of,
    mediator_of_settings,
    outbox_of,
    source_of_settings,
    unknown_keys,
)
from cqrs_sync.mediator import Mediator
from cqrs_sync.messages import Command
from cqrs_sync.sql.dialects import DIALECTS
from cqrs_sync.threads.pool import ThreadPool

_LABEL = "cqrs_sync"


@checks.register(_LABEL)
def check_mediator(app_configs: Any, **_: Any) -> Sequence[checks.CheckMessage]:
    """Check the mediator that the settings name, if they name one."""
    del app_configs
    if not getattr(settings, "CQRS_SYNC", None):
        return []
    found = list(_check_keys())
    try:
        consumer = consumer_of_settings()
        mediator = mediator_of_settings(consumer)
        found += _check_group(consumer)
    except ImproperlyConfigured as error:
        if isinstance(error.__cause__, SourceMissing):
            return [*found, checks.Error(str(error.__cause__), id="cqrs_sync.E009")]
        return [*found, checks.Error(str(error), id="cqrs_sync.E001")]
    return [*found, *_check_source(), *_check_wiring(mediator)]


def wiring_errors(mediator: Mediator) -> list[checks.CheckMessage]:
    """Return the errors in the settings and in this mediator that `manage.py check` would report."""
    found = [*_check_keys(), *_check_source(), *_check_wiring(mediator)]
    return [each for each in found if each.is_serious(checks.ERROR) and not each.is_silenced()]


def _check_keys() -> Iterator[checks.CheckMessage]:
    for key in unknown_keys():
        near = difflib.get_close_matches(str(key).upper(), KEYS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        yield checks.Error(
            f"CQRS_SYNC has the key {key!r}, which has no meaning",
            hint=f"{hint}the keys are {', '.join(KEYS)}",
            id="cqrs_sync.E007",
        )


def _check_source() -> Iterator[checks.CheckMessage]:
    """Check a source that the settings name and the mediator does not use."""
    try:
        if "SOURCE" in settings.CQRS_SYNC:
            source_of_settings()
    except SourceMissing as error:
        yield checks.Error(str(error), id="cqrs_sync.E009")


def _check_group(consumer: Consumer | None) -> Iterator[checks.CheckMessage]:
    group = group_of_settings()
    if consumer is not None and group and group != consumer.group.name:
        yield checks.Error(
            f'CQRS_SYNC["GROUP"] is {group!r}, but the consumer in CQRS_SYNC["CONSUMER"] is in the group '
            f"{consumer.group.name!r}",
            hint="remove GROUP: the consumer has its group already",
            id="cqrs_sync.E008",
        )


def _check_wiring(mediator: Mediator) -> Sequence[checks.CheckMessage]:
    store = _store_of(mediator)
    if store is None:
        return []
    if store.using not in settings.DATABASES:
        return [
            checks.Error(
                f"the {store.name} is in {store.using!r}, which is not in DATABASES",
                hint=f"the aliases in DATABASES are {', '.join(settings.DATABASES)}",
                id="cqrs_sync.E002",
            )
        ]
    return [*_check_settings(store), *_check_transactions(mediator), *_check_threads(mediator), *_check_sqlite(store)]


@checks.register(_LABEL, checks.Tags.database)
def check_database(app_configs: Any, databases: Sequence[str] | None = None, **_: Any) -> Sequence[checks.CheckMessage]:
    """Check the database of outbox and inbox, and no other."""
    del app_configs
    try:
        store = _store_of(mediator_of_settings())
    except ImproperlyConfigured:
        # `check_mediator` reports it.
        return []
    if store is None or store.using not in (databases or ()) or store.using not in settings.DATABASES:
        return []
    return [*_check_skip_locked(store), *_check_character_set(store), *_check_tables(store)]


@attrs.frozen
class _Store:
    """The outbox of a mediator, or its inbox if it has no outbox: both are in the same database."""

    name: str
    using: str
    model: str


def _store_of(mediator: Mediator) -> _Store | None:
    outbox, inbox = outbox_of(mediator), inbox_of(mediator)
    if outbox is not None:
        return _Store("outbox", outbox.using, "delivery")
    return None if inbox is None else _Store("inbox", inbox.using, "receipt")


def _check_settings(store: _Store) -> Iterator[checks.CheckMessage]:
    alias = store.using
    if connections[alias].vendor not in DIALECTS:
        yield checks.Error(
            f"the {store.name} is in {alias!r}, which is not a supported database: {connections[alias].vendor}",
            hint="use PostgreSQL, MariaDB, MySQL or SQLite",
            id="cqrs_sync.E004",
        )
    if not connections[alias].settings_dict["AUTOCOMMIT"]:
        yield checks.Error(
            f"autocommit is off on {alias!r}: the {store.name} would commit nothing",
            hint=f'leave DATABASES[{alias!r}]["AUTOCOMMIT"] at its default',
            id="cqrs_sync.E005",
        )
    if not router.allow_migrate(alias, _LABEL, model_name=store.model):
        yield checks.Error(
            f"the {store.name} is in {alias!r}, but a router in DATABASE_ROUTERS does not allow its tables there",
            hint=f"let allow_migrate({alias!r}, 'cqrs_sync') return True or None",
            id="cqrs_sync.E006",
        )


def _check_transactions(mediator: Mediator) -> Iterator[checks.CheckMessage]:
    outbox = outbox_of(mediator)
    if outbox is None:
        # The inbox opens a transaction itself.
        return
    chosen = mediator.wiring.middleware.of(Command)
    has_own = any(isinstance(each, Atomic) and each.using == outbox.using for each in chosen)
    if not has_own and not settings.DATABASES[outbox.using].get("ATOMIC_REQUESTS"):
        yield checks.Warning(
            "the mediator has an outbox, and its commands have no transaction: raising an event in one is an error",
            hint="make the mediator with cqrs_sync.integrations.django.bootstrap, or add Atomic() to its middleware",
            id="cqrs_sync.W001",
        )


def _check_sqlite(store: _Store) -> Iterator[checks.CheckMessage]:
    database = settings.DATABASES[store.using]
    if "sqlite3" in database["ENGINE"] and database.get("OPTIONS", {}).get("transaction_mode") != "IMMEDIATE":
        yield checks.Warning(
            f"transactions on {store.using!r} do not start with BEGIN IMMEDIATE: one that reads first fails when it "
            "writes, if another one wrote meanwhile",
            hint='set "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20}, and they wait',
            id="cqrs_sync.W002",
        )


def _check_threads(mediator: Mediator) -> Iterator[checks.CheckMessage]:
    threads = mediator.wiring.threads
    if isinstance(threads, ThreadPool) and threads.around is None:
        yield checks.Warning(
            "the pool's threads never close their database connections, not even broken ones",
            hint="give bootstrap a number of threads, or a ThreadPool(around=old_connections_closed)",
            id="cqrs_sync.W003",
        )


def _check_skip_locked(store: _Store) -> Iterator[checks.CheckMessage]:
    connection = connections[store.using]
    if connection.vendor in ("mysql", "postgresql") and not connection.features.has_select_for_update_skip_locked:
        yield checks.Error(
            f"the {store.name} needs SKIP LOCKED, which the database {store.using!r} does not have",
            hint="use MariaDB 10.6, MySQL 8 or later",
            id="cqrs_sync.E003",
        )


def _check_character_set(store: _Store) -> Iterator[checks.CheckMessage]:
    connection = connections[store.using]
    if connection.vendor != "mysql":
        return
    connection.ensure_connection()
    if connection.connection.character_set_name() != "utf8mb4":
        yield checks.Warning(
            f"connections to {store.using!r} do not use utf8mb4: an emoji in the key of an event is an error",
            hint='set "OPTIONS": {"charset": "utf8mb4"}, which is the default from Django 5.2',
            id="cqrs_sync.W004",
        )


def _check_tables(store: _Store) -> Iterator[checks.CheckMessage]:
    if sys.argv[1:2] == ["migrate"]:
        # It runs the checks before it makes the tables.
        return
    executor = MigrationExecutor(connections[store.using])
    latest = [node for node in executor.loader.graph.leaf_nodes() if node[0] == _LABEL]
    missing = [migration.name for migration, _ in executor.migration_plan(latest)]
    if missing:
        yield checks.Info(
            f"the tables of outbox and inbox in {store.using!r} are missing, or are older than this version needs: "
            f"{', '.join(missing)} did not run there",
            hint=f"run `manage.py migrate cqrs_sync --database {store.using}`",
            id="cqrs_sync.I001",
        )
