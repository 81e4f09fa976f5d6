"""A partition in hand: how far it is finished, and what of it has to wait here."""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

from cqrs_sync.broker import IncomingMessage
from cqrs_sync.kafka.cloudevents import due_in


class OffsetTracker:
    """
    Keeps the offset up to which everything in a partition is finished, whatever the order of finishing.

    Committing less than that delivers finished messages again, committing more loses
    unfinished ones.
    """

    def __init__(self) -> None:
        self._open: deque[int] = deque()
        self._finished: set[int] = set()
        #: The partition is somebody else's by now.
        self.lapsed = False

    def handed_out(self, offset: int) -> None:
        """Take note that this offset is being worked on."""
        self._open.append(offset)

    def finished(self, offset: int) -> int | None:
        """Take note that this offset is done; return the next one to read after a restart, None where it stays."""
        waiting, finished = self._open, self._finished
        if not waiting or waiting[0] != offset:
            finished.add(offset)
            return None
        waiting.popleft()
        while waiting and waiting[0] in finished:
            offset = waiting.popleft()
            finished.remove(offset)
        return offset + 1


class OwnedPartition(OffsetTracker):
    """
    A partition that is ours.

    Nothing is handed out that is `reach` offsets or more behind the place that the broker
    keeps for the group: a partition with one message that takes for ever stops there, and
    whoever has the partition next knows what may have been in somebody's hands.

    `place` is the client's name for it. `delay` is for how long its records wait, at
    most; None where they do not. `kept` are those that the group itself has written.
    """

    def __init__(self, place: Any, origin: str, *, reach: int, delay: float | None = None, kept: bool = False) -> None:
        super().__init__()
        self.place = place
        self.origin = origin
        self.delay = delay
        self.kept = kept
        #: Records that are not due yet, with the moment they are; and those beyond the limit.
        self.early: deque[tuple[float, Any]] = deque()
        self.beyond: deque[Any] = deque()
        #: The next one to read, as far as it is finished here, until the broker has confirmed it.
        self.uncommitted: int | None = None
        #: Nobody has had this offset or later ones before.
        self.untouched: int | None = None
        #: Up to here may be handed out, and from here on it is high time to commit.
        self.limit = self.commit_at = 0
        self._reach = reach

    @property
    def waits(self) -> bool:
        """Whether some of it is held back here: nothing more should be fetched."""
        return bool(self.early or self.beyond)

    def begin(self, offset: int) -> None:
        """Take note of the first offset that was read: the broker's place for the group is not behind it."""
        self.untouched = offset + self._reach
        self._limit_from(offset)

    def reaches(self, offset: int) -> bool:
        """Tell whether this offset may be handed out."""
        if offset < self.limit:
            return True
        if self._open or self.uncommitted is not None:
            return False
        # Everything is done and known to be: there is a gap in the offsets.
        self._limit_from(offset)
        return True

    def committed(self, offset: int) -> None:
        """Take note that the broker keeps this place."""
        if self.uncommitted == offset:
            self.uncommitted = None
        self._limit_from(offset)

    def committing(self, offset: int) -> None:
        """Take note that the broker was asked to keep this place: once more is not urgent."""
        self.commit_at = offset + self._reach // 4

    def _limit_from(self, offset: int) -> None:
        self.limit = max(self.limit, offset + self._reach)
        self.commit_at = max(self.commit_at, offset + self._reach // 4)


class KafkaDelivery:
    """One record of a partition; `settle` is told once, with the delivery and whether it is done."""

    __slots__ = ("_settle", "holding", "message", "offset", "redeliveries")

    def __init__(
        self,
        message: IncomingMessage,
        holding: OwnedPartition,
        offset: int,
        redeliveries: int,
        settle: Callable[[KafkaDelivery, bool], None],
    ) -> None:
        self.message = message
        #: The partition it came from, while that was ours.
        self.holding = holding
        self.offset = offset
        #: Kafka does not count: 1 where somebody may have had it in hand before.
        self.redeliveries = redeliveries
        self._settle: Callable[[KafkaDelivery, bool], None] | None = settle

    @property
    def origin(self) -> str:
        """Its topic, partition and offset: `meetings[3]@1042`."""
        return f"{self.holding.origin}@{self.offset}"

    @property
    def lapsed(self) -> bool:
        """Whether it was settled, or its partition is somebody else's by now."""
        return self._settle is None or self.holding.lapsed

    def ack(self) -> None:
        """It is done: never deliver it again."""
        settle = self._settle
        if settle is not None:
            self._settle = None
            settle(self, True)

    def nack(self) -> None:
        """It is not done: deliver it again."""
        settle = self._settle
        if settle is not None:
            self._settle = None
            settle(self, False)


#: Fetched records that are enough while nobody receives.
_ENOUGH = 500
#: Seconds between two commits where none is urgent.
_COMMIT = 0.1


class Client(Protocol):
    """What the two clients do differently; `place` is what each calls a partition."""

    def offset_of(self, record: Any, /) -> int:
        """Return where it is in its partition."""

    def headers_of(self, record: Any, /) -> Iterable[tuple[str, bytes | None]]:
        """Return its headers as they came."""

    def message_of(self, record: Any, /, *, kept: bool) -> IncomingMessage:
        """Read it."""

    def pause(self, places: Collection[Any], /) -> None:
        """Fetch nothing of these partitions."""

    def resume(self, places: Collection[Any], /) -> None:
        """Go on with them."""

    def commit(self, finished: dict[Any, int], /) -> None:
        """Have the broker keep these places, without waiting; `FetchBuffer.committed` is told."""


class FetchBuffer:
    """
    The partitions of one consumer, for its one thread.

    A record that is not due yet, or too far from the first unfinished one, waits here, and
    its partition is paused; all others go on.
    """

    def __init__(self, client: Client) -> None:
        self.holdings: dict[Any, OwnedPartition] = {}
        #: What is finished and not known to be committed.
        self.finished: dict[Any, int] = {}
        #: Whether it was told its partitions, be they none.
        self.was_told = False
        #: Partitions that the client fetches nothing of.
        self.paused: set[Any] = set()
        self._client = client
        self._ready: deque[tuple[OwnedPartition, Any]] = deque()
        #: What was given back: of each partition the oldest comes first.
        self._returned: list[tuple[int, int, KafkaDelivery]] = []
        self._count = itertools.count()
        #: Those with records that wait for their time.
        self._early: set[OwnedPartition] = set()
        self._commit_after = 0.0

    def got(self, holdings: Iterable[OwnedPartition]) -> None:
        """Begin with partitions."""
        self.was_told = True
        self.holdings.update((holding.place, holding) for holding in holdings)

    def lost(self, places: Collection[Any]) -> dict[Any, int]:
        """Forget partitions; returns what was finished in them and is not known to be committed."""
        for place in places:
            if place in self.holdings:
                holding = self.holdings.pop(place)
                holding.lapsed = True
                self._early.discard(holding)
        self.paused.difference_update(places)
        self._ready = deque(entry for entry in self._ready if not entry[0].lapsed)
        return {place: self.finished.pop(place) for place in places if place in self.finished}

    def take(self, place: Any, records: list[Any]) -> None:
        """Take in what was fetched of a partition."""
        holding = self.holdings.get(place)
        if holding is None or not records:
            return  # fetched before it was given away
        if holding.untouched is None:
            holding.begin(self._client.offset_of(records[0]))
        if holding.delay is None:
            self._ready.extend(zip(itertools.repeat(holding), records))
            return
        now = time.monotonic()
        headers_of, delay = self._client.headers_of, holding.delay
        holding.early.extend((now + due_in(headers_of(record), delay), record) for record in records)
        self._early.add(holding)

    def hand_out(self, most: int) -> list[KafkaDelivery]:
        """Return the next records that may be handed out, `most` of them."""
        if self._early:
            self._let_go()
        came: list[KafkaDelivery] = []
        while self._returned and len(came) < most:
            _, _, old = heapq.heappop(self._returned)
            if not old.holding.lapsed:
                came.append(KafkaDelivery(old.message, old.holding, old.offset, old.redeliveries + 1, self.settle))
        ready, offset_of, message_of = self._ready, self._client.offset_of, self._client.message_of
        while ready and len(came) < most:
            holding, record = ready.popleft()
            offset = offset_of(record)
            if holding.beyond or not (offset < holding.limit or holding.reaches(offset)):
                holding.beyond.append(record)
                continue
            holding.handed_out(offset)
            certain = holding.untouched is not None and offset >= holding.untouched
            message = message_of(record, kept=holding.kept)
            came.append(KafkaDelivery(message, holding, offset, 0 if certain else 1, self.settle))
        return came

    def idle_for(self, timeout: float) -> float:
        """Return the seconds to the next record that waits for its time, or commit; `timeout` at most."""
        if self.finished:
            timeout = min(timeout, _COMMIT)
        if not self._early:
            return timeout
        first = min(holding.early[0][0] for holding in self._early)
        return max(0.0, min(timeout, first - time.monotonic()))

    def settle(self, delivery: KafkaDelivery, done: bool) -> None:
        """Settle a delivery; it does nothing where its partition has gone to another member."""
        holding = delivery.holding
        if holding.lapsed:
            return
        if not done:
            heapq.heappush(self._returned, (delivery.offset, next(self._count), delivery))
            return
        watermark = holding.finished(delivery.offset)
        if watermark is not None:
            holding.uncommitted = self.finished[holding.place] = watermark
            now = time.monotonic()
            if now >= self._commit_after or watermark >= holding.commit_at:
                self._commit(now)
                holding.committing(watermark)

    def commit(self, now: float) -> None:
        """Have everything committed that is finished, unless that was done a moment ago."""
        if self.finished and now >= self._commit_after:
            self._commit(now)

    def committed(self, place: Any, offset: int) -> None:
        """Take note that the broker keeps this place."""
        if self.finished.get(place) == offset:
            del self.finished[place]
        holding = self.holdings.get(place)
        if holding is not None:
            holding.committed(offset)
            if holding.beyond:
                self._ready.extendleft((holding, record) for record in reversed(holding.beyond))
                holding.beyond.clear()

    def pause_and_resume(self, besides: Collection[Any] = ()) -> None:
        """Have the client fetch what there is room for: nothing of partitions that wait, and of those `besides`."""
        wanted = {place for place, holding in self.holdings.items() if holding.waits or place in besides}
        if len(self._ready) >= _ENOUGH:
            wanted.update(self.holdings)
        if wanted != self.paused:
            self._client.pause(wanted - self.paused)
            self._client.resume(self.paused - wanted)
            self.paused = wanted

    def close(self) -> None:
        """Nothing of it can be settled any more."""
        self.lost(list(self.holdings))

    def _commit(self, now: float) -> None:
        self._commit_after = now + _COMMIT
        self._client.commit(self.finished)

    def _let_go(self) -> None:
        """Hand on what has waited for its time."""
        now = time.monotonic()
        for holding in list(self._early):
            early = holding.early
            while early and early[0][0] <= now:
                self._ready.append((holding, early.popleft()[1]))
            if not early:
                self._early.discard(holding)
