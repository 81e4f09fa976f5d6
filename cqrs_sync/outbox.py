"""
The outbox socket: messages are kept in the caller's transaction and delivered after its commit.

A *message* is final bytes. A *delivery* is what is still to be done with one: give it to
the broker, or run one durable handler with it. Deliveries are claimed for a while,
and settled; who claims too late or settles too late changes nothing. Each promise stands
on the method that gives it, and `cqrs_sync.testing.contracts.outbox` holds a store to it.

The pattern: Chris Richardson, *Transactional outbox*, microservices.io.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Collection, Sequence
from typing import Protocol

import attrs

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.errors import LONGEST_ERROR, EventTooLarge, describe_error, fingerprint, printable
from cqrs_sync.transactions import Transactions

#: Characters that topics, keys, ids, types and content types may have.
LONGEST = 255


@attrs.frozen
class Entry:
    """A message to be kept, and where it is to be delivered."""

    message: OutgoingMessage
    #: It is for the broker.
    publish: bool = False
    #: It is for these durable handlers, by their stable names.
    handlers: tuple[str, ...] = ()


@attrs.frozen
class Claimed:
    """A delivery that was claimed: a message, and where it is to go."""

    #: Grows with each delivery that is written: deliveries of a key are claimed in this order.
    number: int
    message: OutgoingMessage
    #: The stable name of the durable handler, None for the broker.
    handler: str | None
    #: How often it was claimed, this time included.
    attempts: int
    #: What the claim is known by.
    token: str = attrs.field(repr=False)

    @property
    def target(self) -> str:
        """The topic, or the handler."""
        return self.handler or self.message.topic


class Verdict(enum.Enum):
    """What becomes of a claimed delivery."""

    #: It is delivered: nothing is left to be done.
    DONE = "done"
    #: It is to be claimed again.
    AGAIN = "again"
    #: It cannot be delivered; it is kept for somebody to look at.
    DEAD = "dead"


@attrs.frozen
class Outcome:
    """What became of a claimed delivery."""

    claimed: Claimed
    verdict: Verdict
    #: AGAIN: seconds until it may be claimed.
    after: float = 0.0
    #: AGAIN: whether this attempt counts.
    counted: bool = True
    #: DEAD: whether what comes after it with its key waits until somebody has dealt with it.
    blocks: bool = True
    #: Why; what deliveries that failed alike have in common.
    reason: str = ""
    error: str = ""

    @classmethod
    def failed(
        cls,
        claimed: Claimed,
        error: BaseException | str,
        *,
        after: float | None,
        counted: bool = True,
        blocks: bool = True,
    ) -> Outcome:
        """Make the outcome of a failed attempt: to be claimed again `after` seconds, dead where that is None."""
        words = error if isinstance(error, str) else describe_error(error)
        return cls(
            claimed,
            Verdict.DEAD if after is None else Verdict.AGAIN,
            after=after or 0.0,
            counted=counted,
            blocks=blocks,
            reason=fingerprint(words),
            error=printable(words)[:LONGEST_ERROR],
        )


@attrs.frozen
class Selection:
    """Which dead deliveries are meant: those that fit everything that is given."""

    numbers: tuple[int, ...] | None = None
    reason: str | None = None
    target: str | None = None


@attrs.frozen
class DeadDelivery:
    """A delivery that was given up."""

    number: int
    message: OutgoingMessage
    handler: str | None
    attempts: int
    reason: str
    error: str
    #: Seconds since its message was written.
    age: float
    #: What comes after it with its key waits for it.
    blocks: bool

    @property
    def target(self) -> str:
        """The topic, or the handler."""
        return self.handler or self.message.topic


@attrs.frozen
class TargetBacklog:
    """What waits for one topic or one durable handler."""

    kind: str
    target: str
    #: Nobody has tried them yet.
    pending: int
    #: They are claimed, or wait for their next attempt.
    tried: int
    dead: int


@attrs.frozen
class Backlog:
    """What is not delivered yet."""

    targets: tuple[TargetBacklog, ...]
    #: How many deliveries are dead, for each reason.
    dead_by_reason: tuple[tuple[str, int], ...]
    #: Seconds since the oldest message was written that is neither delivered nor dead: the lag.
    oldest: float | None

    @property
    def waiting(self) -> int:
        """Deliveries that are neither delivered nor dead."""
        return sum(target.pending + target.tried for target in self.targets)

    @property
    def dead(self) -> int:
        """Deliveries that were given up."""
        return sum(target.dead for target in self.targets)


class Listener(Protocol):
    """Hears of commits in other processes."""

    def wait(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for a hint that there is something to claim; False where none came."""

    def close(self) -> None:
        """Let go of its connection."""


class Outbox(Protocol):
    """
    Messages that are kept with what they tell of, in the same database and transaction.

    Safe from any thread and in a forked child. All of it raises OutboxUnavailable where
    the database cannot be reached, OutboxNotInstalled where its tables are missing.
    """

    @property
    def transactions(self) -> Transactions:
        """The transactions that `add` joins."""

    def add(self, entries: Sequence[Entry], /, *, alone: bool = False) -> None:
        """
        Keep messages and their deliveries in the transaction of the calling thread; they are rolled back with it.

        Raises NotInTransaction where none is open, unless the outbox was told to take them all
        the same, or `alone` is set: then it has a transaction of its own. Raises
        EventTooLarge. What the database itself raises in the caller's transaction is let through.
        """

    def claim(
        self, limit: int, lease: float, *, handlers: Collection[str] | None = None, besides: Collection[str] = ()
    ) -> Sequence[Claimed]:
        """
        Claim deliveries for `lease` seconds, oldest first: for the broker, or for these durable handlers.

        Those for the topics or handlers in `besides` are left alone.

        A delivery is claimed by one caller at a time, and its attempt is counted before
        this returns. One with a key is claimed only if all earlier ones of its key and target are
        done or claimed here; for handlers, only if they are done. Blocked keys hold up no others.
        What commits late is claimed late, never skipped. Time is that of the database.
        """

    def renew(self, tokens: Collection[str], lease: float) -> int:
        """Keep what was claimed for `lease` more seconds; returns how many deliveries these tokens still hold."""

    def settle(self, outcomes: Sequence[Outcome], /) -> int:
        """Write down what became of deliveries; returns for how many the claim still held, others are left alone."""

    def next_due(self, handlers: Collection[str], /) -> float | None:
        """Return the seconds until something may be claimed, 0 where it may be now, None where nothing waits."""

    def listener(self) -> Listener | None:
        """Open something that hears of commits in other processes; None where the database has no such thing."""

    def release_connection(self) -> None:
        """Give up the connection of the calling thread, until it needs one again."""

    # For those who operate it

    def backlog(self) -> Backlog:
        """Count what is not delivered yet."""

    def dead(self, selection: Selection, /, *, limit: int = 100) -> Sequence[DeadDelivery]:
        """Return dead deliveries, oldest first."""

    def replay(self, selection: Selection, /, *, limit: int = 1000) -> int:
        """Let dead deliveries be claimed again, oldest first, with their attempts forgotten; returns how many."""

    def discard(self, selection: Selection, /, *, limit: int = 1000) -> int:
        """Delete dead deliveries, oldest first: what waited behind them goes on; returns how many."""

    def purge(self, older_than: float, /, *, limit: int = 1000) -> int:
        """Delete messages that were written more than `older_than` seconds ago and are delivered; returns how many."""


def lane_of(target: str, key: str | None) -> int | None:
    """Return what the deliveries that keep order among them have in common; None where there is no order."""
    if key is None:
        return None
    digest = hashlib.blake2b(f"{target}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def check_size(message: OutgoingMessage, max_bytes: int) -> None:
    """Raise EventTooLarge for what no database row should hold."""
    if len(message.body) > max_bytes:
        raise EventTooLarge(
            f"{message.type} has {len(message.body)} bytes, {max_bytes} are allowed: "
            "put what is large elsewhere and send where it is, or give the outbox a larger max_bytes"
        )
    for what in ("id", "topic", "type", "key", "content_type"):
        text = getattr(message, what) or ""
        if len(text) > LONGEST or "\0" in text:
            raise EventTooLarge(f"the {what} of {message.type:.50} has more than {LONGEST} characters, or a NUL in it")
