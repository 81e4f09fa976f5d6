"""
The outbox socket: keeps messages in the caller's transaction, for delivery after its commit.

A *message* is final bytes. A *delivery* is one message for one target: the broker, or one durable handler. A relay
claims deliveries for a while and settles them. To settle after the lease changes nothing. Each promise stands
on the method that gives it, and `cqrs_sync.testing.contracts.outbox` holds a store to it.

The pattern: Chris Richardson, *Transactional outbox*, microservices.io.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from typing import Protocol, TypeVar

import attrs

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.errors import ConfigurationError, EventTooLarge, describe_error, fingerprint
from cqrs_sync.transactions import Transactions

E = TypeVar("E", bound=enum.Enum)

#: How many characters topics, keys, ids, types and content types may have.
LONGEST = 255


@attrs.frozen
class OutboxEntry:
    """A message to keep, and its targets."""

    message: OutgoingMessage
    #: Whether to publish it.
    publish: bool = False
    #: The stable names of the durable handlers to run with it.
    handlers: tuple[str, ...] = ()


@attrs.frozen
class ClaimedDelivery:
    """A claimed delivery: a message and its target."""

    #: Grows with each delivery that is written. Deliveries of a key are claimed in this order.
    number: int
    message: OutgoingMessage
    #: The stable name of the durable handler; None for the broker.
    handler: str | None
    #: How often it was claimed, including this time.
    attempts: int
    #: Identifies the claim.
    token: str = attrs.field(repr=False)

    @property
    def target(self) -> str:
        """The topic, or the handler."""
        return self.handler or self.message.topic


class OnNoTransaction(enum.Enum):
    """What an outbox does with an event that is raised while no transaction is open."""

    #: It raises NotInTransaction: the change and its event could not be committed together.
    RAISE = "raise"
    #: It opens a transaction for the event alone, for code that changes nothing in the database.
    OPEN = "open"


class PublishedBy(enum.Enum):
    """Who publishes the messages of an outbox."""

    #: The relay of this library.
    RELAY = "relay"
    #: Change data capture, such as Debezium, reads them from the table. The relay runs durable handlers only.
    CHANGE_DATA_CAPTURE = "change data capture"


class OutcomeKind(enum.Enum):
    """How a claimed delivery is settled."""

    #: It is delivered.
    DONE = "done"
    #: It is retried: it can be claimed again.
    RETRY = "retry"
    #: It is a dead letter: kept with its reason until an operator replays or discards it.
    DEAD = "dead"


@attrs.frozen
class Outcome:
    """The outcome of a claimed delivery, with which it is settled."""

    claimed: ClaimedDelivery
    kind: OutcomeKind
    #: RETRY: seconds until it can be claimed.
    after: float = 0.0
    #: RETRY: whether this attempt counts.
    counted: bool = True
    #: DEAD: whether later deliveries with its key wait until an operator replays or discards it.
    blocks: bool = True
    #: Why it failed: the same text for all deliveries that failed alike, and the error in full.
    reason: str = ""
    error: str = ""

    @classmethod
    def failed(
        cls,
        claimed: ClaimedDelivery,
        error: BaseException | str,
        *,
        after: float | None,
        counted: bool = True,
        blocks: bool = True,
    ) -> Outcome:
        """Return the outcome of a failed attempt: a retry after `after` seconds, or a dead letter if that is None."""
        return cls(
            claimed,
            OutcomeKind.DEAD if after is None else OutcomeKind.RETRY,
            after=after or 0.0,
            counted=counted,
            blocks=blocks,
            reason=fingerprint(error),
            error=describe_error(error),
        )


@attrs.frozen
class DeadLetterSelection:
    """Selects dead deliveries: those that match all fields that are given."""

    numbers: tuple[int, ...] | None = None
    reason: str | None = None
    target: str | None = None


@attrs.frozen
class DeadLetter:
    """A dead letter of the outbox."""

    number: int
    message: OutgoingMessage
    handler: str | None
    attempts: int
    reason: str
    error: str
    #: Seconds since its message was written.
    age: float
    #: Whether later deliveries with its key wait for it.
    blocks: bool

    @property
    def target(self) -> str:
        """The topic, or the handler."""
        return self.handler or self.message.topic


@attrs.frozen
class TargetBacklog:
    """The backlog of one topic or one durable handler."""

    kind: str
    target: str
    #: Not attempted yet.
    pending: int
    #: ClaimedDelivery, or waiting for the next attempt.
    tried: int
    dead: int


@attrs.frozen
class Backlog:
    """All deliveries that are not made yet."""

    targets: tuple[TargetBacklog, ...]
    #: How many dead letters have which reason.
    dead_by_reason: tuple[tuple[str, int], ...]
    #: The lag: seconds since the oldest message was written that is neither delivered nor dead.
    oldest: float | None

    @property
    def waiting(self) -> int:
        """Deliveries that are neither delivered nor dead."""
        return sum(target.pending + target.tried for target in self.targets)

    @property
    def dead(self) -> int:
        """Dead letters."""
        return sum(target.dead for target in self.targets)


class Listener(Protocol):
    """Receives notifications of commits in other processes."""

    def wait(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for a notification that something can be claimed; False if none came."""

    def close(self) -> None:
        """Close its connection."""


class Outbox(Protocol):
    """
    Keeps messages in the database and the transaction of the changes they tell of.

    Safe from any thread and in a forked child. Every method raises OutboxUnavailable if the database cannot be
    reached, and OutboxNotInstalled if its tables are missing.
    """

    @property
    def transactions(self) -> Transactions:
        """The transactions that `add` joins."""

    def add(self, entries: Sequence[OutboxEntry], /, *, own_transaction: bool = False) -> None:
        """
        Write messages and their deliveries in the transaction of the calling thread. A rollback removes them.

        Raises NotInTransaction if none is open, unless the outbox has `OnNoTransaction.OPEN`, or `own_transaction` is
        set: then it opens a transaction of its own. Raises EventTooLarge. Errors of the database in the caller's
        transaction pass through.
        """

    def claim(
        self, limit: int, lease: float, *, handlers: Collection[str] | None = None, exclude: Collection[str] = ()
    ) -> Sequence[ClaimedDelivery]:
        """
        Claim deliveries for `lease` seconds, oldest first: for the broker, or for these durable handlers.

        Leaves out those for the topics or handlers in `exclude`.

        One caller at a time has a claim on a delivery. The attempt is counted before this returns. A delivery with a
        key is claimed only if all earlier ones of its key and target are done or claimed by this call; for handlers,
        only if they are done. A blocked key holds up no other key. A late commit is claimed late, and never skipped.
        The clock is that of the database.
        """

    def renew(self, tokens: Collection[str], lease: float) -> int:
        """Extend claims to `lease` seconds from now; returns how many deliveries these tokens still hold."""

    def settle(self, outcomes: Sequence[Outcome], /) -> int:
        """Settle deliveries; returns how many of their claims still held. The others are not changed."""

    def next_due(self, handlers: Collection[str], /) -> float | None:
        """Return the seconds until something can be claimed: 0 if it can be now, None if nothing waits."""

    def listener(self) -> Listener | None:
        """Listen for commits in other processes; None if the database cannot notify."""

    def release_connection(self) -> None:
        """Release the connection of the calling thread. The next call opens one again."""

    # For operators

    def backlog(self) -> Backlog:
        """Count the deliveries that are not made yet."""

    def dead_letters(self, selection: DeadLetterSelection, /, *, limit: int = 100) -> Sequence[DeadLetter]:
        """Return dead deliveries, oldest first."""

    def replay(self, selection: DeadLetterSelection, /, *, limit: int = 1000) -> int:
        """Make dead deliveries claimable again, oldest first, with no attempts; returns how many."""

    def discard(self, selection: DeadLetterSelection, /, *, limit: int = 1000) -> int:
        """Delete dead deliveries, oldest first, so that later ones of their key are delivered; returns how many."""

    def purge(self, older_than: float, /, *, limit: int = 1000) -> int:
        """Delete delivered messages that were written more than `older_than` seconds ago; returns how many."""


def lane_of(target: str, key: str | None) -> int | None:
    """Return a number that all deliveries share that keep order among them; None if there is no order."""
    if key is None:
        return None
    import hashlib  # noqa: PLC0415 -- loading OpenSSL is a tenth of the time that importing the package may take

    digest = hashlib.blake2b(f"{target}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def check_choice(name: str, value: object, choice: E) -> bool:
    """Return whether an option has this value. Raises ConfigurationError if it is not one of its class."""
    if not isinstance(value, type(choice)):
        raise ConfigurationError(f"{name} must be one of {', '.join(map(str, type(choice)))}, not {value!r}")
    return value is choice


def check_size(message: OutgoingMessage, max_bytes: int) -> None:
    """Raise EventTooLarge for a message that a database row should not hold."""
    if len(message.body) > max_bytes:
        raise EventTooLarge(
            f"{message.type} has {len(message.body)} bytes, {max_bytes} are allowed: "
            "store large data elsewhere and send its location, or give the outbox a larger max_bytes"
        )
    for what in ("id", "topic", "type", "key", "content_type"):
        text = getattr(message, what) or ""
        if len(text) > LONGEST or "\0" in text:
            raise EventTooLarge(f"the {what} of {message.type:.50} has more than {LONGEST} characters, or a NUL in it")
