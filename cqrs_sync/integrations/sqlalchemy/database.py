"""The way of the outbox and the inbox to a database, through SQLAlchemy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError, UnboundExecutionError
from sqlalchemy.orm import Session, SessionTransaction

from cqrs_sync.errors import ConfigurationError, NotInTransaction
from cqrs_sync.integrations.sqlalchemy.commits import Commits, check_connection, open_blocks
from cqrs_sync.integrations.sqlalchemy.connection import OpenConnection
from cqrs_sync.integrations.sqlalchemy.failures import conflicted, not_installed, translated
from cqrs_sync.integrations.sqlalchemy.listening import PsycopgListener, listener
from cqrs_sync.integrations.sqlalchemy.losses import driver_state, watch
from cqrs_sync.integrations.sqlalchemy.sessions import Sessions
from cqrs_sync.integrations.sqlalchemy.transactions import SessionTransactions
from cqrs_sync.lifecycle import reset_in_child
from cqrs_sync.sql.database import OUTBOX, Purpose
from cqrs_sync.sql.dialects import DIALECTS, Dialect
from cqrs_sync.sql.states import State


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
