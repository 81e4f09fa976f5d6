"""The outbox in a database of Django's."""

from __future__ import annotations

from typing import Any

from cqrs_sync.integrations.django.database import DjangoDatabase
from cqrs_sync.sql import SqlOutbox


class DjangoOutbox(SqlOutbox):
    """
    An outbox in a database of `settings.DATABASES`: PostgreSQL, MariaDB, MySQL or SQLite.

    Its tables come with the app `cqrs_sync.integrations.django` and `manage.py migrate`.

    - `using` is the alias of the database that commands write to. One transaction is on one
      database: an event raised while another one is in `atomic` is an error that names it.
    - `max_bytes`, `strict`, `relayed` and `notify` are those of `SqlOutbox`.
    """

    def __init__(self, using: str = "default", **options: Any) -> None:
        self.using = using
        super().__init__(DjangoDatabase(using), **options)

    def __repr__(self) -> str:
        return f"DjangoOutbox(using={self.using!r})"
