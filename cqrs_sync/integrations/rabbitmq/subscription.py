"""One message that was received, and is to be settled."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from pika.channel import Channel
from pika.connection import Parameters

from cqrs_sync.broker import Delivery, IncomingMessage, Subscription
from cqrs_sync.errors import BrokerUnavailable, Closed, DeliveryError
from cqrs_sync.integrations.rabbitmq.amqp import Answers, method_in, properties_in
from cqrs_sync.integrations.rabbitmq.connection import CAN_EMIT, Connection, Link, Watch
from cqrs_sync.integrations.rabbitmq.messages import incoming, redeliveries
from cqrs_sync.integrations.rabbitmq.topology import Place
from cqrs_sync.lifecycle import close_at_exit, reset_in_child


class RabbitMQDelivery:
    """One message of a queue."""

    __slots__ = ("_subscription", "channel", "message", "origin", "redeliveries", "tag")

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


logger = logging.getLogger(__name__)

#: Seconds an iteration waits before it looks again.
_LOOK = 1.0
#: Seconds that leaving the interpreter may take longer for one subscription.
_EXIT = 1.0
#: Seconds of silence after which a connection is given up; the heartbeat alone would take twice its own time.
_PATIENCE = 10.0
#: Seconds that answers wait for more of them, unless they are most of what may be held.
_GATHER = 0.002

#: Where it arrived, and its method, properties and body, as bytes or as pika's.
Arrived = tuple[Channel, Any, Any, bytes]


class RabbitMQSubscription(Subscription):
    """
    The deliveries of one subscriber, for one thread; whoever opened it closes it.

    The queue is durable and outlives the subscription: messages wait in it. After an
    outage the subscription goes on by itself, and what was not settled comes again.
    `places` are made whenever it connects.
    """

    def __init__(
        self, parameters: Parameters, queue: str, places: Sequence[Place], *, prefetch: int, aside: str
    ) -> None:
        self.queue = queue
        self._places = places
        self._prefetch = prefetch
        self._aside = aside
        self._link = Link(parameters, self, "cqrs-sync-rabbitmq-subscription")
        self._watch = Watch(self._link, _PATIENCE, lambda: self._closed is None)
        self._channel: Channel | None = None
        self._arrived: deque[Arrived] = deque()
        self._given: deque[tuple[RabbitMQDelivery, bool]] = deque()
        self._answers = Answers()
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
        # Only this thread takes from it; the I/O thread may clear it meanwhile.
        if self._closed is None and self._arrived:
            with contextlib.suppress(IndexError):
                return self._delivery(self._arrived.popleft())
        if not self._link.ready:
            self._link.wake(self._link.ensure)
        with self._changed:
            self._changed.wait_for(
                lambda: self._arrived or self._closed is not None or self._refusal is not None, timeout
            )
            if self._closed is not None:
                raise Closed(self._closed)
            if self._arrived:
                return self._delivery(self._arrived.popleft())
            self._check()
            return None

    def keep_alive(self) -> None:
        """Look whether it still receives; the I/O thread does all that keeps it alive."""
        if not self._link.ready:
            self._link.wake(self._link.ensure)
        with self._changed:
            if self._closed is not None:
                raise Closed(self._closed)
            self._check()

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
        self._link.wake(self._answer)
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
        self._given.append((delivery, done))
        if not self._answering and self._closed is None:
            self._answering = True
            self._link.wake(self._answer_soon)

    # What follows runs on the I/O thread.

    def opened(self, connection: Connection) -> None:
        """Take its deliveries."""
        connection.receiver = self

    def set_up(self, channel: Channel) -> None:
        """Make the places and ask for messages; pika sends each step when the one before is answered."""
        self._channel, self._answers = channel, Answers()
        channel.add_on_cancel_callback(self._on_cancelled)
        for place in self._places:
            place.declare(channel, _nothing)
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
        self._watch.start()

    def take(self, method: bytes, header: bytes, body: bytes) -> None:
        """Keep a delivery until somebody receives it."""
        if self._channel is not None:
            self._arrived.append((self._channel, method, header, body))

    def taken(self) -> None:
        """Wake whoever waits, once for all that has arrived."""
        if self._arrived:
            with self._changed:
                self._changed.notify_all()

    def _on_message(self, channel: Channel, method: Any, properties: Any, body: bytes) -> None:
        """Keep what pika has decoded, as it is too large or came in pieces."""
        self._arrived.append((channel, method, properties, body))
        self.taken()

    def _on_cancelled(self, _: Any) -> None:
        """Start again with a new channel: somebody deleted the queue, or a delivery was held too long."""
        logger.warning("RabbitMQ cancelled the subscription of %s: it starts again, as after a deletion", self.queue)
        # It may be closing already, as the connection is.
        if self._channel is not None and self._channel.is_open:
            self._channel.close()

    def _answer_soon(self) -> None:
        if len(self._given) * 2 >= self._prefetch:
            self._answer()
        else:
            self._link.later(_GATHER, self._answer)

    def _answer(self) -> None:
        self._answering = False
        given, channel = self._given, self._channel
        answers: list[tuple[int, bool]] = []
        for _ in range(len(given)):
            delivery, done = given.popleft()
            # The tags of a channel mean nothing to the next one; what was lost with it comes again.
            if delivery.channel is channel:
                answers.append((delivery.tag, done))
        if channel is None or not channel.is_open or self._link.connection is None:
            return
        if CAN_EMIT:
            self._link.connection.emit(self._answers.encode(answers))
            return
        for tag, done in answers:
            channel.basic_ack(tag) if done else channel.basic_nack(tag)

    def _delivery(self, arrived: Arrived) -> RabbitMQDelivery:
        """Decode what was received, in the thread that receives it."""
        channel, method, properties, body = arrived
        if isinstance(method, bytes):
            method, properties = method_in(method), properties_in(properties)
        message = incoming(method, properties, body, self._aside)
        return RabbitMQDelivery(message, self, channel, method.delivery_tag, redeliveries(method, properties))

    def _check(self) -> None:
        if self._refusal is not None or not self._link.ready:
            raise self._trouble()

    def _trouble(self) -> BrokerUnavailable:
        refusal, self._refusal = self._refusal, None
        error = BrokerUnavailable(str(refusal or self._link.trouble or f"no answer (RabbitMQ at {self._link.address})"))
        error.__cause__ = None if refusal is None else refusal.__cause__
        return error


def _nothing(_: Any) -> None:
    """Wait for the answer, as pika does where it is given a callback."""
