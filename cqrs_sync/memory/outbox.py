"""An outbox in memory."""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

import attrs

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.errors import NotInTransaction
from cqrs_sync.lifecycle import reset_in_child
from cqrs_sync.memory.transactions import MemoryTransactions
from cqrs_sync.outbox import (
    Backlog,
    Claimed,
    DeadDelivery,
    Entry,
    Outcome,
    Selection,
    TargetBacklog,
    Verdict,
    check_size,
    lane_of,
)

#: Bytes of the messages that are claimed at a time.
_CLAIMED_BYTES = 16 * 1024 * 1024


@attrs.define(eq=False)
class _Kept:
    """A delivery, and what is known of it."""

    number: int
    message: OutgoingMessage
    handler: str | None
    lane: int | None
    #: These are moments by `time.monotonic`.
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
    def state(self) -> str:
        return "dead" if self.is_dead else "tried" if self.was_tried else "pending"

    def is_for(self, handlers: Collection[str] | None, besides: Collection[str]) -> bool:
        """Tell whether it is asked for: for the broker, or for one of these handlers."""
        wanted = self.handler is None if handlers is None else self.handler in handlers
        return wanted and self.target not in besides

    def is_of(self, selection: Selection) -> bool:
        """Tell whether it is dead and meant."""
        return (
            self.is_dead
            and (selection.numbers is None or self.number in selection.numbers)
            and selection.reason in {None, self.reason}
            and selection.target in {None, self.target}
        )

    def take(self, token: str, until: float) -> Claimed:
        self.was_tried = True
        self.attempts += 1
        self.token, self.due = token, until
        return Claimed(self.number, self.message, self.handler, self.attempts, token)


class MemoryOutbox:
    """
    An outbox for tests: what it keeps lives as long as the process.

    It joins `transactions`: what is added in one of them is there when the outermost block
    has committed. `strict` and `max_bytes` are as in a database.
    """

    def __init__(
        self, transactions: MemoryTransactions | None = None, *, max_bytes: int = 1_048_576, strict: bool = True
    ) -> None:
        self._transactions = MemoryTransactions() if transactions is None else transactions
        self._max_bytes = max_bytes
        self._strict = strict
        self._numbers = itertools.count(1)
        self._deliveries: dict[int, _Kept] = {}
        #: When each message was written.
        self._messages: dict[str, float] = {}
        self._lock = threading.Lock()
        reset_in_child(self)

    @property
    def transactions(self) -> MemoryTransactions:
        """The transactions that `add` joins."""
        return self._transactions

    def reset_in_child(self) -> None:
        """Replace the lock, which another thread of the parent may have held."""
        self._lock = threading.Lock()

    def add(self, entries: Sequence[Entry], /, *, alone: bool = False) -> None:
        """Keep messages and their deliveries in the transaction of the calling thread."""
        for entry in entries:
            check_size(entry.message, self._max_bytes)
        if self._strict and not alone and not self._transactions.active():
            types = ", ".join(sorted({entry.message.type for entry in entries}))
            raise NotInTransaction(
                f"{types} is to be kept in the outbox, and no transaction is open: "
                "open one with transactions.atomic(), or give the outbox strict=False"
            )
        now = time.monotonic()
        messages = {entry.message.id: now for entry in entries}
        # Numbers are given out here, as by the sequence of a database: who commits late has low ones.
        deliveries = {kept.number: kept for entry in entries for kept in self._deliveries_of(entry, now)}

        def write() -> None:
            with self._lock:
                self._messages |= messages
                self._deliveries |= deliveries

        self._transactions.at_commit(write)

    def claim(
        self, limit: int, lease: float, *, handlers: Collection[str] | None = None, besides: Collection[str] = ()
    ) -> Sequence[Claimed]:
        """Claim deliveries for `lease` seconds, oldest first."""
        token = uuid.uuid4().hex
        with self._lock:
            now = time.monotonic()
            found = list(itertools.islice(self._claimable(now, handlers, besides), limit))
            return [kept.take(token, now + lease) for kept in found]

    def renew(self, tokens: Collection[str], lease: float) -> int:
        """Keep what was claimed for `lease` more seconds."""
        with self._lock:
            held = [kept for kept in self._deliveries.values() if kept.token in tokens]
            for kept in held:
                kept.due = time.monotonic() + lease
            return len(held)

    def settle(self, outcomes: Sequence[Outcome], /) -> int:
        """Write down what became of deliveries."""
        with self._lock:
            return sum(self._settle(outcome) for outcome in outcomes)

    def next_due(self, handlers: Collection[str], /) -> float | None:
        """Return the seconds until something may be claimed."""
        with self._lock:
            now = time.monotonic()
            for asked in (None, handlers):
                if next(self._claimable(now, asked, ()), None) is not None:
                    return 0.0
            mine = [kept for kept in self._deliveries.values() if kept.handler in {None, *handlers}]
            return min((kept.due - now for kept in mine if not kept.is_dead and kept.due > now), default=None)

    def listener(self) -> None:
        """There are no other processes."""

    def release_connection(self) -> None:
        """There is no connection."""

    def backlog(self) -> Backlog:
        """Count what is not delivered yet."""
        with self._lock:
            kept, now = list(self._deliveries.values()), time.monotonic()
        states = Counter((each.kind, each.target, each.state) for each in kept)
        reasons = Counter(each.reason for each in kept if each.is_dead)
        return Backlog(
            targets=tuple(
                TargetBacklog(kind, target, *(states[kind, target, state] for state in ("pending", "tried", "dead")))
                for kind, target in sorted({(kind, target) for kind, target, _ in states})
            ),
            dead_by_reason=tuple(sorted(reasons.items(), key=lambda reason: (-reason[1], reason[0]))),
            oldest=max((now - each.written for each in kept if not each.is_dead), default=None),
        )

    def dead(self, selection: Selection, /, *, limit: int = 100) -> Sequence[DeadDelivery]:
        """Return dead deliveries, oldest first."""
        with self._lock:
            now = time.monotonic()
            return [
                DeadDelivery(
                    number=kept.number,
                    message=kept.message,
                    handler=kept.handler,
                    attempts=kept.attempts,
                    reason=kept.reason,
                    error=kept.error,
                    age=now - kept.written,
                    blocks=kept.lane is not None,
                )
                for kept in self._meant(selection, limit)
            ]

    def replay(self, selection: Selection, /, *, limit: int = 1000) -> int:
        """Let dead deliveries be claimed again, with their attempts forgotten."""
        with self._lock:
            meant = self._meant(selection, limit)
            for kept in meant:
                kept.is_dead = kept.was_tried = False
                kept.attempts, kept.due = 0, time.monotonic()
            return len(meant)

    def discard(self, selection: Selection, /, *, limit: int = 1000) -> int:
        """Delete dead deliveries."""
        with self._lock:
            meant = self._meant(selection, limit)
            for kept in meant:
                del self._deliveries[kept.number]
            return len(meant)

    def purge(self, older_than: float, /, *, limit: int = 1000) -> int:
        """Delete messages that were written more than `older_than` seconds ago and are delivered."""
        with self._lock:
            waiting = {kept.message.id for kept in self._deliveries.values()}
            until = time.monotonic() - older_than
            old = [each for each, written in self._messages.items() if written < until and each not in waiting]
            for each in old[:limit]:
                del self._messages[each]
            return len(old[:limit])

    def _deliveries_of(self, entry: Entry, now: float) -> Iterator[_Kept]:
        message = entry.message
        broker: list[str | None] = [None] if entry.publish else []
        for handler in [*broker, *entry.handlers]:
            kept = _Kept(next(self._numbers), message, handler, lane=None, written=now, due=now)
            kept.lane = lane_of(f"{kept.kind} {kept.target}", message.key)
            yield kept

    def _claimable(self, now: float, handlers: Collection[str] | None, besides: Collection[str]) -> Iterator[_Kept]:
        """Yield what may be claimed at once, oldest first; under the lock."""
        #: Lanes whose next delivery is not to be claimed.
        held: set[int | None] = set()
        size = 0
        for _, kept in sorted(self._deliveries.items()):
            if not kept.is_for(handlers, besides) or kept.lane in held - {None}:
                continue
            if kept.is_dead or kept.due > now:
                held.add(kept.lane)
                continue
            size += len(kept.message.body)
            if size > max(_CLAIMED_BYTES, len(kept.message.body)):
                return
            if handlers is not None:
                held.add(kept.lane)
            yield kept

    def _settle(self, outcome: Outcome) -> bool:
        kept = self._deliveries.get(outcome.claimed.number)
        if kept is None or kept.token != outcome.claimed.token:
            return False
        if outcome.verdict is Verdict.DONE:
            del self._deliveries[kept.number]
            return True
        kept.token, kept.reason, kept.error = None, outcome.reason, outcome.error
        if outcome.verdict is Verdict.DEAD:
            kept.is_dead = True
            kept.lane = kept.lane if outcome.blocks else None
        else:
            kept.due = time.monotonic() + outcome.after
            kept.attempts -= not outcome.counted
            kept.was_tried = outcome.counted or outcome.after > 0 or kept.attempts > 0
        return True

    def _meant(self, selection: Selection, limit: int) -> list[_Kept]:
        return [kept for _, kept in sorted(self._deliveries.items()) if kept.is_of(selection)][:limit]
