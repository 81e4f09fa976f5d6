"""The outbox in a database that SQLAlchemy reaches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import scoped_session

from cqrs_sync.integrations.sqlalchemy.database import SessionDatabase
from cqrs_sync.integrations.sqlalchemy.place import place
from cqrs_sync.integrations.sqlalchemy.sessions import Sessions
from cqrs_sync.integrations.sqlalchemy.tables import OutboxTables
from cqrs_sync.integrations.sqlalchemy.transactions import SessionOf, SessionTransactions
from cqrs_sync.sql import SqlOutbox


class SQLAlchemyOutbox(SqlOutbox):
    """
    An outbox in a database that SQLAlchemy reaches: PostgreSQL, MariaDB, MySQL or SQLite.

    Messages are written on the connection of the session that is open in the calling thread,
    and claimed and settled on connections of the engine's pool.

    - `where` is `Sessions`; or an engine, and `session` a function that returns the session of
      the calling thread, for applications that have theirs already. A `scoped_session` will do,
      and so will `Sessions` that have no engine.
    - `tables` is what `tables(...)` returned, where the tables have names of your own.
    - `bind_arguments` choose among the engines of a session that has several, as
      `Session.connection` takes them: `{"mapper": Order}`.
    - `max_bytes`, `strict`, `relayed` and `notify` are those of `SqlOutbox`.
    """

    def __init__(
        self,
        where: Sessions | Engine,
        /,
        *,
        session: SessionOf | scoped_session[Any] | SessionTransactions | None = None,
        tables: OutboxTables | None = None,
        bind_arguments: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        names = (
            ("cqrs_message", "cqrs_delivery")
            if tables is None
            else (tables.messages.fullname, tables.deliveries.fullname)
        )
        engine, sessions = place(where, session, "an outbox", type(self).__name__)
        database = SessionDatabase(engine, sessions, names=names, bind_arguments=bind_arguments or {})
        super().__init__(database, messages=names[0], deliveries=names[1], **options)
