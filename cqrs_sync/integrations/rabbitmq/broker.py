"""RabbitMQ as a message broker: publish with confirms, receive from durable queues."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pika.connection import Parameters

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.context import within
from cqrs_sync.errors import BrokerUnavailable, Closed, DeliveryError, PublishFailed
from cqrs_sync.integrations.rabbitmq.batch import Batch
from cqrs_sync.integrations.rabbitmq.frames import Encoder
from cqrs_sync.integrations.rabbitmq.publisher import Publisher
from cqrs_sync.integrations.rabbitmq.settings import address_of, parameters_of
from cqrs_sync.integrations.rabbitmq.subscription import RabbitMQSubscription
from cqrs_sync.lifecycle import close_at_exit, reset_in_child

#: What RabbitMQ 4 takes unless it is configured otherwise.
_MAX_BYTES = 16 * 1024 * 1024
#: The first of these is on its way while the next is encoded.
_BATCH_MESSAGES = 100
_BATCH_BYTES = 1024 * 1024
#: So much of a call is under way at a time: memory is bounded, and the broker never idle.
_UNDER_WAY = 10
_UNDER_WAY_BYTES = 8 * 1024 * 1024
#: Of the seconds `close` has, this share is kept for saying goodbye.
_GOODBYE = 0.2
#: Seconds that leaving the interpreter may take longer for one broker.
_EXIT = 2.0
#: Bytes of a name in AMQP.
_SHORT = 255

Failures = list[tuple[OutgoingMessage, DeliveryError]]


class RabbitMQBroker:
    """
    Publishes to a topic exchange of RabbitMQ, with the topic as the routing key.

    `publish` returns when the broker has confirmed every message and routed it to a
    queue at least (persistent, `mandatory`). One thread per process does the I/O; it
    starts with the first call, keeps heartbeats while nothing happens, and reconnects
    with back-off. A message under way when the connection broke is sent again, with the
    same id, as long as its caller waits: delivery is at least once, in order per caller.

    - `url_or_parameters`: `amqp://user:password@host:port/vhost`, `amqps://` for TLS
      with the system's certificates, both with pika's options (`?heartbeat=30`), or
      pika's `ConnectionParameters`, with `ssl_options` for certificates of your own.
    - `exchange`: a durable topic exchange, declared where it does not exist; with
      `declare=False` it has to exist and may be of any type.
    - `publish_timeout`: seconds a call may take at most where nobody says otherwise,
      connecting included. A nearer deadline of the context counts.
    - `max_bytes`: larger bodies are refused here; RabbitMQ has a limit of its own.
    - `prefetch`: messages a subscription holds that are not settled yet.
    - `queue_arguments`: of the queues that subscriptions declare, such as
      `{"x-queue-type": "quorum"}`, or `{"x-expires": 60_000}` for queues that go away by
      themselves; they cannot be changed for a queue that exists.
    """

    def __init__(
        self,
        url_or_parameters: str | Parameters,
        *,
        exchange: str = "cqrs",
        declare: bool = True,
        publish_timeout: float = 5.0,
        max_bytes: int = _MAX_BYTES,
        prefetch: int = 100,
        queue_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        if not exchange:
            raise ValueError("the exchange must have a name")
        if publish_timeout <= 0:
            raise ValueError(f"publish_timeout is a number of seconds above 0, not {publish_timeout!r}")
        self._parameters = parameters_of(url_or_parameters)
        self._exchange = exchange
        self._declare = declare
        self._publish_timeout = publish_timeout
        self._prefetch = prefetch
        self._queue_arguments = dict(queue_arguments or {})
        self._encoder = Encoder(exchange, max_bytes)
        self._calls = 0
        self._closed = False
        self._changed = threading.Condition()
        self._publisher: Publisher | None = None
        self._subscriptions: weakref.WeakSet[RabbitMQSubscription] = weakref.WeakSet()

    def __repr__(self) -> str:
        return f"RabbitMQBroker({address_of(self._parameters)}, exchange={self._exchange!r})"

    def publish(self, messages: Sequence[OutgoingMessage], /, *, timeout: float | None = None) -> None:
        """Publish a batch and return when the broker has confirmed every message."""
        until = self._until(timeout)
        publisher = self._enter()
        try:
            failures = self._publish(publisher, messages, until) if messages else None
        finally:
            self._leave()
        if failures:
            raise PublishFailed(failures)

    def subscribe(self, *topics: str, group: str) -> RabbitMQSubscription:
        """
        Receive what is published to these topics, or match them as patterns (`orders.*`, `orders.#`).

        The group's durable queue is called `<exchange>.<group>`; subscribing with
        fewer topics does not unbind the others. Raises BrokerUnavailable where it cannot
        be made within `publish_timeout`.
        """
        queue = f"{self._exchange}.{group}"
        if not topics or not group or len(queue.encode()) > _SHORT:
            raise ValueError(f"a topic and a group are wanted, exchange and group with at most {_SHORT} bytes")
        until = self._until(None)
        with self._changed:
            self._check_open()
            subscription = RabbitMQSubscription(
                self._parameters,
                self._exchange,
                topics,
                queue,
                declare=self._declare,
                prefetch=self._prefetch,
                queue_arguments=self._queue_arguments,
            )
            self._subscriptions.add(subscription)
        try:
            subscription.open(until)
        except BaseException:
            subscription.close(1.0)
            raise
        return subscription

    def close(self, timeout: float = 5.0) -> None:
        """Refuse new messages, let running calls finish, close the connection; within `timeout` seconds."""
        until = time.monotonic() + timeout
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._calls == 0, timeout * (1 - _GOODBYE))
            publisher, self._publisher = self._publisher, None
            subscriptions = list(self._subscriptions)
        if publisher is not None:
            publisher.stop(until)
        for subscription in subscriptions:
            subscription.close(max(0.0, until - time.monotonic()))

    def close_at_exit(self) -> None:
        """Close within a time that a leaving process can spare."""
        self.close(_EXIT)

    def reset_in_child(self) -> None:
        """Leave the parent's connection and thread alone; the child makes its own at first use."""
        self._changed = threading.Condition()
        self._calls = 0
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            publisher.disown()

    def _publish(self, publisher: Publisher, messages: Sequence[OutgoingMessage], until: float) -> Failures:
        failures: Failures = []
        under_way: deque[Batch] = deque()
        try:
            for part in _parts(messages):
                while len(under_way) >= _UNDER_WAY or sum(batch.size for batch in under_way) > _UNDER_WAY_BYTES:
                    failures += _outcome(publisher, under_way[0], until)
                    under_way.popleft()
                if time.monotonic() >= until:
                    failures += ((message, _too_late(publisher)) for message in part)
                    continue
                batch = Batch(part, self._encoder)
                under_way.append(batch)
                publisher.submit(batch)
            while under_way:
                failures += _outcome(publisher, under_way[0], until)
                under_way.popleft()
        finally:
            # Whoever was interrupted, by Ctrl-C or a worker's time limit, does not want the rest sent.
            for batch in under_way:
                batch.abandoned = True
        return failures

    def _enter(self) -> Publisher:
        with self._changed:
            self._check_open()
            self._calls += 1
            if self._publisher is None:
                self._publisher = Publisher(
                    self._parameters, self._exchange, declare=self._declare, patience=self._publish_timeout
                )
                reset_in_child(self)
                close_at_exit(self)
            return self._publisher

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("this RabbitMQBroker is closed")

    def _until(self, timeout: float | None) -> float:
        return within(self._publish_timeout if timeout is None else timeout)

    def _leave(self) -> None:
        with self._changed:
            self._calls -= 1
            if self._closed:
                self._changed.notify_all()


def _parts(messages: Sequence[OutgoingMessage]) -> Iterator[Sequence[OutgoingMessage]]:
    """Cut a call's messages into batches of bounded size, in order."""
    start = size = 0
    for end, message in enumerate(messages):
        if end > start and (end - start == _BATCH_MESSAGES or size + len(message.body) > _BATCH_BYTES):
            yield messages[start:end]
            start, size = end, 0
        size += len(message.body)
    yield messages[start:] if start else messages


def _outcome(publisher: Publisher, batch: Batch, until: float) -> Failures:
    if batch.wait(until):
        return batch.failures("")
    batch.abandoned = True
    # What is still queued is dropped now, not when the broker is back: it may take hours.
    publisher.nudge()
    return batch.failures(publisher.trouble())


def _too_late(publisher: Publisher) -> DeliveryError:
    return BrokerUnavailable(f"not sent in time: {publisher.trouble()}")
