"""The outbox and the inbox in a database that SQLAlchemy connects to."""

from __future__ import annotations

from typing import Unpack

from sqlalchemy import Table

from cqrs_sync.integrations.sqlalchemy.database import SessionDatabase
from cqrs_sync.integrations.sqlalchemy.external_sessions import ExternalSessions
from cqrs_sync.integrations.sqlalchemy.sessions import Sessions
from cqrs_sync.integrations.sqlalchemy.tables import OutboxTables
from cqrs_sync.sql import OutboxOptions, SqlInbox, SqlOutbox
from cqrs_sync.sql.database import INBOX, OUTBOX


class SQLAlchemyOutbox(SqlOutbox):
    """
    An outbox in a database that SQLAlchemy connects to: PostgreSQL, MariaDB, MySQL or SQLite.

    The outbox writes messages on the connection of the calling thread's open session. It claims and settles on
    connections of the engine's pool.

    - `sessions` are `Sessions`, or `ExternalSessions` for an application that has its own. They know the engine.
    - `tables` is what `tables(...)` returned, if the tables have names of your own.
    - `max_bytes`, `on_no_transaction`, `published_by` and `notify` are those of `SqlOutbox`.
    """

    def __init__(
        self,
        sessions: Sessions | ExternalSessions,
        /,
        *,
        tables: OutboxTables | None = None,
        **options: Unpack[OutboxOptions],
    ) -> None:
        messages, deliveries = (
            ("cqrs_message", "cqrs_delivery")
            if tables is None
            else (tables.messages.fullname, tables.deliveries.fullname)
        )
        #: The sessions that it writes in.
        self.sessions = sessions
        database = SessionDatabase(sessions, (messages, deliveries), OUTBOX)
        super().__init__(database, messages=messages, deliveries=deliveries, **options)


class SQLAlchemyInbox(SqlInbox):
    """
    An inbox in a database that SQLAlchemy connects to: PostgreSQL, MariaDB, MySQL or SQLite.

    The inbox writes on the connection of the calling thread's open session. If none has a transaction open, it opens
    one, and `sessions.current()` returns the session in the block.

    - `sessions` are those of the outbox.
    - `table` is what `inbox_table(...)` returned, if it has a name of your own.
    """

    def __init__(self, sessions: Sessions | ExternalSessions, /, *, table: Table | None = None) -> None:
        name = "cqrs_inbox" if table is None else table.fullname
        #: The sessions that it writes in.
        self.sessions = sessions
        super().__init__(SessionDatabase(sessions, (name,), INBOX), table=name)
