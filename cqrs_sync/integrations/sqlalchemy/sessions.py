"""Sessions with transactions, the application's own or one for each command."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.integrations.sqlalchemy.commit_hooks import CommitHooks, note_half_lost_transactions, with_outer_blocks
from cqrs_sync.lifecycle import reset_in_child
from cqrs_sync.middleware import CallNext

#: Returns the session of the calling thread, None if it has none.
CurrentSession: TypeAlias = "Callable[[], Session | scoped_session[Any] | None]"


class SessionTransactions:
    """
    The transactions of an application that has sessions of its own, as with Flask-SQLAlchemy.

    `session` is a `scoped_session`, or a function that returns one, or the calling thread's session, or None.
    Flask's raises RuntimeError outside of an application: that counts as None.
    """

    def __init__(self, session: CurrentSession | scoped_session[Any]) -> None:
        self._session = (lambda: session) if isinstance(session, scoped_session) else session

    def active(self) -> bool:
        """Tell whether the session of the calling thread has a transaction open."""
        return self.open_session() is not None

    def on_commit(self, callback: Callable[[], object], /) -> None:
        """
        Call `callback` once the outermost transaction has committed.

        It may use the session. What it raises is logged.
        """
        session = self.open_session()
        if session is None:
            callback()
        else:
            self.commit_hooks(session).add(session, callback)

    def open_session(self) -> Session | None:
        """Return the calling thread's session if it has a transaction open."""
        try:
            session = self._session()
            if isinstance(session, scoped_session):
                # Calling it would make a session.
                session = session() if session.registry.has() else None
        except RuntimeError:
            return None
        return session if session is not None and session.in_transaction() else None

    def commit_hooks(self, session: Session) -> CommitHooks:
        """Return the after-commit hooks of a session."""
        return CommitHooks.of(session)


class Sessions(SessionTransactions):
    """
    Sessions that live as long as a transaction, one per thread at a time.

    - `atomic` is a middleware: it gives each command a session with a transaction.
    - `current` is for the container: `container.register(Session, factory=sessions.current)`.
    - `active` and `on_commit` make it the `transactions` of a mediator; an outbox brings them along.

    `maker` is a `sessionmaker`, or any function that returns a new session. Safe from any thread; a
    forked child makes connections of its own.
    """

    def __init__(self, maker: sessionmaker[Any] | Callable[[], Session]) -> None:
        super().__init__(lambda: self._local.session)
        self._maker = maker
        self._local = _CurrentSessionOfThread()
        self._kept_for_parent: list[object] = []
        if self.engine is not None:
            note_half_lost_transactions(self.engine)
        reset_in_child(self)

    @property
    def engine(self) -> Engine | None:
        """The engine that sessions are bound to; None if the maker does not bind them to one."""
        bind = self._maker.kw.get("bind") if isinstance(self._maker, sessionmaker) else None
        return bind if isinstance(bind, Engine) else None

    def current(self) -> Session:
        """Return the session of the calling thread. Raises ConfigurationError if none is open."""
        session = self._local.session
        if session is None:
            raise ConfigurationError(
                "no session is open in this thread: add sessions.atomic to the middleware, for the messages whose "
                "handlers need one, or open one with sessions.begin()"
            )
        return session

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """
        Open a session with a transaction, or a savepoint in the open one. Any exception rolls it back.

        Raises TransactionLost if the block raised nothing and is rolled back all the same.
        """
        local = self._local
        if local.session is not None:
            with local.session.begin_nested() as block:
                yield local.session
                self.commit_hooks(local.session).check_not_rolled_back(with_outer_blocks(block))
            return
        session = self._maker()
        hooks = self.commit_hooks(session)
        try:
            local.session = session
            with session, session.begin() as block:
                yield session
                hooks.check_not_rolled_back(with_outer_blocks(block))
        finally:
            local.session = None
            hooks.run_due()

    def atomic(self, message: Any, call_next: CallNext, /) -> Any:
        """Give the handler of a message a session with a transaction, or a savepoint in the open one."""
        with self.begin():
            return call_next(message)

    def commit_hooks(self, session: Session) -> CommitHooks:
        """Return the after-commit hooks of a session; `begin` runs them when it has closed the session."""
        return CommitHooks.of(session, deferred=True)

    def reset_in_child(self) -> None:
        """Leave sessions and connections to the parent process, which owns them."""
        if self._local.session is not None:
            # A reference is kept: the destructor would talk to the database on the parent's connection.
            self._kept_for_parent.append(self._local.session)
        self._local = _CurrentSessionOfThread()
        if self.engine is not None:
            self._kept_for_parent.append(self.engine.pool)
            self.engine.dispose(close=False)


class _CurrentSessionOfThread(threading.local):
    session: Session | None = None


def begin_immediate(engine: Engine) -> Engine:
    """
    Make each transaction on a SQLite engine the only one that writes, from its start, and return the engine.

    SQLite refuses a write in a transaction that has read before ("database is locked"), if another one wrote meanwhile,
    whatever the timeout. A transaction that starts with BEGIN IMMEDIATE waits for its turn instead, at most as long as
    `connect_args={"timeout": seconds}` says. Savepoints need this, too: the driver starts no transaction for them.
    """
    if engine.dialect.name != "sqlite":
        raise ConfigurationError(f"begin_immediate is for SQLite, not for {engine.dialect.name}")
    event.listen(engine, "connect", _disable_driver_transactions)
    event.listen(engine, "begin", _begin)
    return engine


def _disable_driver_transactions(connection: Any, _: object) -> None:
    connection.isolation_level = None


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
