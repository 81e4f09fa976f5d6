"""
The broker socket: publish outgoing messages, receive incoming ones, set failed ones aside.

A backend is any object with these methods. Each method states its promises, and
`cqrs_sync.testing.contracts.broker` tests them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

import attrs

#: The most unsettled messages of a group's subscription, by default.
PREFETCH = 200


@attrs.frozen
class OutgoingMessage:
    """
    One event to publish, as final bytes.

    `attributes` are the context attributes of CloudEvents 1.0 by their bare names
    (`id`, `source`, `type`, `time`, `specversion`, `partitionkey`, `traceparent`,
    ...); a backend adds the prefix of its protocol binding. They are empty if
    `body` is a structured CloudEvent, which contains them.
    """

    id: str
    topic: str
    type: str
    body: bytes = attrs.field(repr=lambda body: f"<{len(body)} bytes>")
    content_type: str = "application/json"
    key: str | None = None
    attributes: Mapping[str, str] = attrs.field(factory=dict, repr=False)


@attrs.frozen
class IncomingMessage:
    """One message as it arrived. Nothing in it can be trusted."""

    topic: str
    body: bytes = attrs.field(repr=lambda body: f"<{len(body)} bytes>")
    content_type: str | None = None
    key: str | None = None
    attributes: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    #: Notes from when it was set aside, such as `attempts` and `reason`.
    notes: Mapping[str, str] = attrs.field(factory=dict, repr=False)


@attrs.frozen
class Group:
    """A group of consumers: its subscriptions share its messages, and those that it has set aside."""

    name: str
    topics: tuple[str, ...]
    #: Delays in seconds for messages that are set aside. Each delay has a queue or topic of its own.
    delays: tuple[float, ...] = ()
    #: Messages with the same key are received in order, however many subscriptions there are.
    ordered: bool = True
    #: The most unsettled messages of a subscription.
    prefetch: int = PREFETCH


@attrs.frozen
class GroupBacklog:
    """How many messages wait for a group."""

    #: Messages that no subscription has received, by topic, queue or partition.
    waiting: Mapping[str, int]
    #: Messages that are set aside for a while.
    delayed: int
    #: Dead letters.
    dead: int


@attrs.frozen
class Piece:
    """One thing that a group needs on its broker: an exchange, a queue, a binding, a topic."""

    kind: str
    name: str
    #: Its properties, for people.
    details: str = ""
    #: `missing`, `there` or `different`. Bindings of RabbitMQ are `unknown`, because AMQP cannot check them.
    state: str = "missing"
    #: What is different, and what to do about it.
    trouble: str = ""


class MessageBroker(Protocol):
    """Publishes notification events. It is safe from any thread and in a forked child."""

    def publish(self, messages: Sequence[OutgoingMessage], /, *, timeout: float | None = None) -> None:
        """
        Publish a batch and return when the broker has confirmed every message.

        The batch is pipelined; messages with the same key keep their order.
        `timeout` limits the whole call in seconds, connecting included; the default is
        the backend's own `publish_timeout`. The broker confirms the other messages
        of a batch even if it rejects one.

        Raises PublishFailed, which has each unconfirmed message with its error
        (MessageRejected or BrokerUnavailable), and ClosedError after `close()`.
        """

    def close(self, timeout: float = 5.0) -> None:
        """Close connections and end threads within `timeout` seconds. A second call does nothing."""


class Delivery(Protocol):
    """One received message. The consumer that received it settles it once."""

    @property
    def message(self) -> IncomingMessage:
        """The message. One that was set aside has its original topic."""

    @property
    def origin(self) -> str:
        """Its source, for people: a queue, or a partition and an offset."""

    @property
    def redeliveries(self) -> int:
        """
        How often it may have been delivered before: 0 if it certainly was not.

        A broker that does not count returns 1 for each message that a consumer may have received.
        """

    @property
    def lapsed(self) -> bool:
        """Whether it is stale: the broker delivers it again, here or elsewhere, and to settle it does nothing."""

    def ack(self) -> None:
        """The message is done: do not deliver it again."""

    def nack(self) -> None:
        """The message is not done: deliver it again."""


class Subscription(Protocol):
    """
    A stream of deliveries, for one thread. The caller that opened it closes it.

    A subclass needs `receive` and `close`.
    """

    @property
    def has_joined(self) -> bool:
        """Whether the group has accepted it. A Kafka group accepts a member while it receives, not before."""
        return True

    def receive(self, timeout: float) -> Delivery | None:
        """
        Wait at most `timeout` seconds for the next message; return None if none came.

        Raises BrokerUnavailable if the broker cannot be reached.
        """

    def receive_many(self, most: int, timeout: float) -> Sequence[Delivery]:
        """
        Wait at most `timeout` seconds for a message; return it with all that have arrived by then, at most `most`.

        Raises BrokerUnavailable as `receive` does.
        """
        deliveries: list[Delivery] = []
        try:
            while len(deliveries) < most:
                delivery = self.receive(0.0 if deliveries else timeout)
                if delivery is None:
                    break
                deliveries.append(delivery)
        except Exception:
            # The caller must settle the messages that came. The next call raises the error.
            if not deliveries:
                raise
        return deliveries

    def keep_alive(self) -> None:
        """
        Keep the subscription alive without receiving. A consumer that has enough messages calls it from time to time.

        Raises BrokerUnavailable as `receive` does.
        """
        return

    def __iter__(self) -> Iterator[Delivery]:
        """Yield deliveries without end."""
        while True:
            delivery = self.receive(timeout=1.0)
            if delivery is not None:
                yield delivery

    def close(self) -> None:
        """Give unsettled messages back to the broker."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self.close()


@runtime_checkable
class ReceivingBroker(MessageBroker, Protocol):
    """A broker that also delivers."""

    def subscribe(self, *topics: str, group: str) -> Subscription:
        """
        Receive the messages of these topics.

        Each group receives each message; its subscriptions share them.
        Messages wait for a group from its first subscription on.
        """


@runtime_checkable
class GroupBroker(ReceivingBroker, Protocol):
    """
    A broker for consumers: each group keeps its failed messages in queues or topics of its own.

    `set_aside` copies a message there, and the consumer settles the original afterwards: if the process dies in
    between, the message exists twice. All methods are safe from any thread and raise BrokerUnavailable if the
    broker cannot be reached. A subscription is for one thread.
    """

    def join(self, group: Group, /) -> Subscription:
        """
        Receive the messages of the group's topics, and those that it has set aside once their delay is over.

        It creates the queues and topics that are missing, unless the broker was configured to declare nothing.
        Messages wait for a group from its first subscription on, or from `build`. Raises ConfigurationError if
        a queue or topic exists and differs.
        """

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
        Keep messages for the group, with their notes; return when the broker has confirmed all of them.

        This group alone receives them again in `after` seconds: 0, or one of its delays. None makes
        them dead letters. Attributes and notes that are too large for the broker are cut or left out,
        the body never. `timeout` is that of `publish`.

        Raises PublishFailed, and ValueError for a delay that the group does not have.
        """

    def dead(self, group: Group, /) -> Subscription:
        """
        Receive the group's dead letters, oldest first. `ack` removes one; unsettled ones stay.

        One reader at a time.
        """

    def backlog(self, group: Group, /) -> GroupBacklog:
        """Count the messages that wait for the group."""

    def topology(self, group: Group, /) -> Sequence[Piece]:
        """Return what the group needs and its state; create nothing."""

    def build(self, group: Group, /) -> Sequence[Piece]:
        """
        Create what the group needs and is missing, and return the state of everything.

        Messages wait for the group from then on.
        """


#: The prefix of headers that carry notes.
NOTE = "cqrs-"
