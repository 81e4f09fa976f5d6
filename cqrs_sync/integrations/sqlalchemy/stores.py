"""The outbox in a database that SQLAlchemy reaches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine, Table
from sqlalchemy.orm import scoped_session

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.integrations.sqlalchemy.database import SessionDatabase
from cqrs_sync.integrations.sqlalchemy.sessions import SessionOf, Sessions, SessionTransactions
from cqrs_sync.integrations.sqlalchemy.tables import OutboxTables
from cqrs_sync.sql import SqlInbox, SqlOutbox
from cqrs_sync.sql.database import INBOX


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


class SQLAlchemyInbox(SqlInbox):
    """
    An inbox in a database that SQLAlchemy reaches: PostgreSQL, MariaDB, MySQL or SQLite.

    Its rows are written on the connection of the session that is open in the calling thread. With `Sessions` it
    opens one where none is, and `sessions.current()` is that in the block; sessions of the application's own are
    opened by the application.

    - `where`, `session` and `bind_arguments` are those of `SQLAlchemyOutbox`; give both the same.
    - `table` is what `inbox_table(...)` returned, where it has a name of your own.
    """

    def __init__(
        self,
        where: Sessions | Engine,
        /,
        *,
        session: SessionOf | scoped_session[Any] | SessionTransactions | None = None,
        table: Table | None = None,
        bind_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        name = "cqrs_inbox" if table is None else table.fullname
        engine, sessions = place(where, session, "an inbox", type(self).__name__)
        database = SessionDatabase(engine, sessions, names=(name,), bind_arguments=bind_arguments or {}, purpose=INBOX)
        super().__init__(database, table=name)


def place(
    where: Sessions | Engine,
    session: SessionOf | scoped_session[Any] | SessionTransactions | None,
    what: str,
    maker: str,
) -> tuple[Engine, SessionTransactions]:
    """Return engine and sessions for `what`, which `maker` makes. Raises ConfigurationError where they are not told."""
    if isinstance(where, Engine) and session is not None:
        return where, session if isinstance(session, SessionTransactions) else SessionTransactions(session)
    if isinstance(where, Sessions) and session is None:
        if where.engine is not None:
            return where.engine, where
        raise ConfigurationError(
            f"these sessions have no engine of their own, so {what} cannot tell which database it is in: "
            f"{maker}(engine, session=sessions)"
        )
    raise ConfigurationError(
        f"{what} is made of sessions, {maker}(sessions), or of an engine and a function that returns the "
        f"session of the calling thread, {maker}(engine, session=lambda: db.session)"
    )
