"""The outbox and the inbox in a database that SQLAlchemy connects to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from sqlalchemy import Engine, Table
from sqlalchemy.orm import scoped_session

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.integrations.sqlalchemy.database import SessionDatabase
from cqrs_sync.integrations.sqlalchemy.sessions import CurrentSession, Sessions, SessionTransactions
from cqrs_sync.integrations.sqlalchemy.tables import OutboxTables
from cqrs_sync.sql import OutboxOptions, SqlInbox, SqlOutbox
from cqrs_sync.sql.database import INBOX, OUTBOX


class SQLAlchemyOutbox(SqlOutbox):
    """
    An outbox in a database that SQLAlchemy connects to: PostgreSQL, MariaDB, MySQL or SQLite.

    The outbox writes messages on the connection of the calling thread's open session. It claims and settles on
    connections of the engine's pool.

    - `where` is `Sessions`; or an engine, with `session`, a function that returns the calling thread's session, for
      applications with sessions of their own. A `scoped_session` will do, and so will `Sessions` without an engine.
    - `tables` is what `tables(...)` returned, if the tables have names of your own.
    - `bind_arguments` choose among the engines of a session that has several, as `Session.connection` takes them:
      `{"mapper": Order}`.
    - `max_bytes`, `on_no_transaction`, `published_by` and `notify` are those of `SqlOutbox`.
    """

    def __init__(
        self,
        where: Sessions | Engine,
        /,
        *,
        session: CurrentSession | scoped_session[Any] | SessionTransactions | None = None,
        tables: OutboxTables | None = None,
        bind_arguments: Mapping[str, Any] | None = None,
        **options: Unpack[OutboxOptions],
    ) -> None:
        messages, deliveries = (
            ("cqrs_message", "cqrs_delivery")
            if tables is None
            else (tables.messages.fullname, tables.deliveries.fullname)
        )
        engine, sessions = _engine_and_sessions(where, session, OUTBOX.name, type(self).__name__)
        database = SessionDatabase(engine, sessions, (messages, deliveries), bind_arguments or {}, OUTBOX)
        super().__init__(database, messages=messages, deliveries=deliveries, **options)


class SQLAlchemyInbox(SqlInbox):
    """
    An inbox in a database that SQLAlchemy connects to: PostgreSQL, MariaDB, MySQL or SQLite.

    The inbox writes on the connection of the calling thread's open session. With `Sessions` it opens a session if there
    is none, and `sessions.current()` returns it in the block. With sessions of its own, the application opens them.

    - `where`, `session` and `bind_arguments` are those of `SQLAlchemyOutbox`; give both the same.
    - `table` is what `inbox_table(...)` returned, if it has a name of your own.
    """

    def __init__(
        self,
        where: Sessions | Engine,
        /,
        *,
        session: CurrentSession | scoped_session[Any] | SessionTransactions | None = None,
        table: Table | None = None,
        bind_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        name = "cqrs_inbox" if table is None else table.fullname
        engine, sessions = _engine_and_sessions(where, session, INBOX.name, type(self).__name__)
        super().__init__(SessionDatabase(engine, sessions, (name,), bind_arguments or {}, INBOX), table=name)


def _engine_and_sessions(
    where: Sessions | Engine,
    session: CurrentSession | scoped_session[Any] | SessionTransactions | None,
    store: str,
    class_name: str,
) -> tuple[Engine, SessionTransactions]:
    """Return engine and sessions of a store. Raises ConfigurationError if the arguments do not name both."""
    if isinstance(where, Engine) and session is not None:
        return where, session if isinstance(session, SessionTransactions) else SessionTransactions(session)
    if isinstance(where, Sessions) and session is None:
        if where.engine is not None:
            return where.engine, where
        raise ConfigurationError(
            f"these sessions have no engine of their own, so the {store} cannot tell which database it is in: "
            f"use {class_name}(engine, session=sessions)"
        )
    raise ConfigurationError(
        f"the {store} needs sessions, {class_name}(sessions), or an engine and a function that returns the "
        f"calling thread's session, {class_name}(engine, session=lambda: db.session)"
    )
