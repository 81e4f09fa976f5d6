"""What the contract of the inbox asks for, and how it looks at what comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

import attrs
import pytest

from cqrs_sync.inbox import Inbox
from cqrs_sync.testing.threads import BOUND
from cqrs_sync.testing.writing import WritingFixtures

#: Opens a transaction on the inbox's database in the calling thread, inside one a savepoint.
Atomic: TypeAlias = Callable[[], AbstractContextManager[object]]


@attrs.frozen
class InboxFeatures:
    """What an inbox can do."""

    #: Several transactions may write at a time; not in SQLite, where all wait for all.
    has_concurrent_writers: bool = True
    #: A block inside a block may fail alone.
    has_savepoints: bool = True
    #: It opens the transaction that a handler would use.
    opens: bool = True
    #: What was done is known to other processes.
    is_shared: bool = True


class InboxFixtures(WritingFixtures):
    """What a subclass may give beside `inbox` and `atomic`."""

    features = InboxFeatures()


class Rollback(Exception):
    """Raised to roll back."""


@contextmanager
def rolled_back(atomic: Atomic) -> Iterator[None]:
    """Open a transaction, or a savepoint, and roll it back."""
    with pytest.raises(Rollback), atomic():  # noqa: PT012 -- the block under test is the caller's
        yield
        raise Rollback


def is_first(inbox: Inbox, atomic: Atomic, key: str, handler: str = "") -> bool:
    """Do it in a transaction that commits, and tell whether it was the first time."""
    with atomic(), inbox.once(key, handler) as receipt:
        return receipt.first


def is_first_elsewhere(inbox: Inbox, atomic: Atomic, key: str, handler: str = "") -> bool:
    """Do the same in another thread."""
    answers: list[bool] = []

    def run() -> None:
        answers.append(is_first(inbox, atomic, key, handler))
        inbox.release_connection()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(BOUND)
    assert answers, "the other thread has no answer"
    return answers[0]


class Holder:
    """Another thread that is first, and stays in its transaction until it is told how to end it."""

    def __init__(self, inbox: Inbox, atomic: Atomic, key: str, result: bytes | None = None) -> None:
        self.ended = threading.Event()
        self._has_it, self._may_end = threading.Event(), threading.Event()
        self._commits = True
        self._thread = threading.Thread(target=self._run, args=(inbox, atomic, key, result), daemon=True)
        self._thread.start()
        assert self._has_it.wait(BOUND)

    def end(self, *, commits: bool) -> None:
        """Commit, or roll back, and return when that is done."""
        self._commits = commits
        self._may_end.set()
        self._thread.join(BOUND)
        assert not self._thread.is_alive()

    def _run(self, inbox: Inbox, atomic: Atomic, key: str, result: bytes | None) -> None:
        try:
            with atomic(), inbox.once(key) as receipt:
                assert receipt.first
                if result is not None:
                    receipt.keep(result)
                self._has_it.set()
                self._may_end.wait(BOUND)
                # Before the end, and not after: whoever waits may see the end before this thread goes on.
                self.ended.set()
                if not self._commits:
                    raise Rollback  # noqa: TRY301 -- it ends the transaction
        except Rollback:
            pass
        finally:
            inbox.release_connection()
