"""The way of the outbox and the inbox to a database, through SQLAlchemy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from sqlalchemy import Connection, CursorResult, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError, UnboundExecutionError
from sqlalchemy.orm import Session, SessionTransaction

from cqrs_sync.errors import ConfigurationError, CqrsError, NotInTransaction, OutboxUnavailable
from cqrs_sync.integrations.sqlalchemy.after_commit import Commits, check_connection, driver_state, open_blocks, watch
from cqrs_sync.integrations.sqlalchemy.sessions import Sessions, SessionTransactions
from cqrs_sync.lifecycle import reset_in_child
from cqrs_sync.sql.database import OUTBOX, Purpose
from cqrs_sync.sql.dialects import DIALECTS, Dialect
from cqrs_sync.sql.drivers import State


class SessionDatabase:
    """A database that `engine` reaches, and on which sessions have their transactions."""

    def __init__(
        self,
        engine: Engine,
        sessions: SessionTransactions,
        *,
        names: Sequence[str],
        bind_arguments: Mapping[str, Any],
        purpose: Purpose = OUTBOX,
    ) -> None:
        self._engine = engine
        self._sessions = sessions
        self._names = names
        self._purpose = purpose
        self._transactions = TransactionsHere(engine, sessions, bind_arguments)
        self._dialect = _dialect_of(engine, purpose)
        self._of_the_parent: list[object] = []
        watch(engine)
        reset_in_child(self)

    @property
    def dialect(self) -> Dialect:
        """The SQL it speaks."""
        return self._dialect

    @property
    def transactions(self) -> TransactionsHere:
        """The transactions of the application on this database."""
        return self._transactions

    def joined(self) -> OpenConnection:
        """Return the connection on which the calling thread has its transaction open."""
        session = self._sessions.open_session()
        assert session is not None
        # It must not commit half of what it did: see `losses`.
        commits, blocks = self._sessions.commits(session), tuple(open_blocks(session))
        commits.check_kept(blocks)
        connection = session.connection(bind_arguments=self._transactions.bind_arguments)
        check_connection(connection)
        translate = partial(not_installed, names=self._names, purpose=self._purpose)
        return OpenConnection(connection, translate, partial(_is_open, commits, blocks, connection))

    @contextmanager
    def begun(self, *, durable: bool = False) -> Iterator[OpenConnection]:
        """Open a transaction of the library's own, and commit it at the end of the block."""
        # On a connection of its own, whatever sessions have open.
        del durable
        try:
            with self._engine.connect() as connection, connection.begin():
                yield OpenConnection(connection)
        except SQLAlchemyError as error:
            raise translated(error, self._names, self._purpose) from error

    @contextmanager
    def opened(self) -> Iterator[OpenConnection]:
        """Open a session with a transaction for the block, and commit it at the end."""
        with ExitStack() as stack:
            try:
                session = stack.enter_context(self._sessions_of_ours().begin())
                connection = session.connection(bind_arguments=self._transactions.bind_arguments)
            except SQLAlchemyError as error:
                raise translated(error, self._names, self._purpose) from error
            if connection.engine.pool is not self._engine.pool:
                raise NotInTransaction(
                    f"sessions are on {connection.engine.url!r}, and the {self._purpose.name} is on "
                    f"{self._engine.url!r}: give it the engine, or the bind_arguments, of what its handlers write"
                )
            commits, blocks = self._sessions.commits(session), tuple(open_blocks(session))
            translate = partial(translated, names=self._names, purpose=self._purpose)
            yield OpenConnection(connection, translate, partial(_is_open, commits, blocks, connection))

    def conflicted(self, error: BaseException, /) -> bool:
        """Tell of an error of `opened` whether the transaction may be begun anew."""
        return conflicted(error.__cause__)

    def _sessions_of_ours(self) -> Sessions:
        if not isinstance(self._sessions, Sessions):
            raise NotInTransaction(
                f"the {self._purpose.name} opens no transaction in sessions that are the application's own: open one "
                "around this, or let a middleware do so; or make the sessions with Sessions(sessionmaker(engine))"
            )
        return self._sessions

    def elsewhere(self) -> str | None:
        """Name another database on which the calling thread has a transaction open."""
        session = self._sessions.open_session()
        bind = None if session is None else self._transactions.bind_of(session)
        return None if bind is None else bind.url.render_as_string(hide_password=True)

    def listener(self, channel: str, /) -> PsycopgListener | None:
        """Listen for what is notified on a channel."""
        return listener(self._engine, channel)

    def release_connection(self) -> None:
        """Do nothing: connections are the pool's, between two transactions."""

    def reset_in_child(self) -> None:
        """Leave connections to the parent, whose they are."""
        # Kept: what is thrown away is closed, and SQLite would roll back for the parent.
        self._of_the_parent.append(self._engine.pool)
        self._engine.dispose(close=False)


class TransactionsHere:
    """The transactions of sessions, as far as they are on one database."""

    def __init__(self, engine: Engine, sessions: SessionTransactions, bind_arguments: Mapping[str, Any]) -> None:
        self.bind_arguments = dict(bind_arguments)
        self._engine = engine
        self._sessions = sessions

    def active(self) -> bool:
        """Tell whether the calling thread is inside a transaction on it."""
        session = self._sessions.open_session()
        if session is None:
            return False
        bind = self.bind_of(session)
        # Engines that differ in their options share a pool.
        return bind is not None and bind.pool is self._engine.pool

    def on_commit(self, callback: Callable[[], object], /) -> None:
        """Call `callback` in this thread once the outermost transaction has committed."""
        self._sessions.on_commit(callback)

    def bind_of(self, session: Session) -> Engine | None:
        """Return the engine that a session writes to; None where it depends on what is written."""
        try:
            return session.get_bind(**self.bind_arguments).engine
        except UnboundExecutionError:
            return None


def _is_open(commits: Commits, blocks: Sequence[SessionTransaction], connection: Connection) -> bool:
    """Tell whether the transaction is open in which a connection was handed out. Raises TransactionLost."""
    commits.check_kept(blocks)
    if not all(block.is_active for block in blocks):
        return False
    check_connection(connection)
    return driver_state(connection) is not State.NONE


def _dialect_of(engine: Engine, purpose: Purpose) -> Dialect:
    name = engine.dialect.name.replace("mariadb", "mysql")
    if name not in DIALECTS or engine.dialect.is_async:
        raise ConfigurationError(
            f"the {purpose.name} is for PostgreSQL, MariaDB, MySQL and SQLite, with drivers that wait, "
            f"not for {engine.url!r}"
        )
    if engine.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        raise ConfigurationError(
            f"{engine.url!r} commits each statement by itself: give the {purpose.name} an engine without"
        )
    return DIALECTS[name]


_MARK = re.compile("%([%s])")


class OpenConnection:
    """
    A connection with a transaction open.

    `translate` makes errors of ours, or returns None; `is_open` is what tells of the session that the connection is of.
    """

    is_nested = False

    def __init__(
        self,
        connection: Connection,
        translate: Callable[[SQLAlchemyError], CqrsError | None] | None = None,
        is_open: Callable[[], bool] = lambda: True,
    ) -> None:
        self._connection = connection
        self._translate = translate
        self._is_open = is_open
        self._asks_with_marks = connection.dialect.paramstyle == "qmark"

    def execute(self, statement: str, parameters: Sequence[Any] = (), /) -> Sequence[Sequence[Any]]:
        """Execute a statement and return its rows; none where it returns no rows."""
        result = self._run(statement, parameters)
        return result.fetchall() if result.returns_rows else ()

    def change(self, statement: str, parameters: Sequence[Any] = (), /) -> int:
        """Execute a statement and return how many rows it has changed."""
        return self._run(statement, parameters).rowcount

    def is_open(self) -> bool:
        """Tell whether the transaction is open, as far as the driver knows. Raises TransactionLost."""
        return self._is_open()

    def _run(self, statement: str, parameters: Sequence[Any]) -> CursorResult[Any]:
        if self._asks_with_marks:
            statement = _MARK.sub(lambda found: "?" if found[1] == "s" else "%", statement)
        try:
            return self._connection.exec_driver_sql(statement, tuple(parameters) or None)
        except SQLAlchemyError as error:
            if isinstance(error, StatementError):
                # What is in a message is nobody's business who reads a log.
                error.hide_parameters = True
            translated = self._translate(error) if self._translate is not None else None
            if translated is None:
                raise
            raise translated from error


#: A table, a column, a schema that is not there, as PostgreSQL says it, and as MySQL does.
_MISSING = {"42P01", "42703", "3F000", 1146, 1054}
_MISSING_IN_SQLITE = ("no such table", "no such column", "has no column named")
#: A deadlock, and a row that was changed after the transaction's snapshot.
_CONFLICTS = {"40001", "40P01", 1213, 1020}


def not_installed(error: SQLAlchemyError, names: Sequence[str], purpose: Purpose = OUTBOX) -> CqrsError | None:
    """Tell of a table that is not there; None where that is not the trouble."""
    if not isinstance(error, DBAPIError) or not _is_missing(error.orig):
        return None
    words = str(error.orig)
    named = [name for name in names if name.rpartition(".")[2] in words] or names
    function = "tables" if purpose is OUTBOX else "inbox_table"
    return purpose.not_installed(
        f"the table {' or '.join(named)} of the {purpose.name} is not there, or not as this version needs it "
        f"({_line(words)}): put {function}(metadata) of cqrs_sync.integrations.sqlalchemy on your metadata, and create "
        "it with metadata.create_all(engine) or a migration"
    )


def translated(error: SQLAlchemyError, names: Sequence[str], purpose: Purpose = OUTBOX) -> CqrsError:
    """Make an error of ours of what went wrong in a transaction of ours."""
    if isinstance(error, StatementError):
        # What is in a message is nobody's business who reads a log.
        error.hide_parameters = True
    missing = not_installed(error, names, purpose)
    if missing is not None:
        return missing
    cause = error.orig if isinstance(error, DBAPIError) else error
    return purpose.unavailable(f"{type(cause).__name__}: {_line(str(cause))}")


def conflicted(error: BaseException | None) -> bool:
    """Tell whether the database has ended one transaction of several, which may be begun anew."""
    return isinstance(error, DBAPIError) and bool(_codes(error.orig) & _CONFLICTS)


def _is_missing(cause: Any) -> bool:
    first = next(iter(getattr(cause, "args", ())), None)
    return bool(_codes(cause) & _MISSING) or any(words in str(first) for words in _MISSING_IN_SQLITE)


def _codes(cause: Any) -> set[Any]:
    """Return what the driver says by numbers, or as SQLSTATE."""
    first = next(iter(getattr(cause, "args", ())), None)
    return {first, getattr(cause, "sqlstate", None), getattr(cause, "pgcode", None)}


def _line(words: str) -> str:
    return words.strip().partition("\n")[0]


def listener(engine: Engine, channel: str) -> PsycopgListener | None:
    """Listen on a channel with a connection of its own; None where the database or its driver has no such thing."""
    if engine.dialect.name != "postgresql" or engine.dialect.driver != "psycopg":
        return None
    try:
        pooled = engine.connect()
        connection = pooled.connection.driver_connection
        # It is not the pool's any more: it would be missing there for as long as somebody listens.
        pooled.detach()
    except SQLAlchemyError as error:
        raise translated(error, ()) from error
    return PsycopgListener(connection, channel)


class PsycopgListener:
    """
    Listens on a connection of psycopg, which it closes.

    What is notified while it is not connected is heard by nobody: it is a hint, no more.
    """

    def __init__(self, connection: Any, channel: str) -> None:
        self._connection = connection
        with self._translating():
            connection.rollback()
            connection.autocommit = True
            connection.execute(f'LISTEN "{channel}"')

    def wait(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds. Raises OutboxUnavailable where the connection is broken: open another one."""
        with self._translating():
            return bool(list(self._connection.notifies(timeout=timeout, stop_after=1)))

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except (self._connection.Error, OSError) as error:
            raise OutboxUnavailable(f"{type(error).__name__}: {error}") from error
