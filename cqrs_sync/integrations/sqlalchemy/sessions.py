"""
Sessions with transactions, one for each handler's call, and what waits for their commit.

A session is made when it is first asked for, and takes a connection with its first statement, so a handler that does
not use the database takes none.

`CommitHooks` check that what a session commits is what was done in it. Two databases give up a transaction behind the
application's back:

- PostgreSQL aborts it for any error, and its COMMIT is then a silent ROLLBACK. An application that catches the error
  would commit nothing. The driver knows.
- MySQL rolls back everything before a deadlock (1213), and what follows is in a new transaction. An application that
  catches the error would commit one half. After a lock wait timeout (1205) the server may have done the same. The
  driver does not tell, so an event listener notes these errors.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeAlias, cast
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction, scoped_session, sessionmaker

from cqrs_sync.errors import ConfigurationError, NotInTransaction, OutboxUnavailable
from cqrs_sync.lifecycle import reset_in_child
from cqrs_sync.messages import Command
from cqrs_sync.middleware import CallNext
from cqrs_sync.sql.database import TransactionStatus, aborted_error, rolled_back_error, transaction_status

logger: logging.Logger = logging.getLogger(__name__)

Callback: TypeAlias = Callable[[], object]

_KEY = "cqrs_sync.commit_hooks"
_SAVEPOINT = "with session.begin_nested():"
_BY_APPLICATION = "by `session.rollback()` or `session.close()`, or by a failed flush whose error was caught"
_DEADLOCK, _LOCK_WAIT = 1213, 1205

#: Connections whose open transaction has lost its first part, and the error that lost it.
_half_lost: WeakKeyDictionary[Connection, str] = WeakKeyDictionary()


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


class CommitHooks:
    """
    Callbacks that wait for the commit of a session's transaction, with any number of savepoints in it.

    SQLAlchemy reports the commit of a savepoint like any other, and a rollback only if it succeeds. So each callback
    knows the blocks (`SessionTransaction`) it was registered in, and a block that ends without a commit drops its
    callbacks.
    """

    def __init__(self, *, deferred: bool) -> None:
        #: Callbacks whose commit has happened; the owner of a deferred session calls `run_due`.
        self._due: list[Callback] = []
        self._deferred = deferred
        self._waiting: list[tuple[Sequence[SessionTransaction], Callback]] = []
        self._committed: WeakSet[SessionTransaction] = WeakSet()

    @classmethod
    def of(cls, session: Session, *, deferred: bool = False) -> CommitHooks:
        """Return the hooks of a session. If they are `deferred`, the code that opened it calls `run_due`."""
        hooks: CommitHooks | None = session.info.get(_KEY)
        if hooks is None:
            hooks = session.info[_KEY] = cls(deferred=deferred)
        return hooks

    def add(self, session: Session, callback: Callback) -> None:
        """Let a callback wait for the commit of the open transaction."""
        self._waiting.append((tuple(open_blocks(session)), callback))

    def check_not_rolled_back(self, blocks: Iterable[SessionTransaction]) -> None:
        """
        Raise TransactionLost if one of these blocks was rolled back.

        SQLAlchemy says nothing of that at the end of its `with` block.
        """
        if not all(each.is_active or each in self._committed for each in blocks):
            raise rolled_back_error(_BY_APPLICATION, _SAVEPOINT)

    def has_committed(self, block: SessionTransaction) -> bool:
        """Tell whether this block has been committed."""
        return block in self._committed

    def before_commit(self, session: Session) -> None:
        """Refuse to commit a transaction that the database has rolled back, in part or as a whole."""
        for connection in _connections(session):
            if connection in _half_lost:
                raise OutboxUnavailable(
                    f"the database has rolled back the part of this transaction before an error, "
                    f"{_half_lost[connection]}: do not catch that error, and run the whole transaction again"
                )
            check_not_aborted(connection)

    def after_commit(self, session: Session) -> None:
        """Note the commit of the innermost block, which may be a savepoint."""
        self._committed.update(list(open_blocks(session))[:1])

    def after_block_end(self, session: Session, block: SessionTransaction) -> None:
        """Drop the callbacks of a block that was rolled back; run all when the outermost block has committed."""
        if block.parent is not None and not block.nested:
            # A flush makes such blocks for itself.
            return
        if block not in self._committed:
            self._waiting = [
                (blocks, callback) for blocks, callback in self._waiting if all(each is not block for each in blocks)
            ]
        if block.parent is None:
            self._due.extend(callback for _, callback in self._waiting)
            self._waiting.clear()
            if not self._deferred:
                with _allow_new_transaction(session):
                    self.run_due()

    def run_due(self) -> None:
        """Call what is due, in the order it was added. A callback that raises is logged; the others run."""
        due, self._due = self._due, []
        for callback in due:
            try:
                callback()
            except Exception:
                logger.exception("the after-commit callback %r failed; the commit stands", callback)


def listen_to_commits() -> None:
    """
    Listen to all sessions, once: to listen to each new session would take longer than to make it.

    The listeners come first. One of the application's that raises would keep later ones from being called.
    """
    if not event.contains(Session, "after_commit", _after_commit):
        event.listen(Session, "before_commit", _before_commit, insert=True)
        event.listen(Session, "after_transaction_end", _after_block_end, insert=True)
        event.listen(Session, "after_commit", _after_commit, insert=True)


def _before_commit(session: Session) -> None:
    if (hooks := session.info.get(_KEY)) is not None:
        hooks.before_commit(session)


def _after_commit(session: Session) -> None:
    if (hooks := session.info.get(_KEY)) is not None:
        hooks.after_commit(session)


def _after_block_end(session: Session, block: SessionTransaction) -> None:
    if (hooks := session.info.get(_KEY)) is not None:
        hooks.after_block_end(session, block)


def open_blocks(session: Session) -> Iterator[SessionTransaction]:
    """Yield the innermost open block, then those around it."""
    return with_outer_blocks(session.get_nested_transaction() or session.get_transaction())


def with_outer_blocks(block: SessionTransaction | None) -> Iterator[SessionTransaction]:
    """Yield a block, then those around it."""
    while block is not None:
        yield block
        block = block.parent


def _connections(session: Session) -> Iterator[Connection]:
    """Yield the connections of the open transaction."""
    for block in open_blocks(session):
        # The session's bind does not tell: it may have several.
        yield from {each[0] for each in block._connections.values()}  # noqa: SLF001 -- there is no public way to ask


@contextmanager
def _allow_new_transaction(session: Session) -> Iterator[None]:
    """
    Let callbacks start another transaction on the session before the `with` block of the last one has ended.

    The session would refuse it, since it cannot know that the block has nothing left to do.
    """
    block = getattr(session, "_trans_context_manager", None)
    if block is None:
        yield
        return
    session._trans_context_manager = None  # noqa: SLF001 -- there is no public way to tell it
    try:
        yield
    finally:
        session._trans_context_manager = block  # noqa: SLF001 -- as above


def connection_status(connection: Connection) -> TransactionStatus:
    """Return what the driver knows of the transaction on a connection."""
    if connection.closed or connection.invalidated:
        return TransactionStatus.UNKNOWN
    return transaction_status(connection.connection.driver_connection)


def check_not_aborted(connection: Connection) -> None:
    """Raise TransactionLost if the database would answer a COMMIT with a ROLLBACK."""
    if _is_aborted(connection):
        raise aborted_error(_SAVEPOINT)


def _is_aborted(connection: Connection) -> bool:
    status = connection_status(connection)
    if status is not TransactionStatus.UNKNOWN or connection.dialect.name != "postgresql" or connection.closed:
        return status is TransactionStatus.ABORTED
    try:
        # Some drivers do not tell, such as pg8000. Then only a statement finds out.
        connection.exec_driver_sql("SELECT 1")
    except DBAPIError as error:
        return not error.connection_invalidated
    return False


def note_half_lost_transactions(engine: Engine) -> None:
    """Listen for errors after which MySQL has rolled back a part of a transaction. Other databases need no listener."""
    if engine.dialect.name in {"mysql", "mariadb"} and not event.contains(engine, "handle_error", _note_error):
        event.listen(engine, "handle_error", _note_error)
        event.listen(engine, "rollback", _note_rollback)


def _note_error(context: ExceptionContext) -> None:
    connection, error = context.connection, context.original_exception
    number: Any = error.args[0] if error.args else None
    if connection is None:
        return
    # After a lock wait timeout inside a savepoint the application may continue: if the whole transaction
    # is lost, rolling back to the savepoint fails.
    if number == _DEADLOCK or (number == _LOCK_WAIT and not connection.in_nested_transaction()):
        _half_lost[connection] = f"error {number}"


def _note_rollback(connection: Connection) -> None:
    _half_lost.pop(connection, None)


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
