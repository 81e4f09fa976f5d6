"""The inbox in a database that SQLAlchemy reaches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine, Table
from sqlalchemy.orm import scoped_session

from cqrs_sync.integrations.sqlalchemy.database import SessionDatabase
from cqrs_sync.integrations.sqlalchemy.place import place
from cqrs_sync.integrations.sqlalchemy.sessions import Sessions
from cqrs_sync.integrations.sqlalchemy.transactions import SessionOf, SessionTransactions
from cqrs_sync.sql import SqlInbox
from cqrs_sync.sql.database import INBOX


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
