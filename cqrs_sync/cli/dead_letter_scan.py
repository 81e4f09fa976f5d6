"""Read the dead letters of a group one after the other, as brokers hand them out, and settle those that match."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import attrs

from cqrs_sync.broker import Delivery, Group, IncomingMessage, ReceivingBroker, Subscription

#: Dead letters that are changed together, and those that a scan holds unsettled, at most.
BATCH, _PREFETCH = 100, 200
#: Messages that brokers hand out unsettled to one reader, at most: RabbitMQ counts them in 16 bits.
_MOST_UNSETTLED = 65_535
#: Seconds to wait for the first dead letter, while the broker may still let the reader in, and for each further one.
_FIRST, _NEXT = 20.0, 3.0
#: Seconds between two signs of life to the broker during a pause.
_KEEP_ALIVE = 0.5


@attrs.frozen
class DeadLetterFilter:
    """Which dead letters are meant: those that match everything that is given, the oldest `limit` of them."""

    ids: frozenset[str] = frozenset()
    reason: str | None = None
    target: str | None = None
    limit: int | None = None
    #: The newest instead.
    newest: bool = False

    @property
    def is_everything(self) -> bool:
        """Whether it matches every dead letter."""
        return not self.ids and self.reason is None and self.target is None

    def matches(self, message: IncomingMessage) -> bool:
        """Tell whether it matches a dead letter of a group."""
        has_id = not self.ids or id_of(message) in self.ids
        return has_id and self.reason in {None, message.notes.get("reason", "")}


def id_of(message: IncomingMessage) -> str:
    """Return the id of a message, or a hash of its body if it has none."""
    known = message.attributes.get("id")
    if known:
        return known
    return f"blake2b-{hashlib.blake2b(message.body, digest_size=8).hexdigest()}"


def browse(broker: ReceivingBroker, group: Group) -> Iterator[IncomingMessage]:
    """Read the dead letters of a group, oldest first, at most 65,535 of them. All of them stay where they are."""
    total = min(broker.backlog(group).dead, _MOST_UNSETTLED)
    if not total:
        return
    timeout = _FIRST
    with broker.read_dead_letters(attrs.evolve(group, prefetch=total)) as subscription:
        for _ in range(total):
            delivery = subscription.receive(timeout)
            if delivery is None:
                return
            yield delivery.message
            timeout = _NEXT


class DeadLetterScan:
    """
    Reads once the dead letters that are there at its start, and settles those that match.

    Brokers cannot settle a message and keep an older one, so a dead letter that does not match and lies between two
    that do moves to the end. Each is copied before it is removed: if the process ends in between, in whatever way, it
    is there twice, and never lost. The scan does not read dead letters that were put back or came later.
    """

    def __init__(
        self,
        broker: ReceivingBroker,
        group: Group,
        chosen: DeadLetterFilter,
        handle: Callable[[Sequence[IncomingMessage]], object],
        *,
        rate: float | None = None,
        is_cancelled: Callable[[float], bool],
    ) -> None:
        """
        Hand dead letters that match to `handle`, at most `rate` per second.

        `is_cancelled` waits for a number of seconds, and tells whether the scan should end.
        """
        self._broker = broker
        self._group = group
        self._chosen = chosen
        self._handle = handle
        self._rate = rate
        self._is_cancelled = is_cancelled
        self._batch = BATCH if rate is None else max(1, min(BATCH, int(rate)))
        self.total: int = broker.backlog(group).dead
        #: Dead letters that were handled, and those that were moved to the end.
        self.handled: int = 0
        self.put_back: int = 0

    def __iter__(self) -> Iterator[int]:
        """Scan; yields 1 for each dead letter it reads. Raises KeyboardInterrupt if it is cancelled."""
        if not self.total:
            return
        with self._broker.read_dead_letters(attrs.evolve(self._group, prefetch=_PREFETCH)) as subscription:
            yield from self._scan(subscription)

    def _scan(self, subscription: Subscription) -> Iterator[int]:
        unsettled: list[Delivery] = []
        matching: list[Delivery] = []
        for number in range(self.total):
            self._check_cancelled()
            delivery = subscription.receive(_NEXT if number else _FIRST)
            if delivery is None:
                break
            unsettled.append(delivery)
            if self._chosen.matches(delivery.message):
                matching.append(delivery)
            if len(matching) >= self._room or len(unsettled) >= BATCH:
                self._settle(unsettled, matching, subscription)
            yield 1
            if self.handled == self._chosen.limit:
                return
        if matching:
            self._settle(unsettled, matching, subscription)
        # The rest does not match, and nothing behind it is settled: it stays where it is.

    @property
    def _room(self) -> int:
        """How many more are handled together."""
        limit = self._chosen.limit
        return self._batch if limit is None else min(self._batch, limit - self.handled)

    def _settle(self, unsettled: list[Delivery], matching: list[Delivery], subscription: Subscription) -> None:
        """Handle those that match, move those before them to the end, remove both; the rest stays unsettled."""
        end = unsettled.index(matching[-1]) + 1 if matching else len(unsettled)
        others = [delivery for delivery in unsettled[:end] if delivery not in matching]
        if others:
            self._broker.add_dead_letters([delivery.message for delivery in others], self._group)
        if matching:
            self._handle([delivery.message for delivery in matching])
        for delivery in unsettled[:end]:
            delivery.ack()
        self.put_back += len(others)
        self.handled += len(matching)
        pause = 0.0 if self._rate is None or self.handled == self._chosen.limit else len(matching) / self._rate
        del unsettled[:end]
        matching.clear()
        while pause > 0:
            step = min(pause, _KEEP_ALIVE)
            self._check_cancelled(step)
            subscription.keep_alive()
            pause -= step

    def _check_cancelled(self, wait: float = 0.0) -> None:
        if self._is_cancelled(wait):
            raise KeyboardInterrupt
