"""Messages in flight: received, and not settled yet."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import attrs

from cqrs_sync.broker import Delivery, IncomingMessage
from cqrs_sync.serializer import is_key

#: Topic and key of messages that keep their order; None for a message without a key.
Key: TypeAlias = "tuple[str, str] | None"

#: How many messages are remembered that were done after their delivery was stale: they may come once more.
_REMEMBERED = 1000
#: So many acks are worth waking the receiver for.
_ACKS = 64
#: An upper bound for numbers that senders have written.
_MOST_ATTEMPTS = 1_000_000


@attrs.define(eq=False)
class InFlightMessage:
    """A message that was received and is not settled yet."""

    delivery: Delivery
    key: Key
    #: Identifies the message, whatever sent it: source and id, or a digest.
    identity: str
    #: What the queue keeps it under: its identity, unless another message in flight has that.
    queue_id: str = attrs.field(init=False, default="")
    #: Failed attempts, those before it was deferred as well.
    failed_attempts: int = 0
    #: How many attempts were begun, this one included, if it was delivered before; 0 if they are not counted.
    begun_attempts: int = 0
    #: Whether no other message may run beside it.
    runs_alone: bool = False
    #: Where the broker has to keep it, if nothing else is left to do: the message with its notes, and for how many
    #: seconds; None is for good, as a dead letter.
    to_keep: tuple[IncomingMessage, float | None] | None = None
    #: The error of its handlers, if it becomes a dead letter.
    error: BaseException | None = None
    #: Whether it was handled, or the broker keeps it elsewhere.
    is_done: bool = False
    #: When its attempt began, by `time.monotonic`, and in which thread it runs.
    begun: float = 0.0
    thread: int | None = None
    #: The next message of its key.
    next: InFlightMessage | None = None

    @classmethod
    def of(cls, delivery: Delivery) -> InFlightMessage:
        """Make one of a delivery. Nothing in its message can be trusted."""
        message = delivery.message
        attributes = message.attributes
        identity = f"{attributes.get('source', '')} {attributes.get('id', '')}"
        if identity == " " or not is_key(identity):
            # Its attributes are in its body, or no attribute could identify it.
            named = f"{identity} {message.topic} {message.key}".encode(errors="surrogatepass")
            identity = f"blake2b {hashlib.blake2b(named + message.body, digest_size=32).hexdigest()}"
        key = None if message.key is None else (message.topic, message.key)
        return cls(delivery, key, identity, number_in(message.notes.get("attempts")))

    @property
    def type(self) -> str:
        """The event type that its message claims to have."""
        return self.delivery.message.attributes.get("type", "")


class KeyedQueue:
    """
    The messages in flight of one consumer. It hands out one message of each key at a time, in order.

    A message that waits for its next attempt holds up its key and no other key. Safe from any thread.
    """

    def __init__(self, limit: int) -> None:
        """Take `limit` messages at most."""
        self._limit = limit
        #: Enough acks, or enough free places, to be worth a call to the broker while threads have work.
        self.enough: int = max(1, min(_ACKS, limit // 4))
        #: Deliveries that are done: the receiver acks them.
        self.done_deliveries: deque[Delivery] = deque()
        #: Wakes the receiver: acks are due, or it was interrupted.
        self.wakeup: threading.Event = threading.Event()
        self._lock = threading.Lock()
        # The last message of each key.
        self._last: dict[Key, InFlightMessage] = {}
        # Messages that may run now, and those that wait until a moment.
        self._ready: deque[InFlightMessage] = deque()
        self._later: list[tuple[float, int, InFlightMessage]] = []
        self._numbers = itertools.count()
        self._running: dict[int, InFlightMessage] = {}
        self._by_id: dict[str, InFlightMessage] = {}
        self._done_late: dict[str, None] = {}
        self._paused_until = 0.0
        self._has_one_alone = False
        self._is_closed = False
        #: When a message was handed out last, by `time.monotonic`.
        self.last_get: float = 0.0

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def room(self) -> int:
        """How many messages it takes now."""
        return self._limit - len(self._by_id)

    @property
    def ready(self) -> int:
        """How many messages could run now, if there were threads for all."""
        return len(self._ready)

    def put(self, items: Iterable[InFlightMessage]) -> list[Delivery]:
        """Add messages; returns the deliveries of those that were done meanwhile, for the caller to ack."""
        with self._lock:
            return [item.delivery for item in items if not self._put(item)]

    def get(self, limit: int, rank: Callable[[InFlightMessage], Any] | None = None) -> InFlightMessage | None:
        """
        Hand out the next message; None if there is none, or if `limit` messages run already.

        With `rank` it is the first one of the lowest rank.
        """
        with self._lock:
            if self._later:
                self._wake_due()
            if self._is_closed or len(self._running) >= limit or self._has_one_alone:
                return None
            if self._paused_until and time.monotonic() < self._paused_until:
                return None
            item = self._next(rank)
            if item is None:
                return None
            if item.runs_alone:
                if self._running:
                    return None
                self._has_one_alone = True
            if rank is None:
                self._ready.popleft()
            else:
                self._ready.remove(item)
            self._running[id(item)] = item
            self.last_get = item.begun = time.monotonic()
            return item

    def message_done(self, item: InFlightMessage) -> None:
        """Remove a message that is done, and have it acked: the next one of its key may run."""
        with self._lock:
            if item.is_done and item.delivery.is_stale:
                self._remember(item.identity)
            if item.next is not None:
                self._ready.append(item.next)
            elif item.key is not None:
                del self._last[item.key]
            # Before it counts as not running: a receiver that ends acks what is done and then leaves.
            self.done_deliveries.append(item.delivery)
            self._leave(item)
            self._by_id.pop(item.queue_id, None)
        if self.is_worth_acking() and not self.wakeup.is_set():
            self.wakeup.set()

    def schedule_retry(self, item: InFlightMessage, delay: float) -> None:
        """Take a message back, to hand it out again after `delay` seconds; its key waits for it."""
        with self._lock:
            self._leave(item)
            if delay > 0:
                heapq.heappush(self._later, (time.monotonic() + delay, next(self._numbers), item))
            else:
                self._ready.append(item)

    def pause(self, seconds: float) -> None:
        """Hand out nothing for so many seconds."""
        with self._lock:
            self._paused_until = time.monotonic() + seconds

    def resume(self) -> None:
        """Hand out everything now, whatever delay it has."""
        with self._lock:
            self._paused_until = 0.0
            while self._later:
                self._ready.append(heapq.heappop(self._later)[2])

    def has_work(self, limit: int) -> bool:
        """Tell whether `get` could hand out a message now, if `limit` messages may run."""
        with self._lock:
            now = time.monotonic()
            is_due = bool(self._ready) or bool(self._later and self._later[0][0] <= now)
            return is_due and now >= self._paused_until and not self._is_closed and len(self._running) < limit

    def is_idle(self) -> bool:
        """Tell whether nothing runs and nothing could: it is empty, or everything waits for its next attempt."""
        return not self._running and not self.has_work(1)

    def is_worth_acking(self) -> bool:
        """Tell whether enough messages are done for the receiver to ack: one, if threads have nothing left to do."""
        done = len(self.done_deliveries)
        return done >= self.enough or (done > 0 and (self._is_closed or not self._ready))

    def close(self) -> None:
        """Hand out nothing more. What runs may finish."""
        with self._lock:
            self._is_closed = True

    def running(self) -> list[InFlightMessage]:
        """Return the messages that were handed out and are not done."""
        with self._lock:
            return list(self._running.values())

    def _next(self, rank: Callable[[InFlightMessage], Any] | None) -> InFlightMessage | None:
        """Return the next message that this consumer still owns; drops those it does not."""
        while self._ready:
            item = self._ready[0] if rank is None else min(self._ready, key=rank)
            if not item.delivery.is_stale:
                return item
            self._drop(item)
        return None

    def _drop(self, head: InFlightMessage) -> None:
        """
        Drop a message that another consumer has now, with the stale ones after it.

        They come again in their order. If only one of them were kept, it would run before those that were dropped.
        """
        self._ready.remove(head)
        item: InFlightMessage | None = head
        while item is not None and item.delivery.is_stale:
            self._by_id.pop(item.queue_id, None)
            item = item.next
        if item is not None:
            self._ready.append(item)
        elif head.key is not None:
            del self._last[head.key]

    def _put(self, item: InFlightMessage) -> bool:
        known = self._by_id.get(item.identity)
        if known is not None:
            if known.delivery.is_stale:
                # A redelivery of a message in flight: this is the delivery to settle now.
                known.delivery = item.delivery
                return True
            # A copy: it waits for its turn.
            item.queue_id = f"{item.identity} {next(self._numbers)}"
        elif self._done_late and item.delivery.redeliveries and item.identity in self._done_late:
            del self._done_late[item.identity]
            return False
        item.queue_id = item.queue_id or item.identity
        self._by_id[item.queue_id] = item
        if item.key is not None:
            before = self._last.get(item.key)
            self._last[item.key] = item
            if before is not None:
                before.next = item
                return True
        self._ready.append(item)
        return True

    def _leave(self, item: InFlightMessage) -> None:
        self._running.pop(id(item), None)
        item.thread = None
        if item.runs_alone:
            self._has_one_alone = False

    def _remember(self, identity: str) -> None:
        self._done_late[identity] = None
        if len(self._done_late) > _REMEMBERED:
            del self._done_late[next(iter(self._done_late))]

    def _wake_due(self) -> None:
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self._ready.append(heapq.heappop(self._later)[2])


def number_in(text: str | None) -> int:
    """Read a number from a note, which any sender may have written; 0 if it is none."""
    if text is None or not (text.isascii() and text.isdigit()):
        return 0
    return min(int(text[:7]), _MOST_ATTEMPTS)
