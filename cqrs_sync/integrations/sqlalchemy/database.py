"""The outbox and the inbox in a database that SQLAlchemy connects to, and how they reach it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Unpack

from sqlalchemy import Connection, CursorResult, Engine, Table
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError, UnboundExecutionError
from sqlalchemy.orm import Session

from cqrs_sync.errors import ConfigurationError, CqrsError, NotInTransaction
from cqrs_sync.integrations.sqlalchemy.external_sessions import ExternalSessions
from cqrs_sync.integrations.sqlalchemy.sessions import (
    Sessions,
    SessionTransactions,
    check_not_aborted,
    connection_status,
    note_half_lost_transactions,
    open_blocks,
)
from cqrs_sync.integrations.sqlalchemy.tables import OutboxTables
from cqrs_sync.lifecycle import reset_in_child
from cqrs_sync.sql import OutboxOptions, SqlInbox, SqlOutbox
from cqrs_sync.sql.database import (
    INBOX,
    OUTBOX,
    PsycopgListener,
    StoreKind,
    TransactionStatus,
    can_listen,
    is_conflict,
    is_missing,
)
from cqrs_sync.sql.dialects import DIALECTS, Dialect

_PLACEHOLDER = re.compile("%([%s])")


class SessionDatabase:
    """A database that `engine` connects to, and on which sessions have their transactions."""

    def __init__(self, sessions: SessionTransactions, table_names: Sequence[str], store: StoreKind) -> None:
        self._engine = engine = _engine_of(sessions, store)
        self._sessions = sessions
        self._table_names = table_names
        self._store = store
        #: The application's transactions on this database.
        self.transactions: EngineTransactions = EngineTransactions(engine, sessions)
        self.dialect: Dialect = _dialect_of(engine, store)
        self._kept_for_parent: list[object] = []
        note_half_lost_transactions(engine)
        reset_in_child(self)

    def current_connection(self) -> SessionConnection | None:
        """Return the connection on which the calling thread has a transaction open, None if it has none."""
        session = self.transactions.open_session()
        if session is None:
            if self._store is OUTBOX:
                self._sessions.check_not_committed()
            return None
        # A missing table is reported as ours; everything else is the application's to handle.
        return self._connection_of(session, self._not_installed)

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[SessionConnection]:
        """Open a transaction of the library's own and commit it at the end of the block."""
        # It has a connection of its own, so it is durable whatever sessions have open.
        del durable
        try:
            with self._engine.connect() as connection, connection.begin():
                yield SessionConnection(connection)
        except SQLAlchemyError as error:
            raise self._translate(error) from error

    @contextmanager
    def application_transaction(self) -> Iterator[SessionConnection]:
        """Open a session with a transaction for the block, and commit it at the end."""
        with ExitStack() as stack:
            try:
                session = stack.enter_context(self._sessions.begin())
                connection = self._connection_of(session, self._translate)
            except SQLAlchemyError as error:
                raise self._translate(error) from error
            engine = connection.engine
            if engine.pool is not self._engine.pool:
                raise NotInTransaction(
                    f"sessions are on {engine.url!r}, and the {self._store.name} is on {self._engine.url!r}: "
                    "give it the engine, or the bind_arguments, of what its handlers write"
                )
            yield connection

    def _connection_of(
        self, session: Session, translate: Callable[[SQLAlchemyError], CqrsError | None]
    ) -> SessionConnection:
        """Return the connection of a session. Raises TransactionLost if its transaction would not be committed."""
        hooks, blocks = self._sessions.commit_hooks(session), tuple(open_blocks(session))
        hooks.check_not_rolled_back(blocks)
        connection = session.connection(bind_arguments=self._sessions.bind_arguments)
        check_not_aborted(connection)

        def is_open() -> bool:
            hooks.check_not_rolled_back(blocks)
            if not all(block.is_active for block in blocks):
                return False
            check_not_aborted(connection)
            return connection_status(connection) is not TransactionStatus.NONE

        return SessionConnection(connection, translate, is_open)

    def is_conflict(self, error: BaseException, /) -> bool:
        """Tell whether `application_transaction` can be started again after this error."""
        return isinstance(error.__cause__, DBAPIError) and is_conflict(error.__cause__.orig)

    how_to_open = (
        "Write `with sessions.begin(): mediator.publish(event)`, or let a middleware open one around the handler that "
        "raises it"
    )

    def other_database(self) -> str | None:
        """Name another database on which the calling thread has a transaction open."""
        session = self._sessions.open_session()
        bind = None if session is None else self.transactions.bind_of(session)
        return None if bind is None else bind.url.render_as_string(hide_password=True)

    def listener(self, channel: str, /) -> PsycopgListener | None:
        """Listen on a channel with a connection of its own; None if the database or its driver cannot."""
        if self._engine.dialect.name != "postgresql" or not can_listen(self._engine.dialect.dbapi):
            return None
        try:
            pooled = self._engine.connect()
            connection = pooled.connection.driver_connection
            # The listener keeps the connection, so the pool replaces it.
            pooled.detach()
        except SQLAlchemyError as error:
            raise self._translate(error) from error
        return PsycopgListener(connection, channel)

    def release_connection(self) -> None:
        """Do nothing: between two transactions connections are in the pool."""

    def reset_in_child(self) -> None:
        """Leave connections to the parent process, which owns them."""
        # A reference is kept: the pool's destructor would close connections, and SQLite would roll back for the parent.
        self._kept_for_parent.append(self._engine.pool)
        self._engine.dispose(close=False)

    def _translate(self, error: SQLAlchemyError) -> CqrsError:
        """Make the store's error of a database error."""
        _hide_parameters(error)
        missing = self._not_installed(error)
        if missing is not None:
            return missing
        cause = error.orig if isinstance(error, DBAPIError) else error
        return self._store.unavailable(f"{type(cause).__name__}: {_first_line(str(cause))}")

    def _not_installed(self, error: SQLAlchemyError) -> CqrsError | None:
        """Make an error for a missing table; None for any other error."""
        if not isinstance(error, DBAPIError) or not is_missing(error.orig):
            return None
        words = str(error.orig)
        names = [name for name in self._table_names if name.rpartition(".")[2] in words] or self._table_names
        function = "tables" if self._store is OUTBOX else "inbox_table"
        return self._store.not_installed(
            f"the table {' or '.join(names)} of the {self._store.name} is missing, or is older than this version needs "
            f"({_first_line(words)}): put {function}(metadata) of cqrs_sync.integrations.sqlalchemy on your metadata, "
            "and create it with metadata.create_all(engine) or a migration"
        )


class SessionConnection:
    """
    A connection with an open transaction.

    `translate` makes an error of the library from a database error, or returns None to let it through. `is_open`
    tells whether the session's transaction is still open.
    """

    is_nested: bool = False

    def __init__(
        self,
        connection: Connection,
        translate: Callable[[SQLAlchemyError], CqrsError | None] = lambda _: None,
        is_open: Callable[[], bool] = lambda: True,
    ) -> None:
        self._connection = connection
        self._translate = translate
        self._is_open = is_open
        self._uses_question_marks = connection.dialect.paramstyle == "qmark"

    @property
    def engine(self) -> Engine:
        """The engine of the connection."""
        return self._connection.engine

    def execute(self, statement: str, parameters: Sequence[Any] = (), /) -> Sequence[Sequence[Any]]:
        """Execute a statement and return its rows, none if it returns no rows."""
        result = self._run(statement, parameters)
        return result.fetchall() if result.returns_rows else ()

    def change(self, statement: str, parameters: Sequence[Any] = (), /) -> int:
        """Execute a statement and return how many rows it changed."""
        return self._run(statement, parameters).rowcount

    def is_open(self) -> bool:
        """Tell whether the transaction is open, as far as the driver knows. Raises TransactionLost."""
        return self._is_open()

    def _run(self, statement: str, parameters: Sequence[Any]) -> CursorResult[Any]:
        if self._uses_question_marks:
            statement = _PLACEHOLDER.sub(lambda found: "?" if found[1] == "s" else "%", statement)
        try:
            return self._connection.exec_driver_sql(statement, tuple(parameters) or None)
        except SQLAlchemyError as error:
            _hide_parameters(error)
            translated = self._translate(error)
            if translated is None:
                raise
            raise translated from error


class EngineTransactions:
    """The transactions of sessions, as far as they are on one engine's database."""

    def __init__(self, engine: Engine, sessions: SessionTransactions) -> None:
        self._engine = engine
        self._sessions = sessions

    def active(self) -> bool:
        """Tell whether the calling thread is inside a transaction on this database."""
        return self.open_session() is not None

    def on_commit(self, callback: Callable[[], object], /) -> None:
        """Call `callback` in this thread once the outermost transaction has committed."""
        self._sessions.on_commit(callback)

    def open_session(self) -> Session | None:
        """Return the calling thread's session if it has a transaction open on this database."""
        session = self._sessions.open_session()
        bind = None if session is None else self.bind_of(session)
        # Engines that differ in their options share a pool.
        return session if bind is not None and bind.pool is self._engine.pool else None

    def bind_of(self, session: Session) -> Engine | None:
        """Return the engine that a session writes to; None if that depends on what is written."""
        try:
            return session.get_bind(**self._sessions.bind_arguments).engine
        except UnboundExecutionError:
            return None


def _engine_of(sessions: SessionTransactions, store: StoreKind) -> Engine:
    if not isinstance(sessions, SessionTransactions):
        raise ConfigurationError(
            f"the {store.name} takes Sessions(engine), or ExternalSessions(db.session, engine=db.engine) for the "
            f"sessions of an application that has its own, not {type(sessions).__qualname__}"
        )
    if sessions.engine is None:
        raise ConfigurationError(
            f"the {store.name} cannot tell which database these sessions are on: name it with "
            f"{type(sessions).__name__}(..., engine=engine)"
        )
    return sessions.engine


def _dialect_of(engine: Engine, store: StoreKind) -> Dialect:
    name = engine.dialect.name.replace("mariadb", "mysql")
    if name not in DIALECTS or engine.dialect.is_async:
        raise ConfigurationError(
            f"the {store.name} supports PostgreSQL, MariaDB, MySQL and SQLite with synchronous drivers, "
            f"not {engine.url!r}"
        )
    # `create_engine(isolation_level=...)` is not among the options of the engine, and there is no public way to ask.
    chosen = getattr(engine.dialect, "_on_connect_isolation_level", None)
    if engine.get_execution_options().get("isolation_level", chosen) == "AUTOCOMMIT":
        raise ConfigurationError(
            f"the engine of {engine.url!r} has the isolation level AUTOCOMMIT, which commits each statement: "
            f"give the {store.name} an engine without it"
        )
    return DIALECTS[name]


def _hide_parameters(error: SQLAlchemyError) -> None:
    """Keep the content of messages out of logs."""
    if isinstance(error, StatementError):
        error.hide_parameters = True


def _first_line(words: str) -> str:
    return words.strip().partition("\n")[0]


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
