"""
What waits for the commit of a session, and checks that what a session commits is what was done in it.

Two databases give up a transaction behind the application's back:

- PostgreSQL aborts it for any error, and its COMMIT is then a silent ROLLBACK. An application that catches the error
  would commit nothing. The driver knows.
- MySQL rolls back everything before a deadlock (1213), and what follows is in a new transaction. An application that
  catches the error would commit one half. After a lock wait timeout (1205) the server may have done the same. The
  driver does not tell, so an event listener notes these errors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction

from cqrs_sync.errors import OutboxUnavailable
from cqrs_sync.sql.database import TransactionStatus, aborted_error, rolled_back_error, transaction_status

logger = logging.getLogger(__name__)

Callback: TypeAlias = Callable[[], object]

_KEY = "cqrs_sync.commit_hooks"
_SAVEPOINT = "with session.begin_nested():"
_BY_APPLICATION = "by `session.rollback()` or `session.close()`, or by a failed flush whose error was caught"
_DEADLOCK, _LOCK_WAIT = 1213, 1205

#: Connections whose open transaction has lost its first part, and the error that lost it.
_half_lost: WeakKeyDictionary[Connection, str] = WeakKeyDictionary()


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
