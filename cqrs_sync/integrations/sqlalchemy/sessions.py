"""
Sessions with transactions: one for each handler's call, or those of the application.

Handlers use a session that has a transaction. `Sessions` makes it when it is first asked for; `ExternalSessions` takes
it from the application, for instance from Flask-SQLAlchemy. Either way a session takes a connection with its first
statement, so a handler that does not use the database takes none.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, TypeAlias, cast

from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session, SessionTransaction, SessionTransactionOrigin, scoped_session, sessionmaker
from sqlalchemy.util import ThreadLocalRegistry

from cqrs_sync.errors import ConfigurationError, NotInTransaction
from cqrs_sync.integrations.sqlalchemy.commit_hooks import (
    CommitHooks,
    listen_to_commits,
    note_half_lost_transactions,
    with_outer_blocks,
)
from cqrs_sync.lifecycle import reset_in_child
from cqrs_sync.messages import Command, Query
from cqrs_sync.middleware import CallNext

#: Returns the session of the calling thread, None if it has none.
CurrentSession: TypeAlias = "Callable[[], Session | scoped_session[Any] | None]"

#: In `Session.info`: the transaction that a handler's call has begun, and its thread.
_BLOCK = "cqrs_sync.block"


class SessionTransactions(ABC):
    """
    The transactions of sessions: what `Sessions` and `ExternalSessions` have in common.

    - `atomic` is a middleware: it gives a handler a session with a transaction.
    - `current` is for the container: `container.register(Session, factory=sessions.current)`.
    - `active` and `on_commit` make it the `transactions` of a mediator; an outbox or inbox brings them along.
    """

    #: The engine of the database that handlers write to, None if it is not known.
    engine: Engine | None
    #: Choose that engine among those of a session that has several, as `Session.connection` takes them.
    bind_arguments: dict[str, Any]

    def __init__(self, engine: Engine | None, bind_arguments: Mapping[str, Any] | None) -> None:
        self.engine = engine
        self.bind_arguments = dict(bind_arguments or {})
        self._kept_for_parent: list[object] = []
        listen_to_commits()
        if engine is not None:
            note_half_lost_transactions(engine)
        reset_in_child(self)

    @abstractmethod
    def current(self) -> Session:
        """Return the session of the calling thread. Raises ConfigurationError if there is none."""

    @abstractmethod
    def open_session(self) -> Session | None:
        """Return the calling thread's session if it has a transaction open."""

    @abstractmethod
    def begin(self) -> AbstractContextManager[Session]:
        """
        Open a transaction, or a savepoint in the open one, and commit it at the end. Any exception rolls it back.

        Raises TransactionLost if the block raised nothing and is rolled back all the same.
        """

    @abstractmethod
    def atomic(self, message: Any, call_next: CallNext, /) -> Any:
        """Give the handler of a message a transaction: a savepoint if a command is sent inside another one."""

    @abstractmethod
    def commit_hooks(self, session: Session) -> CommitHooks:
        """Return the after-commit hooks of a session."""

    @abstractmethod
    def reset_in_child(self) -> None:
        """Leave sessions and connections to the parent process, which owns them."""

    @abstractmethod
    def begun_block(self) -> SessionTransaction | None:
        """Return the transaction that a handler's call has begun in this thread, even if it has ended."""

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

    def check_not_committed(self) -> None:
        """Raise NotInTransaction if the code in this thread has committed the transaction of its handler itself."""
        block = self.begun_block()
        if block is not None and self.commit_hooks(block.session).has_committed(block):
            raise NotInTransaction(
                "the transaction has been committed before the handler's end, by `session.commit()`: events that are "
                "raised now could be lost. Leave the commit to the library, which commits when the handler returns"
            )


class Sessions(SessionTransactions):
    """
    Sessions that live as long as a transaction, one per thread at a time.

    `maker` is an engine, a `sessionmaker`, or any function that returns a new session. If the engine cannot be seen in
    it, `engine` names it, and `bind_arguments` choose it among several: `{"mapper": Order}`. Safe from any thread; a
    forked child makes connections of its own.
    """

    def __init__(
        self,
        maker: Engine | sessionmaker[Any] | Callable[[], Session],
        /,
        *,
        engine: Engine | None = None,
        bind_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self._maker: Callable[[], Session] = _maker_of(maker)
        self._local = _TransactionOfThread()
        bind = self._maker.kw.get("bind") if isinstance(self._maker, sessionmaker) else None
        super().__init__(engine or (bind if isinstance(bind, Engine) else None), bind_arguments)

    def current(self) -> Session:
        """Return the session of the calling thread. Raises ConfigurationError if none is open."""
        transaction = self._local.transaction
        if transaction is None:
            raise ConfigurationError(
                "no session is open in this thread: handlers get one from the middleware `sessions.atomic`, which "
                "cqrs_sync.integrations.sqlalchemy.bootstrap adds for all of them; other code opens one with "
                "sessions.begin()"
            )
        return transaction.session()

    def open_session(self) -> Session | None:
        """Return the calling thread's session if it has a transaction open."""
        transaction = self._local.transaction
        if transaction is None:
            return None
        session = transaction.session()
        return session if session.in_transaction() else None

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """
        Open a session with a transaction, or a savepoint in the open one. Any exception rolls it back.

        Raises TransactionLost if the block raised nothing and is rolled back all the same.
        """
        outer = self._local.transaction
        if outer is None:
            with self._transaction() as transaction:
                yield transaction.session()
            return
        session = outer.session()
        with session.begin_nested() as block:
            yield session
            self.commit_hooks(session).check_not_rolled_back(with_outer_blocks(block))

    def atomic(self, message: Any, call_next: CallNext, /) -> Any:
        """
        Give the handler of a message a session with a transaction. The session is made when it is first used.

        Inside of an open transaction a command is a savepoint; queries and events join it.
        """
        if self._local.transaction is None:
            with self._transaction():
                return call_next(message)
        if isinstance(message, Command):
            with self.begin():
                return call_next(message)
        return call_next(message)

    def commit_hooks(self, session: Session) -> CommitHooks:
        """Return the after-commit hooks of a session; they run when the session has been closed."""
        return CommitHooks.of(session, deferred=True)

    def begun_block(self) -> SessionTransaction | None:
        """Return the transaction of this thread, None if nothing has used it."""
        return None if self._local.transaction is None else self._local.transaction.block

    def reset_in_child(self) -> None:
        """Leave sessions and connections to the parent process, which owns them."""
        # A reference is kept: the destructor would talk to the database on the parent's connection.
        self._kept_for_parent.append(self._local.transaction)
        self._local = _TransactionOfThread()
        if self.engine is not None:
            self._kept_for_parent.append(self.engine.pool)
            self.engine.dispose(close=False)

    @contextmanager
    def _transaction(self) -> Iterator[_LazyTransaction]:
        transaction = self._local.transaction = _LazyTransaction(self._maker)
        try:
            with transaction.opened:
                yield transaction
                transaction.check_not_rolled_back()
        finally:
            self._local.transaction = None
            transaction.run_due()


class _LazyTransaction:
    """A transaction of one thread. Its session is made when it is first asked for."""

    def __init__(self, make: Callable[[], Session]) -> None:
        self._make = make
        self._session: Session | None = None
        self._hooks: CommitHooks | None = None
        #: Ends the transaction and closes the session.
        self.opened = ExitStack()
        self.block: SessionTransaction | None = None

    def session(self) -> Session:
        """Return the session. Its transaction has begun, and takes a connection with its first statement."""
        if self._session is None:
            session = self._make()
            self._hooks = CommitHooks.of(session, deferred=True)
            self.opened.enter_context(session)
            self.block = self.opened.enter_context(session.begin())
            self._session = session
        return self._session

    def check_not_rolled_back(self) -> None:
        """Raise TransactionLost if the transaction would not be committed."""
        if self._hooks is not None:
            self._hooks.check_not_rolled_back(with_outer_blocks(self.block))

    def run_due(self) -> None:
        """Call what has waited for the commit."""
        if self._hooks is not None:
            self._hooks.run_due()


class _TransactionOfThread(threading.local):
    transaction: _LazyTransaction | None = None


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


def _maker_of(maker: Any) -> Callable[[], Session]:
    if isinstance(maker, Engine):
        return sessionmaker(maker)
    if isinstance(maker, (Session, scoped_session)) or not callable(maker):
        raise ConfigurationError(
            f"Sessions takes an engine, a sessionmaker or a function that makes a session, not "
            f"{type(maker).__qualname__}; for sessions that the application opens and closes, such as a "
            "scoped_session, use ExternalSessions(session, engine=engine)"
        )
    return cast("Callable[[], Session]", maker)


def begin_immediate(engine: Engine) -> Engine:
    """
    Make each transaction on a SQLite engine the only one that writes, from its start, and return the engine.

    SQLite refuses a write in a transaction that has read before ("database is locked"), if another one wrote meanwhile,
    whatever the timeout. A transaction that starts with BEGIN IMMEDIATE waits for its turn instead, at most as long as
    `connect_args={"timeout": seconds}` says. Savepoints need this, too: the driver starts no transaction for them.
    """
    if engine.dialect.name != "sqlite":
        raise ConfigurationError(f"begin_immediate is for SQLite, not for {engine.dialect.name}")
    if event.contains(engine, "begin", _begin):
        return engine
    event.listen(engine, "connect", _disable_driver_transactions)
    event.listen(engine, "begin", _begin)
    return engine


def _disable_driver_transactions(connection: Any, _: object) -> None:
    connection.isolation_level = None


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
