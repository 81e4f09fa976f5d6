"""What waits for the commit of a session."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from sqlalchemy import Connection, event
from sqlalchemy.orm import Session, SessionTransaction

from cqrs_sync.errors import OutboxUnavailable
from cqrs_sync.integrations.sqlalchemy.losses import lost

logger = logging.getLogger(__name__)

Callback: TypeAlias = Callable[[], object]

_KEY = "cqrs_sync.commits"


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
        self._committed: list[SessionTransaction] = []

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
        self._waiting.append((tuple(_open_blocks(session)), callback))

    def check(self, session: Session) -> None:
        """Refuse to commit a part of a transaction, where the database has rolled back the rest."""
        reason = next((lost[each] for each in _connections(session) if each in lost), None) if lost else None
        if reason is not None:
            raise OutboxUnavailable(
                f"the database has rolled back what came before an error in this transaction, {reason}: "
                "let the error through, and do it all again"
            )

    def note(self, session: Session) -> None:
        """Note a commit, that of a savepoint as well."""
        self._committed.extend(list(_open_blocks(session))[:1])

    def end(self, session: Session, block: SessionTransaction) -> None:
        """End a block: drop what waited in it, or call what waited for it."""
        if block.parent is not None and not block.nested:
            # A flush makes these; they are no blocks of anybody's.
            return
        if not any(each is block for each in self._committed):
            self._waiting = [
                (blocks, callback) for blocks, callback in self._waiting if all(each is not block for each in blocks)
            ]
        if block.parent is None:
            self.due.extend(callback for _, callback in self._waiting)
            self._waiting.clear()
            self._committed.clear()
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


def _connections(session: Session) -> Iterator[Connection]:
    """Yield the connections of the transaction that is open."""
    for block in _open_blocks(session):
        # What it is bound to does not tell: it may have several.
        yield from {each[0] for each in block._connections.values()}  # noqa: SLF001 -- there is no other way to ask


def _open_blocks(session: Session) -> Iterator[SessionTransaction]:
    """Yield the innermost savepoint, and what is around it."""
    block = session.get_nested_transaction() or session.get_transaction()
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
