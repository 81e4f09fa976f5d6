"""A broker in memory."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

from cqrs_sync.broker import Delivery, IncomingMessage, OutgoingMessage, Subscription
from cqrs_sync.errors import Closed, DeliveryError, MessageRejected, PublishFailed
from cqrs_sync.lifecycle import reset_in_child


class MemoryBroker:
    """
    A broker for tests, demos and single processes: messages live as long as the process.

    `published` holds every message in order, the newest `keep` of them. `fail_with`
    may be set to an error that the next publishes fail with. Topics exist when
    `topics` is None, else only those named: others are refused, as a real broker does.
    """

    def __init__(self, *, topics: Sequence[str] | None = None, max_bytes: int = 1_048_576, keep: int = 100_000) -> None:
        self.published: deque[OutgoingMessage] = deque(maxlen=keep)
        self.fail_with: DeliveryError | None = None
        self._topics = None if topics is None else frozenset(topics)
        self._max_bytes = max_bytes
        self._groups: dict[tuple[str, str], deque[IncomingMessage]] = {}
        self._closed = False
        self._changed = threading.Condition()
        reset_in_child(self)

    def publish(self, messages: Sequence[OutgoingMessage], /, *, timeout: float | None = None) -> None:
        """Publish a batch; messages are confirmed as they are taken in."""
        del timeout
        failures: list[tuple[OutgoingMessage, DeliveryError]] = []
        with self._changed:
            if self._closed:
                raise Closed("this MemoryBroker is closed")
            for message in messages:
                error = self._refusal(message)
                if error is None:
                    self._take_in(message)
                else:
                    failures.append((message, error))
            self._changed.notify_all()
        if failures:
            raise PublishFailed(failures)

    def subscribe(self, *topics: str, group: str) -> MemorySubscription:
        """Receive what is published to these topics from now on."""
        with self._changed:
            if self._closed:
                raise Closed("this MemoryBroker is closed")
            queues = [self._groups.setdefault((topic, group), deque()) for topic in topics]
        return MemorySubscription(self._changed, queues)

    def close(self, timeout: float = 5.0) -> None:
        """Refuse further messages."""
        del timeout
        with self._changed:
            self._closed = True

    def reset_in_child(self) -> None:
        """Replace the lock, which another thread of the parent may have held."""
        self._changed = threading.Condition()

    def _refusal(self, message: OutgoingMessage) -> DeliveryError | None:
        if self.fail_with is not None:
            return self.fail_with
        if self._topics is not None and message.topic not in self._topics:
            return MessageRejected(f"there is no topic {message.topic!r}")
        if len(message.body) > self._max_bytes:
            return MessageRejected(f"the body has {len(message.body)} bytes, {self._max_bytes} are allowed")
        return None

    def _take_in(self, message: OutgoingMessage) -> None:
        self.published.append(message)
        incoming = IncomingMessage(
            topic=message.topic,
            body=message.body,
            content_type=message.content_type,
            key=message.key,
            attributes=dict(message.attributes),
        )
        for (topic, _), queue in self._groups.items():
            if topic == message.topic:
                queue.append(incoming)


class MemorySubscription(Subscription):
    """The deliveries of one subscriber of a MemoryBroker."""

    def __init__(self, changed: threading.Condition, queues: list[deque[IncomingMessage]]) -> None:
        self._changed = changed
        self._queues = queues
        self._unsettled: dict[int, MemoryDelivery] = {}

    def receive(self, timeout: float) -> Delivery | None:
        """Wait at most `timeout` seconds for the next message; None where none came."""
        until = time.monotonic() + timeout
        with self._changed:
            while True:
                for queue in self._queues:
                    if queue:
                        delivery = MemoryDelivery(queue.popleft(), queue, self)
                        self._unsettled[id(delivery)] = delivery
                        return delivery
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    return None

    def close(self) -> None:
        """Give back what was not settled."""
        with self._changed:
            for delivery in reversed(list(self._unsettled.values())):
                delivery.give_back()
            self._unsettled.clear()
            self._changed.notify_all()

    def settle(self, delivery: MemoryDelivery, *, done: bool) -> None:
        """Settle a delivery once; a second time changes nothing."""
        with self._changed:
            if self._unsettled.pop(id(delivery), None) is not None and not done:
                delivery.give_back()
                self._changed.notify_all()


class MemoryDelivery:
    """One message taken from a MemoryBroker."""

    def __init__(
        self, message: IncomingMessage, queue: deque[IncomingMessage], subscription: MemorySubscription
    ) -> None:
        self.message = message
        self._queue = queue
        self._subscription = subscription

    def ack(self) -> None:
        """It is done: never deliver it again."""
        self._subscription.settle(self, done=True)

    def nack(self) -> None:
        """It is not done: deliver it again."""
        self._subscription.settle(self, done=False)

    def give_back(self) -> None:
        """Put the message back where it came from; under the broker's lock."""
        self._queue.appendleft(self.message)
