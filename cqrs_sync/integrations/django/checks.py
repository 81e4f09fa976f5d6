"""System checks: what is wired so that events would be lost, or late."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from cqrs_sync.integrations.django.outbox import DjangoOutbox
from cqrs_sync.integrations.django.transactions import Atomic
from cqrs_sync.integrations.django.wiring import mediator_of_settings
from cqrs_sync.mediator import RequestMediator
from cqrs_sync.messages import Command


@checks.register("cqrs_sync")
def check_mediator(app_configs: Any, **_: Any) -> Sequence[checks.CheckMessage]:
    """Look at the mediator that the settings name."""
    del app_configs
    if not getattr(settings, "CQRS_SYNC", None):
        return []
    try:
        mediator = mediator_of_settings()
    except ImproperlyConfigured as error:
        return [checks.Error(str(error), id="cqrs_sync.E001")]
    outbox = mediator.relay.outbox if mediator.relay is not None else None
    if not isinstance(outbox, DjangoOutbox):
        return []
    if outbox.using not in settings.DATABASES:
        hint = f"its aliases are {', '.join(settings.DATABASES)}"
        return [
            checks.Error(
                f"the outbox is in {outbox.using!r}, which is not in DATABASES", hint=hint, id="cqrs_sync.E002"
            )
        ]
    return [*_transactions(mediator, outbox), *_sqlite(outbox)]


@checks.register("cqrs_sync", checks.Tags.database)
def check_database(app_configs: Any, databases: Sequence[str] | None = None, **_: Any) -> Sequence[checks.CheckMessage]:
    """Look at the database: it has to leave out rows that others have locked."""
    del app_configs
    found: list[checks.CheckMessage] = []
    for alias in databases or ():
        connection = connections[alias]
        if connection.vendor in ("mysql", "postgresql") and not connection.features.has_select_for_update_skip_locked:
            words = f"the database {alias!r} has no SKIP LOCKED, which the outbox needs"
            found.append(checks.Error(words, hint="use MariaDB 10.6, MySQL 8 or later", id="cqrs_sync.E003"))
    return found


def _transactions(mediator: RequestMediator, outbox: DjangoOutbox) -> Sequence[checks.CheckMessage]:
    chosen = mediator.events.dispatcher.stager.middleware.of(Command)
    has_own = any(isinstance(each, Atomic) and each.using == outbox.using for each in chosen)
    if has_own or settings.DATABASES[outbox.using].get("ATOMIC_REQUESTS"):
        return []
    return [
        checks.Warning(
            "commands have an outbox and no transaction: raising an event in one will be an error",
            hint="make the mediator with cqrs_sync.integrations.django.bootstrap, or add Atomic() to its middleware",
            id="cqrs_sync.W001",
        )
    ]


def _sqlite(outbox: DjangoOutbox) -> Sequence[checks.CheckMessage]:
    database = settings.DATABASES[outbox.using]
    if "sqlite3" not in database["ENGINE"] or database.get("OPTIONS", {}).get("transaction_mode") == "IMMEDIATE":
        return []
    return [
        checks.Warning(
            f"transactions on {outbox.using!r} begin by reading: SQLite refuses those that another has overtaken",
            hint='set "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20}, and they wait (Django 5.1, later)',
            id="cqrs_sync.W002",
        )
    ]
