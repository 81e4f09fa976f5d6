"""Receiving from a durable queue, and settling what was received."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
from pika.channel import Channel
from pika.connection import Parameters

from cqrs_sync.broker import Delivery, IncomingMessage, Subscription
from cqrs_sync.errors import BrokerUnavailable, ClosedError, DeliveryError
from cqrs_sync.integrations.rabbitmq.amqp import AckEncoder, RawDelivery, decode_method, decode_properties
from cqrs_sync.integrations.rabbitmq.connection import CAN_EMIT, ConnectionThread, LivenessProbe, PikaConnection
from cqrs_sync.integrations.rabbitmq.messages import incoming_message, redelivery_count
from cqrs_sync.integrations.rabbitmq.topology import Declaration, ignore_answer
from cqrs_sync.lifecycle import close_at_exit, reset_in_child

logger: logging.Logger = logging.getLogger(__name__)

#: Seconds that an iteration waits for one delivery.
_ITERATION = 1.0
#: Seconds that closing may take when the interpreter exits.
_CLOSE_AT_EXIT = 1.0
#: Seconds of silence after which the connection is dropped: a heartbeat would need twice its own interval.
_SILENCE_TIMEOUT = 10.0
#: Seconds that acks wait for more of them, unless they are at least half of the prefetch.
_ACK_DELAY = 0.002

#: A delivery that was not received yet: its channel, method, properties and body, as bytes or as pika's.
Arrived = tuple[Channel, Any, Any, bytes]


@attrs.define(eq=False)
class RabbitMQDelivery:
    """A message from a queue."""

    message: IncomingMessage
    origin: str
    redeliveries: int
    channel: Channel
    tag: int
    #: None once it is settled.
    _subscription: RabbitMQSubscription | None

    @property
    def is_stale(self) -> bool:
        """Whether it is settled, or its channel is gone and RabbitMQ delivers it again."""
        return self._subscription is None or not self._subscription.is_open_delivery(self)

    def ack(self) -> None:
        """The message is done: do not deliver it again."""
        self._settle(done=True)

    def nack(self) -> None:
        """The message is not done: deliver it again."""
        self._settle(done=False)

    def _settle(self, *, done: bool) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.settle(self, done=done)


class RabbitMQSubscription(Subscription):
    """
    The deliveries of one queue, for one receiving thread. The caller that opened it closes it.

    The connection has a thread of its own, which answers heartbeats while handlers run. The queue is durable and
    outlives the subscription: messages wait in it. After an outage the subscription reconnects by itself, and
    RabbitMQ delivers unsettled messages again. Each new channel makes the `declarations` first.
    """

    def __init__(
        self, parameters: Parameters, queue: str, declarations: Sequence[Declaration], *, prefetch: int, aside: str
    ) -> None:
        self.queue = queue
        self._declarations = declarations
        self._prefetch = prefetch
        self._aside = aside
        self._thread = ConnectionThread(
            parameters, "cqrs-sync-rabbitmq-subscription", self, on_deliveries=self._on_deliveries
        )
        self._probe = LivenessProbe(self._thread, _SILENCE_TIMEOUT, self.needs_channel)
        self._connection: PikaConnection | None = None
        self._channel: Channel | None = None
        self._arrived: deque[Arrived] = deque()
        self._settled: deque[tuple[RabbitMQDelivery, bool]] = deque()
        self._acks = AckEncoder()
        self._settling = False
        self._refusal: DeliveryError | None = None
        #: Why it is closed.
        self._closed: str | None = None
        self._changed = threading.Condition()
        reset_in_child(self)
        close_at_exit(self)

    def open(self, timeout: float) -> None:
        """Wait at most `timeout` seconds until RabbitMQ delivers to this subscription. Raises BrokerUnavailable."""
        self._connect()
        with self._changed:
            self._changed.wait_for(lambda: self._thread.ready or self._refusal is not None, max(0.0, timeout))
            if not self._thread.ready:
                raise self._unavailable()

    def receive(self, timeout: float) -> Delivery | None:
        """Wait at most `timeout` seconds for the next message; return None if none came."""
        deliveries = self.receive_many(1, timeout)
        return deliveries[0] if deliveries else None

    def receive_many(self, most: int, timeout: float) -> Sequence[Delivery]:
        """Wait at most `timeout` seconds for a message; return what has arrived by then, at most `most` of it."""
        self._connect()
        with self._changed:
            self._changed.wait_for(
                lambda: self._arrived or self._closed is not None or self._refusal is not None, timeout
            )
            if self._closed is not None or not self._arrived:
                self._check_ready()
                return ()
            arrived = [self._arrived.popleft() for _ in range(min(most, len(self._arrived)))]
        return [self._delivery(each) for each in arrived]

    def keep_alive(self) -> None:
        """Raise BrokerUnavailable if it does not receive. The connection thread does everything else."""
        self._connect()
        with self._changed:
            self._check_ready()

    def __iter__(self) -> Iterator[Delivery]:
        while True:
            try:
                delivery = self.receive(_ITERATION)
            except ClosedError:
                return
            except BrokerUnavailable as error:
                logger.warning("the subscription of %s receives nothing and tries again: %s", self.queue, error)
                with self._changed:
                    self._changed.wait_for(lambda: self._closed is not None, _ITERATION)
                continue
            if delivery is not None:
                yield delivery

    def close(self, timeout: float = 5.0) -> None:
        """Give unsettled messages back to the queue within `timeout` seconds. A second call does nothing."""
        with self._changed:
            if self._closed is not None:
                return
            self._closed = "this subscription is closed"
            self._changed.notify_all()
        # The connection thread sends the last acks before it closes the connection: callbacks keep their order.
        self._thread.call_soon(self._send_acks)
        self._thread.close(timeout)

    def close_at_exit(self) -> None:
        """Close within a time that does not delay the interpreter's exit."""
        self.close(_CLOSE_AT_EXIT)

    def reset_in_child(self) -> None:
        """Leave the subscription to the parent."""
        self._changed = threading.Condition()
        if self._closed is None:
            self._closed = "this subscription belongs to the parent process: subscribe again in this one"
            self._thread.leave_to_parent()

    def is_open_delivery(self, delivery: RabbitMQDelivery) -> bool:
        """Tell whether RabbitMQ still waits for an ack or nack of a delivery."""
        return delivery.channel is self._channel and self._closed is None

    def settle(self, delivery: RabbitMQDelivery, *, done: bool) -> None:
        """Ack or nack a delivery soon."""
        self._settled.append((delivery, done))
        if not self._settling and self._closed is None:
            self._settling = True
            self._thread.call_soon(self._send_acks_soon)

    # The connection thread calls everything below, up to `_delivery`.

    def on_connected(self, connection: PikaConnection) -> None:
        """Send acks on this connection from now on."""
        self._connection = connection

    def on_channel_open(self, channel: Channel) -> None:
        """Make the declarations and consume. pika sends each request after the answer to the one before."""
        self._channel, self._acks = channel, AckEncoder()
        channel.add_on_cancel_callback(self._on_cancelled)
        for declaration in self._declarations:
            declaration.declare(channel, ignore_answer)
        channel.basic_qos(prefetch_count=self._prefetch, callback=ignore_answer)
        channel.basic_consume(self.queue, self._on_message, callback=self._on_consuming)

    def on_channel_lost(self, error: Exception) -> None:
        """Drop deliveries that were not received: RabbitMQ delivers them again."""
        del error
        with self._changed:
            self._channel = None
            self._arrived.clear()

    def on_refused(self, error: DeliveryError) -> None:
        """Wake the receiving thread: it raises the error."""
        with self._changed:
            self._refusal = error
            self._changed.notify_all()

    def needs_channel(self) -> bool:
        """Tell whether the subscription is open."""
        return self._closed is None

    def _on_consuming(self, _: Any) -> None:
        with self._changed:
            self._thread.mark_ready()
            self._refusal = None
            self._changed.notify_all()
        self._probe.start()

    def _on_deliveries(self, deliveries: list[RawDelivery]) -> None:
        channel = self._channel
        if channel is not None:
            self._arrived.extend([(channel, method, header, body) for method, header, body in deliveries])
            with self._changed:
                self._changed.notify_all()

    def _on_message(self, channel: Channel, method: Any, properties: Any, body: bytes) -> None:
        """Take a delivery that pika has decoded, because it had several body frames or arrived in pieces."""
        self._arrived.append((channel, method, properties, body))
        with self._changed:
            self._changed.notify_all()

    def _on_cancelled(self, _: Any) -> None:
        """Open a new channel: the queue was deleted, or a delivery was unsettled for too long."""
        logger.warning(
            "RabbitMQ cancelled the subscription of %s, which starts again: was the queue deleted?", self.queue
        )
        # The channel closes already when the connection does.
        if self._channel is not None and self._channel.is_open:
            self._channel.close()

    def _send_acks_soon(self) -> None:
        if len(self._settled) * 2 >= self._prefetch:
            self._send_acks()
        else:
            self._thread.call_later(_ACK_DELAY, self._send_acks)

    def _send_acks(self) -> None:
        self._settling = False
        settled, channel = self._settled, self._channel
        outcomes: list[tuple[int, bool]] = []
        for _ in range(len(settled)):
            delivery, done = settled.popleft()
            # A tag is only valid on its own channel. Deliveries of a lost channel come again.
            if delivery.channel is channel:
                outcomes.append((delivery.tag, done))
        if channel is None or not channel.is_open or self._connection is None:
            return
        if CAN_EMIT:
            self._connection.emit(self._acks.encode(outcomes))
            return
        for tag, done in outcomes:
            channel.basic_ack(tag) if done else channel.basic_nack(tag)

    def _delivery(self, arrived: Arrived) -> RabbitMQDelivery:
        """Decode a delivery, in the receiving thread."""
        channel, method, properties, body = arrived
        if isinstance(method, bytes):
            method, properties = decode_method(method), decode_properties(properties)
        message = incoming_message(method, properties, body, self._aside)
        redeliveries = redelivery_count(method, properties)
        return RabbitMQDelivery(message, self.queue, redeliveries, channel, method.delivery_tag, self)

    def _connect(self) -> None:
        if not self._thread.ready:
            self._thread.call_soon(self._thread.connect)

    def _check_ready(self) -> None:
        if self._closed is not None:
            raise ClosedError(self._closed)
        if self._refusal is not None or not self._thread.ready:
            raise self._unavailable()

    def _unavailable(self) -> BrokerUnavailable:
        refusal, self._refusal = self._refusal, None
        text = str(refusal or self._thread.last_error or f"no answer (RabbitMQ at {self._thread.address})")
        error = BrokerUnavailable(text)
        error.__cause__ = None if refusal is None else refusal.__cause__
        return error
