"""Receiving from a durable queue; an I/O thread of its own keeps heartbeats while handlers work."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pika.channel import Channel
from pika.connection import Parameters

from cqrs_sync.broker import Delivery, IncomingMessage, Subscription
from cqrs_sync.errors import BrokerUnavailable, Closed, DeliveryError
from cqrs_sync.integrations.rabbitmq.connection import Connection
from cqrs_sync.integrations.rabbitmq.link import Link
from cqrs_sync.lifecycle import close_at_exit, reset_in_child

logger = logging.getLogger(__name__)

#: Seconds an iteration waits before it looks again.
_LOOK = 1.0
#: Seconds that leaving the interpreter may take longer for one subscription.
_EXIT = 1.0
_PREFIX = "ce-"


class RabbitMQSubscription(Subscription):
    """
    The deliveries of one subscriber, for one thread; whoever opened it closes it.

    The queue is durable and outlives the subscription: messages wait in it. After an
    outage the subscription goes on by itself, and what was not settled comes again.
    """

    def __init__(
        self,
        parameters: Parameters,
        exchange: str,
        topics: Sequence[str],
        queue: str,
        *,
        declare: bool,
        prefetch: int,
        queue_arguments: Mapping[str, Any],
    ) -> None:
        self._exchange = exchange
        self._topics = topics
        self.queue = queue
        self._declare = declare
        self._prefetch = prefetch
        self._queue_arguments = dict(queue_arguments)
        self._link = Link(parameters, self, "cqrs-sync-rabbitmq-subscription")
        self._channel: Channel | None = None
        self._arrived: deque[RabbitMQDelivery] = deque()
        self._answers: deque[tuple[RabbitMQDelivery, bool]] = deque()
        self._answering = False
        self._refusal: DeliveryError | None = None
        self._closed: str | None = None
        self._changed = threading.Condition()
        reset_in_child(self)
        close_at_exit(self)

    def open(self, until: float) -> None:
        """Wait until messages are kept for this subscription. Raises BrokerUnavailable."""
        self._link.wake(self._link.ensure)
        with self._changed:
            self._changed.wait_for(
                lambda: self._link.ready or self._refusal is not None, max(0.0, until - time.monotonic())
            )
            if not self._link.ready:
                raise self._trouble()

    def receive(self, timeout: float) -> Delivery | None:
        """Wait at most `timeout` seconds for the next message; None where none came."""
        if not self._link.ready:
            self._link.wake(self._link.ensure)
        with self._changed:
            self._changed.wait_for(
                lambda: self._arrived or self._closed is not None or self._refusal is not None, timeout
            )
            if self._closed is not None:
                raise Closed(self._closed)
            if self._arrived:
                return self._arrived.popleft()
            if self._refusal is not None or not self._link.ready:
                raise self._trouble()
            return None

    def __iter__(self) -> Iterator[Delivery]:
        while True:
            try:
                delivery = self.receive(_LOOK)
            except Closed:
                return
            except BrokerUnavailable as error:
                logger.warning("nothing is received from %s: %s", self.queue, error)
                with self._changed:
                    self._changed.wait_for(lambda: self._closed is not None, _LOOK)
                continue
            if delivery is not None:
                yield delivery

    def close(self, timeout: float = 5.0) -> None:
        """Give back what was not settled; a second call does nothing."""
        with self._changed:
            if self._closed is not None:
                return
            self._closed = "this subscription is closed"
            self._changed.notify_all()
        # Answers that were given come before the goodbye: both run on the I/O thread, in this order.
        self._link.stop(time.monotonic() + timeout)

    def close_at_exit(self) -> None:
        """Close within a time that a leaving process can spare."""
        self.close(_EXIT)

    def reset_in_child(self) -> None:
        """Leave it to the parent."""
        self._changed = threading.Condition()
        if self._closed is None:
            self._closed = "this subscription belongs to the parent process: subscribe again in this one"
            self._link.disown()

    def holds(self, delivery: RabbitMQDelivery) -> bool:
        """Tell whether the broker still waits for the answer to a delivery."""
        return delivery.channel is self._channel and self._closed is None

    def settle(self, delivery: RabbitMQDelivery, *, done: bool) -> None:
        """Answer for a delivery soon."""
        self._answers.append((delivery, done))
        if not self._answering and self._closed is None:
            self._answering = True
            self._link.wake(self._answer)

    # What follows runs on the I/O thread.

    def opened(self, connection: Connection) -> None:
        """Nothing to do."""

    def set_up(self, channel: Channel) -> None:
        """Make the queue, bind it and ask for its messages; pika sends each step when the one before is answered."""
        self._channel = channel
        channel.add_on_cancel_callback(self._on_cancelled)
        if self._declare:
            channel.exchange_declare(self._exchange, exchange_type="topic", durable=True, callback=_nothing)
        channel.queue_declare(self.queue, durable=True, arguments=self._queue_arguments, callback=_nothing)
        for topic in self._topics:
            channel.queue_bind(self.queue, self._exchange, topic, callback=_nothing)
        channel.basic_qos(prefetch_count=self._prefetch, callback=_nothing)
        channel.basic_consume(self.queue, self._on_message, callback=self._on_consuming)

    def lost(self, error: Exception) -> None:
        """Drop what nobody has taken yet: the broker delivers it again."""
        del error
        with self._changed:
            self._channel = None
            self._arrived.clear()

    def refused(self, error: DeliveryError) -> None:
        """Tell whoever waits."""
        with self._changed:
            self._refusal = error
            self._changed.notify_all()

    def wanted(self) -> bool:
        """As long as it is open."""
        return self._closed is None

    def _on_consuming(self, _: Any) -> None:
        with self._changed:
            self._link.is_ready()
            self._refusal = None
            self._changed.notify_all()

    def _on_message(self, channel: Channel, method: Any, properties: Any, body: bytes) -> None:
        delivery = RabbitMQDelivery(
            _incoming(method, properties, body), self, channel, method.delivery_tag, _redeliveries(method, properties)
        )
        with self._changed:
            self._arrived.append(delivery)
            self._changed.notify_all()

    def _on_cancelled(self, _: Any) -> None:
        """Start again with a new channel: somebody deleted the queue."""
        logger.warning("RabbitMQ cancelled the subscription of %s: its queue was deleted", self.queue)
        if self._channel is not None:
            self._channel.close()

    def _answer(self) -> None:
        self._answering = False
        while self._answers:
            delivery, done = self._answers.popleft()
            channel = delivery.channel
            # The tags of a channel mean nothing to the next one; what was lost with it comes again.
            if channel is not self._channel or channel is None or not channel.is_open:
                continue
            if done:
                channel.basic_ack(delivery.tag)
            else:
                channel.basic_nack(delivery.tag, requeue=True)

    def _trouble(self) -> BrokerUnavailable:
        refusal, self._refusal = self._refusal, None
        return BrokerUnavailable(str(refusal or self._link.trouble or f"no answer (RabbitMQ at {self._link.address})"))


class RabbitMQDelivery:
    """One message of a queue."""

    def __init__(
        self,
        message: IncomingMessage,
        subscription: RabbitMQSubscription,
        channel: Channel,
        tag: int,
        redeliveries: int,
    ) -> None:
        self.message = message
        self.channel = channel
        self.tag = tag
        self.redeliveries = redeliveries
        self.origin = subscription.queue
        self._subscription: RabbitMQSubscription | None = subscription

    @property
    def lapsed(self) -> bool:
        """Whether it was settled, or its channel is gone: then it comes again."""
        return self._subscription is None or not self._subscription.holds(self)

    def ack(self) -> None:
        """It is done: never deliver it again."""
        self._settle(done=True)

    def nack(self) -> None:
        """It is not done: deliver it again."""
        self._settle(done=False)

    def _settle(self, *, done: bool) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.settle(self, done=done)


def _incoming(method: Any, properties: Any, body: bytes) -> IncomingMessage:
    """Take what CloudEvents knows out of a message; whoever sent it may have put anything in."""
    attributes = {
        name[len(_PREFIX) :].lower(): value
        for name, value in (properties.headers or {}).items()
        if isinstance(name, str) and name.lower().startswith(_PREFIX) and isinstance(value, str)
    }
    topic, content_type = method.routing_key, properties.content_type
    return IncomingMessage(
        topic=topic if isinstance(topic, str) else topic.decode(errors="replace"),
        body=body,
        content_type=content_type if isinstance(content_type, str) else None,
        key=attributes.get("partitionkey"),
        attributes=attributes,
    )


def _redeliveries(method: Any, properties: Any) -> int:
    """Return how often it was delivered before: quorum queues count, others tell whether it was."""
    counted = (properties.headers or {}).get("x-delivery-count", 0)
    return max(counted if isinstance(counted, int) else 0, int(method.redelivered))


def _nothing(_: Any) -> None:
    """Wait for the answer, as pika does where it is given a callback."""
