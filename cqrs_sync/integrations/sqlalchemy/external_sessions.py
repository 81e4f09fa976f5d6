"""The sessions of an application that has its own: Flask-SQLAlchemy's, or any `scoped_session`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, TypeAlias, cast

from sqlalchemy import Engine
from sqlalchemy.orm import Session, SessionTransaction, SessionTransactionOrigin, scoped_session, sessionmaker
from sqlalchemy.util import ThreadLocalRegistry

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.integrations.sqlalchemy.sessions import CommitHooks, SessionTransactions, with_outer_blocks
from cqrs_sync.messages import Command, Query
from cqrs_sync.middleware import CallNext

#: Returns the session of the calling thread, None if it has none.
CurrentSession: TypeAlias = "Callable[[], Session | scoped_session[Any] | None]"

#: In `Session.info`: the transaction that a handler's call has begun, and its thread.
_BLOCK = "cqrs_sync.block"


class ExternalSessions(SessionTransactions):
    """
    The sessions of an application that has its own, as with Flask-SQLAlchemy.

    - `session` is a `scoped_session`, or a function that returns one, or the calling thread's session, or None.
      Flask's raises RuntimeError outside of an application context: that counts as None.
    - `engine` is that of the database that handlers write to. `bind_arguments` choose it among several.
    - `around` makes a context manager in which the session is another one, such as `app.app_context`. Handlers that
      run in a thread of the library, or where there is no session, are called inside of it.

    A command commits the session when its handler returns, with what was done in it before, and rolls it back if the
    handler raises. Inside of `session.begin()` or `session.begin_nested()` a command is a savepoint instead, and the
    end of that block commits.
    """

    def __init__(
        self,
        session: CurrentSession | scoped_session[Any],
        /,
        *,
        engine: Engine | None = None,
        around: Callable[[], AbstractContextManager[object]] | None = None,
        bind_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(session, (Session, Engine, sessionmaker)) or not callable(session):
            raise ConfigurationError(
                "ExternalSessions takes a scoped_session, or a function that returns the calling thread's session, "
                f"not {type(session).__qualname__}; for an engine or a sessionmaker use Sessions(...)"
            )
        if around is not None and not callable(around):
            raise ConfigurationError(f"around must make a context manager, such as app.app_context, not {around!r}")
        self._session: CurrentSession = (lambda: session) if isinstance(session, scoped_session) else session
        self._around = around
        self._local = _ScopeOfThread()
        if engine is None and isinstance(session, scoped_session):
            bind = getattr(session.session_factory, "kw", {}).get("bind")
            engine = bind if isinstance(bind, Engine) else None
        super().__init__(engine, bind_arguments)

    def current(self) -> Session:
        """Return the session of the calling thread. Raises ConfigurationError if there is none."""
        session = self._find()
        if session is None:
            raise ConfigurationError(
                "the application has no session in this thread: call this where it has one, such as inside "
                "`with app.app_context():`, or give around=app.app_context"
            )
        return session

    def open_session(self) -> Session | None:
        """Return the calling thread's session if it has a transaction open."""
        session = self._find(make=False)
        return session if session is not None and session.in_transaction() else None

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Surround a call in a thread of the library, which has a session of its own: `ThreadPool(around=...)`."""
        is_own, self._local.is_own = self._local.is_own, True
        try:
            with nullcontext() if self._around is None else self._around():
                if self._around is None:
                    self._check_threads()
                try:
                    yield
                finally:
                    self._discard()
        finally:
            self._local.is_own = is_own

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """
        Open a transaction in the calling thread's session, or a savepoint in the one that its `begin()` has opened.

        The end of the block commits what is in the session. Any exception rolls it back. Raises TransactionLost if the
        block raised nothing and is rolled back all the same.
        """
        with ExitStack() as stack:
            if self._around is not None and self._find() is None:
                stack.enter_context(self.scope())
            session = self.current()
            if self._is_begun(session):
                block = stack.enter_context(session.begin_nested())
            else:
                block = stack.enter_context(self._transaction(session))
            yield session
            self.commit_hooks(session).check_not_rolled_back(with_outer_blocks(block))

    def atomic(self, message: Any, call_next: CallNext, /) -> Any:
        """
        Give the handler of a message a transaction in the calling thread's session.

        Inside of a transaction that `begin` has opened a command is a savepoint. Queries, and events that are handled
        inline, join the transaction of the session, and its owner commits it.
        """
        if not isinstance(message, Command) and self._joins(message):
            return call_next(message)
        with self.begin():
            return call_next(message)

    def commit_hooks(self, session: Session) -> CommitHooks:
        """Return the after-commit hooks of a session."""
        return CommitHooks.of(session)

    def begun_block(self) -> SessionTransaction | None:
        """Return the transaction that `begin` has opened in the calling thread's session, even if it has ended."""
        session = self._find(make=False)
        return None if session is None else session.info.get(_BLOCK, (None,))[0]

    def reset_in_child(self) -> None:
        """Forget which threads are the library's own: the child has none of them."""
        self._local = _ScopeOfThread()

    def _find(self, *, make: bool = True) -> Session | None:
        """Return the calling thread's session; if it has none, make it if its owner can."""
        try:
            session = self._session()
            if isinstance(session, scoped_session):
                session = session() if make or session.registry.has() else None
        except RuntimeError:
            return None
        return cast("Session | None", session)

    def _is_begun(self, session: Session) -> bool:
        """Tell whether code has begun the open transaction, and will end it: it did not begin by itself."""
        block, thread = session.info.get(_BLOCK, (None, None))
        if thread not in {None, threading.get_ident()}:
            raise ConfigurationError(
                "two threads use one session at the same time: give each handler's call its own session, with "
                "bootstrap(..., around=app.app_context) for Flask-SQLAlchemy, or a scoped_session without scopefunc"
            )
        root = session.get_transaction()
        if root is None:
            return False
        return root is block or root.origin is not SessionTransactionOrigin.AUTOBEGIN or session.in_nested_transaction()

    def _joins(self, message: Any) -> bool:
        session = self._find(make=isinstance(message, Query))
        if session is None:
            return False
        if self._local.is_own:
            return self._is_begun(session)
        return isinstance(message, Query) or session.in_transaction()

    @contextmanager
    def _transaction(self, session: Session) -> Iterator[SessionTransaction]:
        # If the code around this has used the session, it may go on to use its objects.
        is_fresh = not session.in_transaction() and not session.identity_map
        block = session.get_transaction() or session.begin()
        session.info[_BLOCK] = block, threading.get_ident()
        self.commit_hooks(session)
        try:
            yield block
            session.commit()
        except BaseException:
            session.rollback()
            raise
        finally:
            del session.info[_BLOCK]
            if self._local.is_own and is_fresh:
                self._discard()

    def _discard(self) -> None:
        """Close the session of a thread of the library: the next call gets a new one."""
        session = self._session()
        if isinstance(session, scoped_session):
            session.remove()
        elif session is not None and _BLOCK not in session.info:
            session.close()

    def _check_threads(self) -> None:
        """Raise ConfigurationError if threads would share a session: its scope is not the thread."""
        try:
            session = self._session()
        except RuntimeError:
            session = None
            is_shared = True
        else:
            is_shared = isinstance(session, scoped_session) and not isinstance(session.registry, ThreadLocalRegistry)
        if is_shared:
            raise ConfigurationError(_SHARED)


_SHARED = (
    "the scope of this session is not the thread, so threads of the pool would use the session of the code that has "
    "sent the command: name what gives each call a session of its own, around=app.app_context for Flask-SQLAlchemy"
)


class _ScopeOfThread(threading.local):
    #: Whether the thread is the library's, so that nothing else ends its sessions.
    is_own: bool = False
