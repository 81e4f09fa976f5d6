"""The partitions of one consumer: which offsets are finished, and which records wait to be delivered."""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any

import attrs

from cqrs_sync.broker import IncomingMessage
from cqrs_sync.kafka.client import ConsumerClient, Partition
from cqrs_sync.kafka.cloudevents import seconds_until_due

#: Fetched records that are enough while `receive` is not called.
_ENOUGH = 500
#: Seconds between two commits if none is urgent.
_COMMIT_INTERVAL = 0.1


class OffsetTracker:
    """
    Keeps the offset up to which everything in a partition is finished, whatever the order of finishing.

    A commit of less delivers finished messages again, a commit of more loses unfinished ones.
    """

    def __init__(self) -> None:
        self._open: deque[int] = deque()
        self._finished: set[int] = set()
        #: Whether the partition belongs to another member by now.
        self.is_revoked = False

    def deliver(self, offset: int) -> None:
        """Note that this offset is delivered, and not finished."""
        self._open.append(offset)

    def finish(self, offset: int) -> int | None:
        """Note that this offset is finished; return the next one to read after a restart, None if it stays the same."""
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
    A partition that is assigned to this member.

    Nothing is delivered that is `window` offsets or more behind the committed one: an unfinished message stops its
    partition there, and the next member knows which messages may have been delivered before.

    `delay` is how long its records wait, at most; None if they do not. `deferred` is whether the group itself has
    written them: then their notes count.
    """

    def __init__(
        self, topic: str, number: int, *, window: int, delay: float | None = None, deferred: bool = False
    ) -> None:
        super().__init__()
        self.key: Partition = (topic, number)
        self.origin: str = f"{topic}[{number}]"
        self.delay = delay
        self.deferred = deferred
        #: Records that are not due yet, with the moment they are; and those beyond the window.
        self.not_due: deque[tuple[float, Any]] = deque()
        self.overflow: deque[Any] = deque()
        #: The offset to commit, until the broker has confirmed it.
        self.uncommitted: int | None = None
        #: This offset and later ones were never delivered before.
        self.first_undelivered: int | None = None
        #: Offsets below this one may be delivered; a commit from `urgent_from` on is urgent.
        self.window_end: int = 0
        self.urgent_from: int = 0
        self._window = window

    @property
    def is_blocked(self) -> bool:
        """Whether some of its records are held back here, so that no more should be fetched."""
        return bool(self.not_due or self.overflow)

    def begin(self, offset: int) -> None:
        """Note the first offset that was read: the group has committed no later one."""
        self.first_undelivered = offset + self._window
        self._move_window(offset)

    def is_in_window(self, offset: int) -> bool:
        """Tell whether this offset may be delivered."""
        if offset < self.window_end:
            return True
        if self._open or self.uncommitted is not None:
            return False
        # Everything is finished and committed: there is a gap in the offsets.
        self._move_window(offset)
        return True

    def confirm_commit(self, offset: int) -> None:
        """Note that the broker keeps this offset."""
        if self.uncommitted == offset:
            self.uncommitted = None
        self._move_window(offset)

    def request_commit(self, offset: int) -> None:
        """Note that the broker was asked to keep this offset: the next commit is not urgent."""
        self.urgent_from = offset + self._window // 4

    def _move_window(self, offset: int) -> None:
        self.window_end = max(self.window_end, offset + self._window)
        self.urgent_from = max(self.urgent_from, offset + self._window // 4)


@attrs.define(eq=False, repr=False, weakref_slot=False)
class KafkaDelivery:
    """One record; it calls `settle` once, with itself and whether it is done."""

    message: IncomingMessage
    partition: OwnedPartition
    offset: int
    #: Kafka does not count: 1 if the message may have been delivered before.
    redeliveries: int
    _settle: Callable[[KafkaDelivery, bool], None] | None

    @property
    def origin(self) -> str:
        """Its topic, partition and offset: `meetings[3]@1042`."""
        return f"{self.partition.origin}@{self.offset}"

    @property
    def is_stale(self) -> bool:
        """Whether it was settled, or its partition belongs to another member by now."""
        return self._settle is None or self.partition.is_revoked

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


class FetchBuffer:
    """
    What one consumer has fetched and not delivered yet, for its one thread.

    A record that is not due, or beyond the window of its partition, waits here while its partition is paused; all
    other partitions go on.
    """

    def __init__(self, client: ConsumerClient) -> None:
        self.partitions: dict[Partition, OwnedPartition] = {}
        #: Offsets that are finished, and not known to be committed.
        self.uncommitted: dict[Partition, int] = {}
        #: Whether the group has told the member its partitions, even if there are none.
        self.was_assigned: bool = False
        self._paused: set[Partition] = set()
        self._client = client
        self._ready: deque[tuple[OwnedPartition, Any]] = deque()
        #: Deliveries that came back: the oldest of each partition first.
        self._returned: list[tuple[int, int, KafkaDelivery]] = []
        self._count = itertools.count()
        #: Partitions with records that are not due.
        self._delayed: set[OwnedPartition] = set()
        self._commit_after = 0.0

    def assign(self, partitions: Iterable[OwnedPartition]) -> None:
        """Begin with partitions."""
        self.was_assigned = True
        self.partitions.update((partition.key, partition) for partition in partitions)

    def revoke(self, keys: Collection[Partition]) -> dict[Partition, int]:
        """Forget partitions; return what was finished in them and is not known to be committed."""
        for key in keys:
            if key in self.partitions:
                partition = self.partitions.pop(key)
                partition.is_revoked = True
                self._delayed.discard(partition)
        self._paused.difference_update(keys)
        self._ready = deque(entry for entry in self._ready if not entry[0].is_revoked)
        return {key: self.uncommitted.pop(key) for key in keys if key in self.uncommitted}

    def add(self, key: Partition, records: list[Any]) -> None:
        """Add what was fetched from a partition."""
        partition = self.partitions.get(key)
        if partition is None or not records:
            return  # fetched before the partition was revoked
        if partition.first_undelivered is None:
            partition.begin(self._client.offset_of(records[0]))
        if partition.delay is None:
            self._ready.extend(zip(itertools.repeat(partition), records))
            return
        now = time.monotonic()
        headers_of, delay = self._client.headers_of, partition.delay
        partition.not_due.extend((now + seconds_until_due(headers_of(record), delay), record) for record in records)
        self._delayed.add(partition)

    def poll(self, limit: int) -> list[KafkaDelivery]:
        """Return the next records that may be delivered, `limit` at most."""
        if self._delayed:
            self._release_due()
        deliveries: list[KafkaDelivery] = []
        while self._returned and len(deliveries) < limit:
            _, _, old = heapq.heappop(self._returned)
            if not old.partition.is_revoked:
                again = old.redeliveries + 1
                deliveries.append(KafkaDelivery(old.message, old.partition, old.offset, again, self.settle))
        ready, offset_of, message_of = self._ready, self._client.offset_of, self._client.message_of
        while ready and len(deliveries) < limit:
            partition, record = ready.popleft()
            offset = offset_of(record)
            if partition.overflow or not (offset < partition.window_end or partition.is_in_window(offset)):
                partition.overflow.append(record)
                continue
            partition.deliver(offset)
            is_first = partition.first_undelivered is not None and offset >= partition.first_undelivered
            message = message_of(record, deferred=partition.deferred)
            deliveries.append(KafkaDelivery(message, partition, offset, 0 if is_first else 1, self.settle))
        return deliveries

    def idle_timeout(self, timeout: float) -> float:
        """Return the seconds until a record is due or a commit is, `timeout` at most."""
        if self.uncommitted:
            timeout = min(timeout, _COMMIT_INTERVAL)
        if not self._delayed:
            return timeout
        first = min(partition.not_due[0][0] for partition in self._delayed)
        return max(0.0, min(timeout, first - time.monotonic()))

    def settle(self, delivery: KafkaDelivery, done: bool) -> None:
        """Settle a delivery; this does nothing after its partition was revoked."""
        partition = delivery.partition
        if partition.is_revoked:
            return
        if not done:
            heapq.heappush(self._returned, (delivery.offset, next(self._count), delivery))
            return
        offset = partition.finish(delivery.offset)
        if offset is not None:
            partition.uncommitted = self.uncommitted[partition.key] = offset
            now = time.monotonic()
            if now >= self._commit_after or offset >= partition.urgent_from:
                self._commit(now)
                partition.request_commit(offset)

    def commit_if_due(self, now: float) -> None:
        """Commit what is finished, unless that was done a moment ago."""
        if self.uncommitted and now >= self._commit_after:
            self._commit(now)

    def confirm_commit(self, key: Partition, offset: int) -> None:
        """Note that the broker keeps this offset."""
        if self.uncommitted.get(key) == offset:
            del self.uncommitted[key]
        partition = self.partitions.get(key)
        if partition is not None:
            partition.confirm_commit(offset)
            if partition.overflow:
                self._ready.extendleft((partition, record) for record in reversed(partition.overflow))
                partition.overflow.clear()

    def pause_and_resume(self, besides: Collection[Partition] = ()) -> None:
        """Let the client fetch what there is room for: nothing from blocked partitions, and from those `exclude`."""
        to_pause = {key for key, partition in self.partitions.items() if partition.is_blocked or key in besides}
        if len(self._ready) >= _ENOUGH:
            to_pause.update(self.partitions)
        if to_pause != self._paused:
            self._client.pause(to_pause - self._paused)
            self._client.resume(self._paused - to_pause)
            self._paused = to_pause

    def close(self) -> None:
        """Forget everything: nothing of it can be settled any more."""
        self.revoke(list(self.partitions))

    def _commit(self, now: float) -> None:
        self._commit_after = now + _COMMIT_INTERVAL
        self._client.commit(self.uncommitted)

    def _release_due(self) -> None:
        now = time.monotonic()
        for partition in list(self._delayed):
            not_due = partition.not_due
            while not_due and not_due[0][0] <= now:
                self._ready.append((partition, not_due.popleft()[1]))
            if not not_due:
                self._delayed.discard(partition)
