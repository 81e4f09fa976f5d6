"""Receiving from a broker in memory."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import cast

import attrs

from cqrs_sync.broker import Delivery, IncomingMessage, Subscription


@attrs.define(eq=False)
class Places:
    """Where the messages of a group are; under the broker's lock."""

    #: By topic.
    queues: dict[str, deque[IncomingMessage]] = attrs.field(factory=dict)
    #: With the moment they are due, by `time.monotonic`, earliest first.
    delayed: list[tuple[float, IncomingMessage]] = attrs.field(factory=list)
    #: Those whose time is over, of whatever topic.
    again: deque[IncomingMessage] = attrs.field(factory=deque)
    dead: deque[IncomingMessage] = attrs.field(factory=deque)
    #: How often each message was taken and given back, by identity.
    returned: Counter[int] = attrs.field(factory=Counter)
    #: Who has messages of a key in hand.
    holders: dict[tuple[str, str], MemorySubscription] = attrs.field(factory=dict)


class MemorySubscription(Subscription):
    """The deliveries of one subscriber of a MemoryBroker."""

    def __init__(
        self, changed: threading.Condition, places: Places, topics: Sequence[str], name: str, *, ordered: bool
    ) -> None:
        self.name = name
        self._changed = changed
        self._places = places
        self._topics = topics
        self._ordered = ordered
        self._unsettled: dict[int, MemoryDelivery] = {}

    def receive(self, timeout: float) -> Delivery | None:
        """Wait at most `timeout` seconds for the next message; None where none came."""
        until = time.monotonic() + timeout
        with self._changed:
            while True:
                now = time.monotonic()
                for queue, message in self._candidates(now):
                    return self._hand_out(message, queue)
                wait = until - now
                if self._places.delayed:
                    wait = min(wait, max(0.0, self._places.delayed[0][0] - now))
                if until <= now:
                    return None
                self._changed.wait(wait)

    def close(self) -> None:
        """Give back what was not settled."""
        with self._changed:
            for delivery in reversed(list(self._unsettled.values())):
                self._give_back(delivery)
            self._unsettled.clear()
            self._changed.notify_all()

    def settle(self, delivery: MemoryDelivery, *, done: bool) -> None:
        """Settle a delivery once; a second time changes nothing."""
        with self._changed:
            if self._unsettled.pop(id(delivery), None) is None:
                return
            if done:
                self._places.returned.pop(id(delivery.message), None)
                self._let_go(delivery.message)
            else:
                self._give_back(delivery)
            self._changed.notify_all()

    def holds(self, delivery: MemoryDelivery) -> bool:
        """Tell whether a delivery is still to be settled."""
        return id(delivery) in self._unsettled

    def _candidates(self, now: float) -> Iterator[tuple[deque[IncomingMessage], IncomingMessage]]:
        """Yield what may be handed out: of each key the first one, and only to whom has its others."""
        delayed = self._places.delayed
        while delayed and delayed[0][0] <= now:
            self._places.again.append(delayed.pop(0)[1])
        for queue in (*(self._places.queues.get(topic, ()) for topic in self._topics), self._places.again):
            passed: set[str | None] = set()
            for message in queue:
                if message.key not in passed and self._may_have(message):
                    yield cast("deque[IncomingMessage]", queue), message
                passed.add(message.key)

    def _may_have(self, message: IncomingMessage) -> bool:
        if not self._ordered or message.key is None:
            return True
        return self._places.holders.get((message.topic, message.key), self) is self

    def _hand_out(self, message: IncomingMessage, queue: deque[IncomingMessage]) -> Delivery:
        for place, each in enumerate(queue):
            if each is message:
                del queue[place]
                break
        if self._ordered and message.key is not None:
            self._places.holders[message.topic, message.key] = self
        delivery = MemoryDelivery(message, queue, self, self._places.returned[id(message)])
        self._unsettled[id(delivery)] = delivery
        return delivery

    def _let_go(self, message: IncomingMessage) -> None:
        """Let others have messages of a key of which none is in hand here any more."""
        if message.key is not None and not any(
            (each.message.topic, each.message.key) == (message.topic, message.key) for each in self._unsettled.values()
        ):
            self._places.holders.pop((message.topic, message.key), None)

    def _give_back(self, delivery: MemoryDelivery) -> None:
        self._places.returned[id(delivery.message)] += 1
        delivery.queue.appendleft(delivery.message)
        if delivery.message.key is not None:
            self._places.holders.pop((delivery.message.topic, delivery.message.key), None)


class MemoryDelivery:
    """One message taken from a MemoryBroker."""

    def __init__(
        self, message: IncomingMessage, queue: deque[IncomingMessage], subscription: MemorySubscription, returned: int
    ) -> None:
        self.message = message
        self.queue = queue
        self.redeliveries = returned
        self._subscription = subscription

    @property
    def origin(self) -> str:
        """The group it was received by."""
        return self._subscription.name

    @property
    def lapsed(self) -> bool:
        """Whether it was settled, or given back when its subscription was closed."""
        return not self._subscription.holds(self)

    def ack(self) -> None:
        """It is done: never deliver it again."""
        self._subscription.settle(self, done=True)

    def nack(self) -> None:
        """It is not done: deliver it again."""
        self._subscription.settle(self, done=False)
