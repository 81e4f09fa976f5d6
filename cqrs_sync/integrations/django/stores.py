"""The outbox and the inbox in a database of `settings.DATABASES`."""

from __future__ import annotations

from typing import Unpack

from cqrs_sync.integrations.django.database import DjangoDatabase
from cqrs_sync.sql import OutboxOptions, SqlInbox, SqlOutbox
from cqrs_sync.sql.database import INBOX, OUTBOX


class DjangoOutbox(SqlOutbox):
    """
    An outbox in a database of `settings.DATABASES`: PostgreSQL, MariaDB, MySQL or SQLite.

    Its tables come with the app `cqrs_sync.integrations.django` and `manage.py migrate`.

    - `using` is the alias of the database that commands write to. A transaction is on one database: raising an event
      while `atomic` is open on another one is an error that names it.
    - `max_bytes`: larger bodies are refused before they are written.
    - `on_no_transaction`: what happens to an event that is added outside of `atomic`. By default that is an error.
    - `published_by`: the relay, or change data capture that reads the table; then only handlers are delivered.
    - `notify`: notify relays in other processes of each commit, on PostgreSQL.
    """

    def __init__(self, using: str = "default", **options: Unpack[OutboxOptions]) -> None:
        self.using = using
        super().__init__(DjangoDatabase(using, OUTBOX), **options)

    def __repr__(self) -> str:
        return f"DjangoOutbox(using={self.using!r})"


class DjangoInbox(SqlInbox):
    """
    An inbox in a database of `settings.DATABASES`: PostgreSQL, MariaDB, MySQL or SQLite.

    Its table comes with the app `cqrs_sync.integrations.django` and `manage.py migrate`. `using` is the alias of the
    database that handlers write to. The inbox joins the calling thread's `atomic` block, or opens one.
    """

    def __init__(self, using: str = "default") -> None:
        self.using = using
        super().__init__(DjangoDatabase(using, INBOX))

    def __repr__(self) -> str:
        return f"DjangoInbox(using={self.using!r})"
