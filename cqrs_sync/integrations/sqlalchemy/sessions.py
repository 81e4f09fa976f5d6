"""A session and a transaction for each command."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from sqlalchemy import Engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.integrations.sqlalchemy.after_commit import Commits, around, watch
from cqrs_sync.lifecycle import reset_in_child
from cqrs_sync.middleware import CallNext

#: Returns the session of the calling thread, None where it has none.
SessionOf: TypeAlias = "Callable[[], Session | scoped_session[Any] | None]"


class SessionTransactions:
    """
    The transactions of an application that has its sessions already, as with Flask-SQLAlchemy.

    `session` is a `scoped_session`, or returns one, or the session of the calling thread, or None.
    Flask's raises RuntimeError outside of an application: there is none then.
    """

    def __init__(self, session: SessionOf | scoped_session[Any]) -> None:
        self._session = (lambda: session) if isinstance(session, scoped_session) else session

    def active(self) -> bool:
        """Tell whether the session of the calling thread has a transaction open."""
        return self.open_session() is not None

    def on_commit(self, callback: Callable[[], object], /) -> None:
        """
        Call `callback` once the outermost transaction has committed.

        The session may be used in it. What it raises is logged.
        """
        session = self.open_session()
        if session is None:
            callback()
        else:
            self.commits(session).wait(session, callback)

    def open_session(self) -> Session | None:
        """Return the session that has a transaction open in the calling thread."""
        try:
            session = self._session()
            if isinstance(session, scoped_session):
                # Asking for one makes one.
                session = session() if session.registry.has() else None
        except RuntimeError:
            return None
        return session if session is not None and session.in_transaction() else None

    def commits(self, session: Session) -> Commits:
        """Return what waits for the commit of a session."""
        return Commits.of(session)


class Sessions(SessionTransactions):
    """
    Sessions that live as long as a transaction, one per thread at a time.

    - `atomic` is a middleware: it gives each command a session with a transaction.
    - `current` is for the container: `container.register(Session, factory=sessions.current)`.
    - `active` and `on_commit` make it the `transactions` of a mediator; an outbox brings them along.

    `maker` is a `sessionmaker`, or whatever returns a new session. Safe from any thread; a
    forked child makes connections of its own.
    """

    def __init__(self, maker: sessionmaker[Any] | Callable[[], Session]) -> None:
        super().__init__(lambda: self._local.session)
        self._maker = maker
        self._local = _Local()
        self._of_the_parent: list[object] = []
        if self.engine is not None:
            watch(self.engine)
        reset_in_child(self)

    @property
    def engine(self) -> Engine | None:
        """The engine that sessions are bound to; None where that is not the maker's to say."""
        bind = self._maker.kw.get("bind") if isinstance(self._maker, sessionmaker) else None
        return bind if isinstance(bind, Engine) else None

    def current(self) -> Session:
        """Return the session of the calling thread. Raises ConfigurationError where none is open."""
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
        Open a session with a transaction, or a savepoint in the one that is open; what is raised rolls it back.

        Raises TransactionLost where nothing was raised and it is rolled back all the same.
        """
        local = self._local
        if local.session is not None:
            with local.session.begin_nested() as block:
                yield local.session
                self.commits(local.session).check_kept(around(block))
            return
        session = self._maker()
        commits = self.commits(session)
        try:
            local.session = session
            with session, session.begin() as block:
                yield session
                commits.check_kept(around(block))
        finally:
            local.session = None
            commits.call_due()

    def atomic(self, message: Any, call_next: CallNext, /) -> Any:
        """Give the handler of a message a session with a transaction, or a savepoint in the one that is open."""
        with self.begin():
            return call_next(message)

    def commits(self, session: Session) -> Commits:
        """Return what waits for the commit of a session; it is called when the session is closed."""
        return Commits.of(session, is_patient=True)

    def reset_in_child(self) -> None:
        """Leave sessions and connections to the parent, whose they are."""
        if self._local.session is not None:
            # Kept: if it was thrown away, it would speak on the parent's connection to say so.
            self._of_the_parent.append(self._local.session)
        self._local = _Local()
        if self.engine is not None:
            self._of_the_parent.append(self.engine.pool)
            self.engine.dispose(close=False)


class _Local(threading.local):
    session: Session | None = None
