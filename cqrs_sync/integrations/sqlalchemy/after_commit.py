"""What waits for the commit of a session."""

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
from cqrs_sync.sql.drivers import State, aborted, ended, state_of

logger = logging.getLogger(__name__)

Callback: TypeAlias = Callable[[], object]

_KEY = "cqrs_sync.commits"
_SAVEPOINT = "with session.begin_nested():"
_BY_HAND = "by `session.rollback()` or `session.close()`, or by a flush that failed and whose error was caught"


class Commits:
    """
    Callbacks that wait for the commit of a session's transaction, whatever savepoints it has.

    SQLAlchemy tells of the commit of a savepoint as of any other, and of a rollback only
    where it succeeds. So each callback knows the blocks that it was given in, and those
    that end without a commit take theirs along.
    """

    def __init__(self, *, is_patient: bool) -> None:
        #: Those whose commit has come, where somebody else is to call them.
        self.due: list[Callback] = []
        self._is_patient = is_patient
        self._waiting: list[tuple[Sequence[SessionTransaction], Callback]] = []
        self._committed: WeakSet[SessionTransaction] = WeakSet()

    @classmethod
    def of(cls, session: Session, *, is_patient: bool = False) -> Commits:
        """
        Return those of a session.

        A patient one leaves it to whoever opened the session to call what is due.
        """
        found: Commits | None = session.info.get(_KEY)
        if found is None:
            found = session.info[_KEY] = cls(is_patient=is_patient)
            event.listen(session, "before_commit", found.check)
            event.listen(session, "after_commit", found.note)
            event.listen(session, "after_transaction_end", found.end)
        return found

    def wait(self, session: Session, callback: Callback) -> None:
        """Let it wait for the transaction that is open."""
        self._waiting.append((tuple(open_blocks(session)), callback))

    def check(self, session: Session) -> None:
        """Refuse to commit a transaction of which the database has rolled back a part, or would all of it."""
        for connection in _connections(session):
            if connection in lost:
                raise OutboxUnavailable(
                    f"the database has rolled back what came before an error in this transaction, {lost[connection]}: "
                    "let the error through, and do it all again"
                )
            check_connection(connection)

    def check_kept(self, blocks: Iterable[SessionTransaction]) -> None:
        """
        Refuse to call done what was done in blocks of which one was rolled back.

        At the end of its `with` block SQLAlchemy says nothing of that.
        """
        if not all(each.is_active or each in self._committed for each in blocks):
            raise ended(_BY_HAND, _SAVEPOINT)

    def note(self, session: Session) -> None:
        """Note a commit, that of a savepoint as well."""
        self._committed.update(list(open_blocks(session))[:1])

    def end(self, session: Session, block: SessionTransaction) -> None:
        """End a block: drop what waited in it, or call what waited for it."""
        if block.parent is not None and not block.nested:
            # A flush makes these; they are no blocks of anybody's.
            return
        if block not in self._committed:
            self._waiting = [
                (blocks, callback) for blocks, callback in self._waiting if all(each is not block for each in blocks)
            ]
        if block.parent is None:
            self.due.extend(callback for _, callback in self._waiting)
            self._waiting.clear()
            if not self._is_patient:
                with _between_transactions(session):
                    self.call_due()

    def call_due(self) -> None:
        """Call what is due, in the order it came; one that raises holds up no other."""
        due, self.due = self.due, []
        for callback in due:
            try:
                callback()
            except Exception:
                logger.exception("%r failed after the commit", callback)


def check_connection(connection: Connection) -> None:
    """Refuse to go on in a transaction that the database would not commit."""
    if is_aborted(connection):
        raise aborted(_SAVEPOINT)


def _connections(session: Session) -> Iterator[Connection]:
    """Yield the connections of the transaction that is open."""
    for block in open_blocks(session):
        # What it is bound to does not tell: it may have several.
        yield from {each[0] for each in block._connections.values()}  # noqa: SLF001 -- there is no other way to ask


def open_blocks(session: Session) -> Iterator[SessionTransaction]:
    """Yield the innermost savepoint, and what is around it."""
    return around(session.get_nested_transaction() or session.get_transaction())


def around(block: SessionTransaction | None) -> Iterator[SessionTransaction]:
    """Yield a block, and what is around it."""
    while block is not None:
        yield block
        block = block.parent


@contextmanager
def _between_transactions(session: Session) -> Iterator[None]:
    """
    Let the session begin another transaction, though the `with` block of the last one ends later.

    Otherwise it would refuse to: it cannot know that nothing of that block is left to be done.
    """
    block = getattr(session, "_trans_context_manager", None)
    if block is None:
        yield
        return
    session._trans_context_manager = None  # noqa: SLF001 -- there is no other way to tell it
    try:
        yield
    finally:
        session._trans_context_manager = block  # noqa: SLF001 -- as above


_DEADLOCK, _LOCK_WAIT = 1213, 1205

#: Why a connection must not commit what is open on it.
lost: WeakKeyDictionary[Connection, str] = WeakKeyDictionary()


def driver_state(connection: Connection) -> State:
    """Return what the driver knows of the transaction on a connection."""
    if connection.closed or connection.invalidated:
        return State.UNKNOWN
    return state_of(connection.connection.driver_connection)


def is_aborted(connection: Connection) -> bool:
    """Tell whether the database would answer a COMMIT with a ROLLBACK."""
    state = driver_state(connection)
    if state is not State.UNKNOWN or connection.dialect.name != "postgresql" or connection.closed:
        return state is State.ABORTED
    try:
        # The one way with a driver that does not tell, such as pg8000.
        connection.exec_driver_sql("SELECT 1")
    except DBAPIError as error:
        return not error.connection_invalidated
    return False


def watch(engine: Engine) -> None:
    """Note the losses of an engine's connections; none where it is no MySQL."""
    if engine.dialect.name in {"mysql", "mariadb"} and not event.contains(engine, "handle_error", _note):
        event.listen(engine, "handle_error", _note)
        event.listen(engine, "rollback", _forget)


def _note(context: ExceptionContext) -> None:
    connection, number = context.connection, _number(context.original_exception)
    if connection is None:
        return
    # In a savepoint the application may go on after a lock it did not get: if all is lost,
    # rolling back to the savepoint fails.
    if number == _DEADLOCK or (number == _LOCK_WAIT and not connection.in_nested_transaction()):
        lost[connection] = f"error {number}"


def _forget(connection: Connection) -> None:
    lost.pop(connection, None)


def _number(error: Any) -> Any:
    return error.args[0] if error.args else None
