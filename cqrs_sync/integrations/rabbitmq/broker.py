"""RabbitMQ as a message broker: publish with confirms, receive from durable queues, keep messages that failed."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pika.connection import Parameters

from cqrs_sync.broker import Group, GroupBacklog, IncomingMessage, OutgoingMessage, TopologyItem, check_group
from cqrs_sync.context import earliest_deadline
from cqrs_sync.errors import BrokerUnavailable, ClosedError, ConfigurationError, MessageRejected, PublishFailed
from cqrs_sync.integrations.rabbitmq import topology
from cqrs_sync.integrations.rabbitmq.connection import address_of, connection_parameters
from cqrs_sync.integrations.rabbitmq.messages import outgoing_copy
from cqrs_sync.integrations.rabbitmq.publisher import ConfirmingPublisher
from cqrs_sync.integrations.rabbitmq.subscription import RabbitMQSubscription
from cqrs_sync.integrations.rabbitmq.topology import AdminConnection, Declaration, GroupTopology, aside_exchange
from cqrs_sync.lifecycle import close_at_exit, reset_in_child

#: The default limit of RabbitMQ 4.
_MAX_BYTES = 16 * 1024 * 1024
#: Seconds that closing may take when the interpreter exits.
_CLOSE_AT_EXIT = 2.0


class RabbitMQBroker:
    """
    Publishes to a topic exchange of RabbitMQ, with the topic as the routing key.

    `publish` returns when the broker has confirmed every message: each is persistent and in at least one queue
    (`mandatory`). One thread per process does the I/O. It starts with the first call, answers heartbeats, and
    reconnects with backoff. A message that was in flight when the connection broke is sent again, with the
    same id, while its caller waits: delivery is at least once, in order per caller.

    - `url`: `amqp://user:password@host:port/vhost`, or `amqps://` for TLS with the system's
      certificates, with pika's options (`?heartbeat=30`). Or pika's `ConnectionParameters`, with `ssl_options`
      for other certificates.
    - `exchange`: a durable topic exchange, created if it is missing. With `declare=False` it must exist, and may be
      of any type.
    - `publish_timeout`: the seconds of a call without a `timeout`, connecting included. An earlier deadline of
      the context counts.
    - `max_bytes`: the broker object refuses larger bodies. RabbitMQ has a limit of its own.
    - `queue_arguments`: for the queue of each group. `{"x-queue-type": "classic"}` holds for its other queues as well.
      `{"x-expires": 60_000}` is for groups that live as long as one run: RabbitMQ deletes their queue when it is
      unused for a minute, with their dead letters. The arguments of a queue cannot change.
    """

    def __init__(
        self,
        url: str | Parameters,
        *,
        exchange: str = "cqrs",
        declare: bool = True,
        publish_timeout: float = 5.0,
        max_bytes: int = _MAX_BYTES,
        queue_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        if not exchange:
            raise ConfigurationError("the exchange needs a name: leave `exchange` out for 'cqrs'")
        if publish_timeout <= 0:
            raise ConfigurationError(f"publish_timeout is a number of seconds above 0, not {publish_timeout!r}")
        self._parameters = connection_parameters(url)
        self._exchange = topology.Exchange(exchange, "topic")
        self._declare = declare
        self._publish_timeout = publish_timeout
        self._queue_arguments = dict(queue_arguments or {})
        self._aside = aside_exchange(exchange)
        new = partial(ConfirmingPublisher, self._parameters, declare=declare, silence_timeout=publish_timeout)
        self._publisher = new(self._exchange, max_bytes=max_bytes)
        # A received message is never too large to be kept, and its header names are complete.
        self._aside_publisher = new(self._aside, max_bytes=sys.maxsize, prefix="")
        self._closed = False
        # Reentrant, because a signal handler may close the broker.
        self._lock = threading.RLock()
        self._subscriptions: weakref.WeakSet[RabbitMQSubscription] = weakref.WeakSet()
        reset_in_child(self)
        close_at_exit(self)

    def __repr__(self) -> str:
        return f"RabbitMQBroker({address_of(self._parameters)}, exchange={self._exchange.name!r})"

    def publish(self, messages: Sequence[OutgoingMessage], /, *, timeout: float | None = None) -> None:
        """Publish a batch and return when the broker has confirmed every message."""
        self._publisher.publish(messages, self._seconds(timeout))

    def subscribe(self, group: Group, /) -> RabbitMQSubscription:
        """
        Receive the group's topics or patterns (`orders.*`, `orders.#`), and what it has deferred.

        The group's durable queue is `<exchange>.<group>`. A subscription to fewer topics does not unbind the others.
        Raises ConfigurationError if a queue or exchange differs from what the group needs, BrokerUnavailable if
        RabbitMQ does not answer within `publish_timeout`.
        """
        needed = self._topology_of(group)
        return self._receive(needed, needed.queue.name, needed.declarations, group.prefetch)

    def defer(
        self, messages: Sequence[IncomingMessage], group: Group, /, *, after: float, timeout: float | None = None
    ) -> None:
        """
        Keep messages for the group, with their notes; return when the broker has confirmed all of them.

        A queue that was deleted is created again.
        """
        needed = self._topology_of(group)
        self._keep(messages, needed, needed.retry_queue(after), timeout)

    def add_dead_letters(
        self, messages: Sequence[IncomingMessage], group: Group, /, *, timeout: float | None = None
    ) -> None:
        """Keep messages as dead letters of the group; a queue that was deleted is created again."""
        needed = self._topology_of(group)
        self._keep(messages, needed, needed.dead.name, timeout)

    def read_dead_letters(self, group: Group, /) -> RabbitMQSubscription:
        """Receive the group's dead letters, oldest first. `ack` removes one; unsettled ones stay."""
        needed = self._topology_of(group)
        return self._receive(needed, needed.dead.name, [needed.dead], group.prefetch)

    def backlog(self, group: Group, /) -> GroupBacklog:
        """Count the messages that wait for the group; `waiting` has one queue."""
        with self._admin_connection() as connection:
            return topology.count_backlog(connection, self._topology_of(group))

    def inspect_topology(self, group: Group, /) -> Sequence[TopologyItem]:
        """Return what the group needs and what is there; create nothing."""
        with self._admin_connection() as connection:
            return topology.inspect(connection, self._topology_of(group), any_exchange=not self._declare)

    def apply_topology(self, group: Group, /) -> Sequence[TopologyItem]:
        """Create what the group needs and is missing, and return the state of everything."""
        with self._admin_connection() as connection:
            return topology.declare(connection, self._topology_of(group), any_exchange=not self._declare)

    def close(self, timeout: float = 5.0) -> None:
        """Refuse new messages, let running calls finish, and close all connections within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._lock:
            self._closed = True
            subscriptions = list(self._subscriptions)
        self._publisher.close(deadline - time.monotonic())
        self._aside_publisher.close(deadline - time.monotonic())
        for subscription in subscriptions:
            subscription.close(deadline - time.monotonic())

    def close_at_exit(self) -> None:
        """Close within a time that does not delay the interpreter's exit."""
        self.close(_CLOSE_AT_EXIT)

    def reset_in_child(self) -> None:
        """Replace the lock: another thread of the parent may have held it."""
        self._lock = threading.RLock()

    def _keep(
        self, messages: Sequence[IncomingMessage], needed: GroupTopology, queue: str, timeout: float | None
    ) -> None:
        deadline = time.monotonic() + self._seconds(timeout)
        copies = [outgoing_copy(message, queue, self._parameters.frame_max) for message in messages]
        try:
            self._aside_publisher.publish(copies, deadline - time.monotonic())
        except PublishFailed as failed:
            refused = [copy for copy, error in failed.failures if isinstance(error, MessageRejected)]
            if not self._declare or len(refused) < len(failed.failures):
                raise
            with AdminConnection(self._parameters, deadline - time.monotonic()) as connection:
                topology.declare(connection, needed, any_exchange=False)
            self._aside_publisher.publish(refused, deadline - time.monotonic())

    def _receive(
        self, needed: GroupTopology, queue: str, declarations: Sequence[Declaration], prefetch: int
    ) -> RabbitMQSubscription:
        """Receive for a group; a refused declaration becomes an error with the way out."""
        with self._lock:
            self._check_open()
            subscription = RabbitMQSubscription(
                self._parameters,
                queue,
                declarations if self._declare else (),
                prefetch=prefetch,
                aside=self._aside.name,
            )
            self._subscriptions.add(subscription)
        try:
            subscription.open(self._seconds(None))
        except BaseException as error:
            subscription.close(1.0)
            mismatch = topology.mismatch(needed.queue.name, error) if isinstance(error, BrokerUnavailable) else None
            if mismatch is None:
                raise
            raise mismatch from error
        return subscription

    def _admin_connection(self) -> AdminConnection:
        self._check_open()
        return AdminConnection(self._parameters, self._seconds(None))

    def _topology_of(self, group: Group) -> GroupTopology:
        check_group(group)
        return topology.topology_of(group, self._exchange.name, self._queue_arguments)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this RabbitMQBroker is closed")

    def _seconds(self, timeout: float | None) -> float:
        """Return the seconds for a call: `timeout` or `publish_timeout`, less if the context has a deadline."""
        return earliest_deadline(self._publish_timeout if timeout is None else timeout) - time.monotonic()
