"""What is in hand: of each key one message at a time, in the order they came."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import attrs

from cqrs_sync.broker import Delivery, IncomingMessage

#: What keeps order among its messages; None is order of no kind.
Key: TypeAlias = "tuple[str, str] | None"


#: Messages that were done after their delivery had lapsed, and may come once more: so many are remembered.
_REMEMBERED = 1000


@attrs.define(eq=False)
class InFlightMessage:
    """A message in hand."""

    delivery: Delivery
    key: Key
    #: What names it, wherever it comes from.
    identity: str
    #: What it is kept under here: its name, unless another one in hand has that.
    place: str = attrs.field(init=False, default="")
    #: Attempts that failed, those before it was set aside as well.
    attempts: int = 0
    #: How often it was begun, this time included, where it was delivered before; 0 where it was not counted.
    begun_before: int = 0
    #: Nothing else is to run beside it.
    is_alone: bool = False
    #: Setting it aside, where that is all there is left to do.
    aside: tuple[IncomingMessage, float | None] | None = None
    #: What its handlers have raised, where it is to be a dead letter.
    error: BaseException | None = None
    #: It was handled, or set aside.
    is_done: bool = False
    #: When it was begun, by `time.monotonic`, and by which thread.
    begun: float = 0.0
    thread: int | None = None
    #: The next one of its key.
    behind: InFlightMessage | None = None

    @property
    def type(self) -> str:
        """What its message says it is."""
        return self.delivery.message.attributes.get("type", "")


class KeyedQueue:
    """
    Hands messages to whoever has time: of each key the next one when the one before is done.

    A message that is to wait holds up its key and no other. `settle` is called with the delivery of each
    message that is done, under the lock: it must not wait.
    """

    def __init__(self, settle: Callable[[Delivery], object]) -> None:
        self._settle = settle
        self._lock = threading.Lock()
        # The last one of each key.
        self._last: dict[Key, InFlightMessage] = {}
        # Messages at the head of their queue that may be taken, and those that wait until a moment.
        self._ready: deque[InFlightMessage] = deque()
        self._later: list[tuple[float, int, InFlightMessage]] = []
        self._numbers = itertools.count()
        self._running: dict[int, InFlightMessage] = {}
        self._by_place: dict[str, InFlightMessage] = {}
        self._done_late: dict[str, None] = {}
        self._held_until = 0.0
        self._has_one_alone = False
        self._is_closed = False
        #: When something was taken last, by `time.monotonic`.
        self.taken_at = 0.0

    def __len__(self) -> int:
        return len(self._by_place)

    @property
    def ready(self) -> int:
        """How many may be taken now, if there were room."""
        return len(self._ready)

    def put(self, items: Iterable[InFlightMessage]) -> list[Delivery]:
        """Take messages in hand; returns the deliveries of those that were done meanwhile: they are to be settled."""
        with self._lock:
            return [item.delivery for item in items if not self._put(item)]

    def take(self, most: int, doubts: Callable[[InFlightMessage], Any] | None = None) -> InFlightMessage | None:
        """
        Take the next message, None where there is none, or where `most` are out already.

        With `doubts` it is the first one of those of the lowest rank.
        """
        with self._lock:
            if self._later:
                self._wake_due()
            if self._is_closed or len(self._running) >= most or self._has_one_alone:
                return None
            if self._held_until and time.monotonic() < self._held_until:
                return None
            item = self._next(doubts)
            if item is None:
                return None
            if item.is_alone:
                if self._running:
                    return None
                self._has_one_alone = True
            if doubts is None:
                self._ready.popleft()
            else:
                self._ready.remove(item)
            self._running[id(item)] = item
            self.taken_at = item.begun = time.monotonic()
            return item

    def done(self, item: InFlightMessage) -> None:
        """Let a message be settled, and let go of it: the next one of its key may be taken."""
        with self._lock:
            if item.is_done and item.delivery.lapsed:
                self._remember(item.identity)
            if item.behind is not None:
                self._ready.append(item.behind)
            elif item.key is not None:
                del self._last[item.key]
            # Before it counts as out of hand: whoever waits for that leaves then.
            self._settle(item.delivery)
            self._leave(item)
            self._by_place.pop(item.place, None)

    def again(self, item: InFlightMessage, pause: float) -> None:
        """Give a message back, to be taken again after `pause` seconds; its key waits for it."""
        with self._lock:
            self._leave(item)
            if pause > 0:
                heapq.heappush(self._later, (time.monotonic() + pause, next(self._numbers), item))
            else:
                self._ready.append(item)

    def hold(self, pause: float) -> None:
        """Hand out nothing for so many seconds."""
        with self._lock:
            self._held_until = time.monotonic() + pause

    def hurry(self) -> None:
        """Let nothing wait any longer."""
        with self._lock:
            self._held_until = 0.0
            while self._later:
                self._ready.append(heapq.heappop(self._later)[2])

    def may_take(self, most: int) -> bool:
        """Tell whether something could be taken now, where `most` may be out at a time."""
        with self._lock:
            now = time.monotonic()
            is_due = bool(self._ready) or bool(self._later and self._later[0][0] <= now)
            return is_due and now >= self._held_until and not self._is_closed and len(self._running) < most

    def waits(self) -> bool:
        """Tell whether nothing runs, and nothing could: all that is in hand is to wait for its time."""
        return not self._running and not self.may_take(1)

    def close(self) -> None:
        """Hand out nothing more; what runs goes on."""
        with self._lock:
            self._is_closed = True

    def running(self) -> list[InFlightMessage]:
        """Return what was taken and is not done."""
        with self._lock:
            return list(self._running.values())

    def _next(self, doubts: Callable[[InFlightMessage], Any] | None) -> InFlightMessage | None:
        """Return the next message that is still ours; lets go of those that are not."""
        while self._ready:
            item = self._ready[0] if doubts is None else min(self._ready, key=doubts)
            if not item.delivery.lapsed:
                return item
            self._drop(item)
        return None

    def _drop(self, head: InFlightMessage) -> None:
        """
        Let go of a message that somebody else has now, and of those behind it with it.

        They come again in their order. One that was kept would be in front of those that were not.
        """
        self._ready.remove(head)
        item: InFlightMessage | None = head
        while item is not None and item.delivery.lapsed:
            self._by_place.pop(item.place, None)
            item = item.behind
        if item is not None:
            self._ready.append(item)
        elif head.key is not None:
            del self._last[head.key]

    def _put(self, item: InFlightMessage) -> bool:
        known = self._by_place.get(item.identity)
        if known is not None:
            if known.delivery.lapsed:
                # It was delivered again while it is in hand: this is the delivery to settle now.
                known.delivery = item.delivery
                return True
            # A copy: it has to wait for its turn like any other.
            item.place = f"{item.identity} {next(self._numbers)}"
        elif self._done_late and item.delivery.redeliveries and item.identity in self._done_late:
            del self._done_late[item.identity]
            return False
        item.place = item.place or item.identity
        self._by_place[item.place] = item
        if item.key is not None:
            before = self._last.get(item.key)
            self._last[item.key] = item
            if before is not None:
                before.behind = item
                return True
        self._ready.append(item)
        return True

    def _leave(self, item: InFlightMessage) -> None:
        self._running.pop(id(item), None)
        item.thread = None
        if item.is_alone:
            self._has_one_alone = False

    def _remember(self, identity: str) -> None:
        self._done_late[identity] = None
        if len(self._done_late) > _REMEMBERED:
            del self._done_late[next(iter(self._done_late))]

    def _wake_due(self) -> None:
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self._ready.append(heapq.heappop(self._later)[2])
