"""An outbox in memory, and transactions without a database."""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import attrs

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.errors import NotInTransaction
from cqrs_sync.lifecycle import reset_in_child
from cqrs_sync.outbox import (
    Backlog,
    ClaimedDelivery,
    DeadLetter,
    DeadLetterSelection,
    OnNoTransaction,
    OutboxEntry,
    Outcome,
    OutcomeKind,
    TargetBacklog,
    check_choice,
    check_size,
    lane_of,
)


@attrs.define
class _Block:
    """The callbacks of a transaction, or of a savepoint in one."""

    writes: list[Callable[[], object]] = attrs.field(factory=list)
    callbacks: list[Callable[[], object]] = attrs.field(factory=list)
    undo: list[Callable[[], object]] = attrs.field(factory=list)


class _OpenBlocks(threading.local):
    """The open blocks of the calling thread, the innermost last."""

    def __init__(self) -> None:
        self.blocks: list[_Block] = []


class MemoryTransactions:
    """
    Transactions without a database, for tests: nested like Django's `atomic`.

    A block inside a block is a savepoint. If it fails, its callbacks are dropped; all others run when the outermost
    block commits. Each thread has its own transactions, as it has its own database connection.
    """

    def __init__(self) -> None:
        self._local = _OpenBlocks()

    def active(self) -> bool:
        """Tell whether this thread is inside a block."""
        return bool(self._local.blocks)

    def on_commit(self, callback: Callable[[], object], /) -> None:
        """Call `callback` after the outermost block has committed; outside of a block, at once."""
        blocks = self._local.blocks
        if blocks:
            blocks[-1].callbacks.append(callback)
        else:
            callback()

    def at_commit(self, write: Callable[[], object], /) -> None:
        """Call `write` when the outermost block commits, before its callbacks; outside of a block, at once."""
        blocks = self._local.blocks
        if blocks:
            blocks[-1].writes.append(write)
        else:
            write()

    def at_rollback(self, undo: Callable[[], object], /) -> None:
        """Call `undo` when this block or one around it is rolled back; outside of a block, never."""
        blocks = self._local.blocks
        if blocks:
            blocks[-1].undo.append(undo)

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """Open a transaction, or a savepoint inside one."""
        blocks, block = self._local.blocks, _Block()
        blocks.append(block)
        try:
            yield
        except BaseException:
            blocks.pop()
            for undo in reversed(block.undo):
                undo()
            raise
        blocks.pop()
        if blocks:
            blocks[-1].undo.extend(block.undo)
            blocks[-1].writes.extend(block.writes)
            blocks[-1].callbacks.extend(block.callbacks)
            return
        for call in [*block.writes, *block.callbacks]:
            call()


#: Bytes of the messages in one claim.
_CLAIMED_BYTES = 16 * 1024 * 1024


@attrs.define(eq=False)
class _StoredDelivery:
    """A delivery and its state."""

    number: int
    message: OutgoingMessage
    handler: str | None
    lane: int | None
    #: Times of `time.monotonic`.
    written: float
    due: float
    attempts: int = 0
    token: str | None = None
    was_tried: bool = False
    is_dead: bool = False
    reason: str = ""
    error: str = ""

    @property
    def target(self) -> str:
        return self.handler or self.message.topic

    @property
    def kind(self) -> str:
        return "topic" if self.handler is None else "handler"

    @property
    def status(self) -> str:
        return "dead" if self.is_dead else "tried" if self.was_tried else "pending"

    def matches(self, handlers: Collection[str] | None, exclude: Collection[str]) -> bool:
        """Tell whether it is for the broker, or for one of these handlers."""
        is_included = self.handler is None if handlers is None else self.handler in handlers
        return is_included and self.target not in exclude

    def is_selected(self, selection: DeadLetterSelection) -> bool:
        """Tell whether it is dead and in the selection."""
        return (
            self.is_dead
            and (selection.numbers is None or self.number in selection.numbers)
            and selection.reason in {None, self.reason}
            and selection.target in {None, self.target}
        )

    def claim(self, token: str, lease_end: float) -> ClaimedDelivery:
        self.was_tried = True
        self.attempts += 1
        self.token, self.due = token, lease_end
        return ClaimedDelivery(self.number, self.message, self.handler, self.attempts, token)


class MemoryOutbox:
    """
    An outbox without a database, for tests and as the reference; it ends with the process.

    It joins `transactions`: messages added in one of them are there once the outermost block has committed.
    `on_no_transaction` and `max_bytes` are those of `SqlOutbox`.
    """

    def __init__(
        self,
        transactions: MemoryTransactions | None = None,
        *,
        max_bytes: int = 1_048_576,
        on_no_transaction: OnNoTransaction = OnNoTransaction.RAISE,
    ) -> None:
        #: The transactions that `add` joins.
        self.transactions: MemoryTransactions = MemoryTransactions() if transactions is None else transactions
        self._max_bytes = max_bytes
        self._opens_transactions = check_choice("on_no_transaction", on_no_transaction, OnNoTransaction.OPEN)
        self._numbers = itertools.count(1)
        self._deliveries: dict[int, _StoredDelivery] = {}
        #: When each message was written.
        self._messages: dict[str, float] = {}
        self._lock = threading.Lock()
        reset_in_child(self)

    def reset_in_child(self) -> None:
        """Replace the lock, which another thread of the parent may have held."""
        self._lock = threading.Lock()

    def add(self, entries: Sequence[OutboxEntry], /, *, own_transaction: bool = False) -> None:
        """Keep messages and their deliveries in the transaction of the calling thread."""
        for entry in entries:
            check_size(entry.message, self._max_bytes)
        if not (own_transaction or self._opens_transactions or self.transactions.active()):
            types = ", ".join(sorted({entry.message.type for entry in entries}))
            raise NotInTransaction(
                f"{types} cannot be kept in the outbox: no transaction is open. Open one with transactions.atomic(), "
                "or give the outbox on_no_transaction=OnNoTransaction.OPEN, which keeps it in a transaction of its own"
            )
        now = time.monotonic()
        messages = {entry.message.id: now for entry in entries}
        # Numbers are assigned here, as by a database's sequence: a late commit has low numbers.
        deliveries = {each.number: each for entry in entries for each in self._deliveries_of(entry, now)}

        def write() -> None:
            with self._lock:
                self._messages |= messages
                self._deliveries |= deliveries

        self.transactions.at_commit(write)

    def claim(
        self, limit: int, lease: float, *, handlers: Collection[str] | None = None, exclude: Collection[str] = ()
    ) -> Sequence[ClaimedDelivery]:
        """Claim deliveries for `lease` seconds, oldest first."""
        token = uuid.uuid4().hex
        with self._lock:
            now = time.monotonic()
            found = list(itertools.islice(self._claimable(now, handlers, exclude), limit))
            return [delivery.claim(token, now + lease) for delivery in found]

    def renew(self, tokens: Collection[str], lease: float) -> int:
        """Extend claims to `lease` seconds from now."""
        with self._lock:
            claimed = [delivery for delivery in self._deliveries.values() if delivery.token in tokens]
            for delivery in claimed:
                delivery.due = time.monotonic() + lease
            return len(claimed)

    def settle(self, outcomes: Sequence[Outcome], /) -> int:
        """Record the outcomes of deliveries."""
        with self._lock:
            return sum(self._settle(outcome) for outcome in outcomes)

    def next_due(self, handlers: Collection[str], /) -> float | None:
        """Return the seconds until a delivery can be claimed."""
        with self._lock:
            now = time.monotonic()
            for group in (None, handlers):
                if next(self._claimable(now, group, ()), None) is not None:
                    return 0.0
            mine = [each for each in self._deliveries.values() if each.handler in {None, *handlers}]
            return min((each.due - now for each in mine if not each.is_dead and each.due > now), default=None)

    def listener(self) -> None:
        """Return None: no other process has this outbox."""

    def release_connection(self) -> None:
        """Do nothing: there is no connection."""

    def backlog(self) -> Backlog:
        """Count what is not delivered yet."""
        with self._lock:
            deliveries, now = list(self._deliveries.values()), time.monotonic()
        counts = Counter((each.kind, each.target, each.status) for each in deliveries)
        reasons = Counter(each.reason for each in deliveries if each.is_dead)
        return Backlog(
            targets=tuple(
                TargetBacklog(kind, target, *(counts[kind, target, status] for status in ("pending", "tried", "dead")))
                for kind, target in sorted({(kind, target) for kind, target, _ in counts})
            ),
            dead_by_reason=tuple(sorted(reasons.items(), key=lambda reason: (-reason[1], reason[0]))),
            oldest=max((now - each.written for each in deliveries if not each.is_dead), default=None),
        )

    def dead_letters(self, selection: DeadLetterSelection, /, *, limit: int = 100) -> Sequence[DeadLetter]:
        """Return dead deliveries, oldest first."""
        with self._lock:
            now = time.monotonic()
            return [
                DeadLetter(
                    number=each.number,
                    message=each.message,
                    handler=each.handler,
                    attempts=each.attempts,
                    reason=each.reason,
                    error=each.error,
                    age=now - each.written,
                    blocks=each.lane is not None,
                )
                for each in self._select(selection, limit)
            ]

    def replay(self, selection: DeadLetterSelection, /, *, limit: int = 1000) -> int:
        """Make dead deliveries claimable again, with no attempts counted."""
        with self._lock:
            selected = self._select(selection, limit)
            for delivery in selected:
                delivery.is_dead = delivery.was_tried = False
                delivery.attempts, delivery.due = 0, time.monotonic()
            return len(selected)

    def discard(self, selection: DeadLetterSelection, /, *, limit: int = 1000) -> int:
        """Delete dead deliveries."""
        with self._lock:
            selected = self._select(selection, limit)
            for delivery in selected:
                del self._deliveries[delivery.number]
            return len(selected)

    def purge(self, older_than: float, /, *, limit: int = 1000) -> int:
        """Delete delivered messages that were written more than `older_than` seconds ago."""
        with self._lock:
            waiting = {delivery.message.id for delivery in self._deliveries.values()}
            oldest_kept = time.monotonic() - older_than
            old = [name for name, written in self._messages.items() if written < oldest_kept and name not in waiting]
            for name in old[:limit]:
                del self._messages[name]
            return len(old[:limit])

    def _deliveries_of(self, entry: OutboxEntry, now: float) -> Iterator[_StoredDelivery]:
        message = entry.message
        broker: list[str | None] = [None] if entry.publish else []
        for handler in [*broker, *entry.handlers]:
            delivery = _StoredDelivery(next(self._numbers), message, handler, lane=None, written=now, due=now)
            delivery.lane = lane_of(f"{delivery.kind} {delivery.target}", message.key)
            yield delivery

    def _claimable(
        self, now: float, handlers: Collection[str] | None, exclude: Collection[str]
    ) -> Iterator[_StoredDelivery]:
        """Yield what one claim can take, oldest first. The caller holds the lock."""
        #: Lanes whose next delivery must wait.
        blocked: set[int | None] = set()
        size = 0
        for _, delivery in sorted(self._deliveries.items()):
            if not delivery.matches(handlers, exclude) or delivery.lane in blocked - {None}:
                continue
            if delivery.is_dead or delivery.due > now:
                blocked.add(delivery.lane)
                continue
            size += len(delivery.message.body)
            if size > max(_CLAIMED_BYTES, len(delivery.message.body)):
                return
            if handlers is not None:
                blocked.add(delivery.lane)
            yield delivery

    def _settle(self, outcome: Outcome) -> bool:
        delivery = self._deliveries.get(outcome.claimed.number)
        if delivery is None or delivery.token != outcome.claimed.token:
            return False
        if outcome.kind is OutcomeKind.DONE:
            del self._deliveries[delivery.number]
            return True
        delivery.token, delivery.reason, delivery.error = None, outcome.reason, outcome.error
        if outcome.kind is OutcomeKind.DEAD:
            delivery.is_dead = True
            delivery.lane = delivery.lane if outcome.blocks else None
        else:
            delivery.due = time.monotonic() + outcome.after
            delivery.attempts -= not outcome.counted
            delivery.was_tried = outcome.counted or outcome.after > 0 or delivery.attempts > 0
        return True

    def _select(self, selection: DeadLetterSelection, limit: int) -> list[_StoredDelivery]:
        return [delivery for _, delivery in sorted(self._deliveries.items()) if delivery.is_selected(selection)][:limit]
