"""RabbitMQ as a message broker: publish with confirms, receive from durable queues, set aside what failed."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pika.connection import Parameters

from cqrs_sync.broker import Group, GroupBacklog, IncomingMessage, OutgoingMessage, Piece
from cqrs_sync.context import within
from cqrs_sync.errors import BrokerUnavailable, Closed, MessageRejected, PublishFailed
from cqrs_sync.integrations.rabbitmq import topology
from cqrs_sync.integrations.rabbitmq.amqp import Encoder
from cqrs_sync.integrations.rabbitmq.connection import address_of, parameters_of
from cqrs_sync.integrations.rabbitmq.errors import refusal_in
from cqrs_sync.integrations.rabbitmq.messages import copy_of
from cqrs_sync.integrations.rabbitmq.publisher import Outlet, Publisher
from cqrs_sync.integrations.rabbitmq.subscription import RabbitMQSubscription
from cqrs_sync.integrations.rabbitmq.topology import (
    SHORT,
    Binding,
    Exchange,
    Inquiry,
    Place,
    Places,
    Queue,
    aside_of,
    places_of,
)
from cqrs_sync.lifecycle import close_at_exit, reset_in_child

#: What RabbitMQ 4 takes unless it is configured otherwise.
_MAX_BYTES = 16 * 1024 * 1024
#: Seconds that leaving the interpreter may take longer for one broker.
_EXIT = 2.0


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
        self._exchange = Exchange(exchange, "topic")
        self._declare = declare
        self._publish_timeout = publish_timeout
        self._prefetch = prefetch
        self._queue_arguments = dict(queue_arguments or {})
        self._outlet = self._outlet_to(self._exchange, Encoder(exchange, max_bytes))
        aside = aside_of(exchange)
        # What was received is never too large to be kept, and its headers have their whole names.
        self._aside = self._outlet_to(aside, Encoder(aside.name, sys.maxsize, prefix=""))
        self._closed = False
        self._changed = threading.Condition()
        self._subscriptions: weakref.WeakSet[RabbitMQSubscription] = weakref.WeakSet()
        reset_in_child(self)
        close_at_exit(self)

    def __repr__(self) -> str:
        return f"RabbitMQBroker({address_of(self._parameters)}, exchange={self._exchange.name!r})"

    def publish(self, messages: Sequence[OutgoingMessage], /, *, timeout: float | None = None) -> None:
        """Publish a batch and return when the broker has confirmed every message."""
        self._outlet.publish(messages, self._until(timeout))

    def subscribe(self, *topics: str, group: str) -> RabbitMQSubscription:
        """
        Receive what is published to these topics, or match them as patterns (`orders.*`, `orders.#`).

        The group's durable queue is called `<exchange>.<group>`; subscribing with
        fewer topics does not unbind the others. Raises BrokerUnavailable where it cannot
        be made within `publish_timeout`.
        """
        exchange = self._exchange.name
        queue = Queue(f"{exchange}.{group}", self._queue_arguments)
        if not topics or not group or len(queue.name.encode()) > SHORT:
            raise ValueError(f"a topic and a group are wanted, exchange and group with at most {SHORT} bytes")
        bindings = [Binding(queue.name, exchange, topic) for topic in topics]
        places = [*((self._exchange,) if self._declare else ()), queue, *bindings]
        return self._receive(queue.name, places, self._prefetch)

    def join(self, group: Group, /) -> RabbitMQSubscription:
        """
        Receive what is published to the group's topics, and what it has set aside for a while when that is over.

        Topics may be patterns. Raises ConfigurationError for places that exist and are different,
        BrokerUnavailable where they cannot be made within `publish_timeout`.
        """
        if not group.topics:
            raise ValueError(f"the group {group.name!r} has no topics to receive")
        places = self._places(group)
        return self._receive_as(places, places.queue.name, places.all, group.prefetch)

    def set_aside(
        self,
        messages: Sequence[IncomingMessage],
        group: Group,
        /,
        *,
        after: float | None,
        timeout: float | None = None,
    ) -> None:
        """
        Keep messages for the group, with their notes; returns when the broker has confirmed all of them.

        A place that somebody has deleted is made again.
        """
        place, until = self._places(group).place_for(after), self._until(timeout)
        frame_max = self._parameters.frame_max
        try:
            self._aside.publish([copy_of(message, place, frame_max) for message in messages], until)
        except PublishFailed as failed:
            refused = [copy for copy, error in failed.failures if isinstance(error, MessageRejected)]
            if not self._declare or len(refused) < len(failed.failures):
                raise
            with Inquiry(self._parameters, until) as inquiry:
                topology.build(inquiry, self._places(group), is_theirs=False)
            self._aside.publish(refused, until)

    def dead(self, group: Group, /) -> RabbitMQSubscription:
        """Receive the group's dead letters, oldest first: `ack` removes one, what is not settled stays."""
        places = self._places(group)
        return self._receive_as(places, places.dead.name, [places.dead], group.prefetch)

    def backlog(self, group: Group, /) -> GroupBacklog:
        """Count what waits for the group; `waiting` is by queue, and there is one."""
        with self._inquiry() as inquiry:
            return topology.count(inquiry, self._places(group))

    def topology(self, group: Group, /) -> Sequence[Piece]:
        """Look at what the group needs; changes nothing."""
        with self._inquiry() as inquiry:
            return topology.look(inquiry, self._places(group), is_theirs=not self._declare)

    def build(self, group: Group, /) -> Sequence[Piece]:
        """Make what is missing of what the group needs, and return it all as it is then."""
        with self._inquiry() as inquiry:
            return topology.build(inquiry, self._places(group), is_theirs=not self._declare)

    def close(self, timeout: float = 5.0) -> None:
        """Refuse new messages, let running calls finish, close the connections; within `timeout` seconds."""
        until = time.monotonic() + timeout
        with self._changed:
            self._closed = True
            subscriptions = list(self._subscriptions)
        self._outlet.close(until)
        self._aside.close(until)
        for subscription in subscriptions:
            subscription.close(max(0.0, until - time.monotonic()))

    def close_at_exit(self) -> None:
        """Close within a time that a leaving process can spare."""
        self.close(_EXIT)

    def reset_in_child(self) -> None:
        """Replace the lock, which another thread of the parent may have held."""
        self._changed = threading.Condition()

    def _outlet_to(self, exchange: Exchange, encoder: Encoder) -> Outlet:
        return Outlet(
            encoder,
            partial(
                Publisher,
                self._parameters,
                exchange,
                declare=self._declare,
                patience=self._publish_timeout,
                prefix=encoder.prefix,
            ),
        )

    def _receive_as(self, places: Places, queue: str, parts: Sequence[Place], prefetch: int) -> RabbitMQSubscription:
        """Receive for a group; what is different is said so that one can do something about it."""
        try:
            return self._receive(queue, parts if self._declare else (), prefetch)
        except BrokerUnavailable as error:
            refusal = refusal_in(error)
            if refusal is None:
                raise
            raise topology.mismatch(places.queue.name, refusal) from error

    def _receive(self, queue: str, places: Sequence[Place], prefetch: int) -> RabbitMQSubscription:
        until = self._until(None)
        with self._changed:
            self._check_open()
            subscription = RabbitMQSubscription(
                self._parameters, queue, places, prefetch=prefetch, aside=aside_of(self._exchange.name).name
            )
            self._subscriptions.add(subscription)
        try:
            subscription.open(until)
        except BaseException:
            subscription.close(1.0)
            raise
        return subscription

    def _inquiry(self) -> Inquiry:
        self._check_open()
        return Inquiry(self._parameters, self._until(None))

    def _places(self, group: Group) -> Places:
        return places_of(group, self._exchange.name, self._queue_arguments)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("this RabbitMQBroker is closed")

    def _until(self, timeout: float | None) -> float:
        return within(self._publish_timeout if timeout is None else timeout)
