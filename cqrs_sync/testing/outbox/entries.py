"""What the contract of the outbox adds, and how it looks at what is claimed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

import attrs
import pytest

from cqrs_sync.outbox import Claimed, Entry, Outbox, Outcome, Verdict
from cqrs_sync.testing.contracts import message
from cqrs_sync.testing.threads import BOUND

#: Opens a transaction on the outbox's database in the calling thread, inside one a savepoint.
Atomic: TypeAlias = Callable[[], AbstractContextManager[object]]

#: Seconds of a lease that no test outlives, of one that is over at once, and of one in which something gets done.
LONG, SHORT, MOMENT = 600.0, 0.03, 1.5


@attrs.frozen
class OutboxFeatures:
    """What an outbox can do."""

    #: Several transactions may write at a time and commit in any order; not in SQLite.
    has_concurrent_writers: bool = True
    #: A block inside a block may fail alone.
    has_savepoints: bool = True
    #: What is kept is seen by other processes.
    is_shared: bool = True
    #: Larger bodies are refused.
    max_bytes: int = 1_048_576
    #: At most this many bytes are claimed at a time.
    max_claimed_bytes: int = 16 * 1024 * 1024


class OutboxFixtures:
    """What a subclass may give beside `outbox` and `atomic`."""

    features = OutboxFeatures()

    @pytest.fixture
    def lenient_outbox(self) -> Outbox | None:
        """Make an outbox on the same database that keeps messages outside of transactions; None where there is none."""
        return None

    @pytest.fixture
    def cut_connections(self) -> Callable[[], object] | None:
        """Have the server close all connections of this process to it; None where there are none."""
        return None


class Rollback(Exception):
    """Raised to roll back."""


@contextmanager
def rolled_back(atomic: Atomic) -> Iterator[None]:
    """Open a transaction, or a savepoint, and roll it back."""
    with pytest.raises(Rollback), atomic():  # noqa: PT012 -- the block under test is the caller's
        yield
        raise Rollback


def published(body: str = "", *, key: str | None = None, topic: str = "orders", handlers: Sequence[str] = ()) -> Entry:
    """Make an entry for the broker, and for these handlers as well."""
    return Entry(message(topic, body.encode(), key=key), publish=True, handlers=tuple(handlers))


def handled(body: str = "", *, key: str | None = None, handlers: Sequence[str] = ("bill",)) -> Entry:
    """Make an entry for these handlers."""
    return Entry(message("", body.encode(), key=key), handlers=tuple(handlers))


def keep(outbox: Outbox, atomic: Atomic, *entries: Entry) -> None:
    """Add these in one transaction."""
    with atomic():
        outbox.add(entries)


def kept(outbox: Outbox, atomic: Atomic, *entries: Entry) -> list[Claimed]:
    """Add these for the broker, and claim them."""
    keep(outbox, atomic, *entries)
    return list(outbox.claim(100, LONG))


def bodies(claimed: Iterable[Claimed]) -> list[str]:
    """Tell what was claimed by the bodies."""
    return [each.message.body.decode() for each in claimed]


def claim(outbox: Outbox, limit: int = 100, *, lease: float = LONG) -> list[str]:
    """Claim for the broker, and tell what."""
    return bodies(outbox.claim(limit, lease))


def done(claimed: Iterable[Claimed]) -> list[Outcome]:
    """Make the outcomes of what went well."""
    return [Outcome(each, Verdict.DONE) for each in claimed]


def delivered(outbox: Outbox, limit: int) -> list[Claimed]:
    """Claim for the broker and settle, so many at a time, until nothing is left."""
    found: list[Claimed] = []
    while claimed := outbox.claim(limit, LONG):
        outbox.settle(done(claimed))
        found.extend(claimed)
    return found


def again(claimed: Claimed, *, after: float = 0.0, counted: bool = True) -> Outcome:
    """Make the outcome of what is to be tried again."""
    return Outcome(claimed, Verdict.AGAIN, after=after, counted=counted, reason="slow", error="TimeoutError: slow")


def dead(claimed: Claimed, *, blocks: bool = True, reason: str = "refused") -> Outcome:
    """Make the outcome of what is given up."""
    return Outcome(claimed, Verdict.DEAD, blocks=blocks, reason=reason, error=f"MessageRejected: {reason}")


@contextmanager
def open_elsewhere(outbox: Outbox, atomic: Atomic, *entries: Entry) -> Iterator[Callable[[], None]]:
    """Add these in a transaction of another thread; what is yielded commits it."""
    added, may_commit = threading.Event(), threading.Event()

    def run() -> None:
        with atomic():
            outbox.add(entries)
            added.set()
            may_commit.wait(BOUND)
        outbox.release_connection()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert added.wait(BOUND)

    def commit() -> None:
        may_commit.set()
        thread.join(BOUND)
        assert not thread.is_alive()

    try:
        yield commit
    finally:
        commit()
