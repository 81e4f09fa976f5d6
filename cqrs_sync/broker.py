"""
The broker socket: publish outgoing messages, receive incoming ones, keep those that failed.

A backend is any object with these methods. Each method states its promises, and
`cqrs_sync.testing.contracts.broker` tests them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

    @property
    def title(self) -> str:
        """Its type and id, for logs."""
        return f"{self.type!r} {self.id!r}"


@attrs.frozen
class IncomingMessage:
    """One message as it arrived. Nothing in it can be trusted."""

    topic: str
    body: bytes = attrs.field(repr=lambda body: f"<{len(body)} bytes>")
    content_type: str | None = None
    key: str | None = None
    attributes: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    #: Notes of the group that has deferred it, such as `attempts` and `reason`.
    notes: Mapping[str, str] = attrs.field(factory=dict, repr=False)

    @property
    def title(self) -> str:
        """The type and id that it claims to have, for logs."""
        return f"{self.attributes.get('type', 'a message of no type')[:100]!r} {self.attributes.get('id', '')[:100]!r}"


def _topics(topics: Iterable[str]) -> tuple[str, ...]:
    if isinstance(topics, str):
        raise TypeError(f"the topics of a group are a list: write [{topics!r}]")
    if not isinstance(topics, Iterable):
        raise TypeError(f"the topics of a group are a list of names, not {topics!r}")
    return tuple(dict.fromkeys(topics))


def _delays(delays: Iterable[float]) -> tuple[float, ...]:
    if not isinstance(delays, Iterable) or isinstance(delays, (str, bytes)):
        raise TypeError(f"the delays of a group are a list of seconds: write [{delays!r}]")
    return tuple(delays)


@attrs.frozen
class Group:
    """
    A group of consumers: its subscriptions share the messages of its topics, its deferred messages and dead letters.

    Raises ValueError or TypeError for values that no broker takes.
    """

    name: str
    topics: tuple[str, ...] = attrs.field(converter=_topics)
    #: Delays in seconds for messages that are deferred. Each delay has a queue or topic of its own.
    delays: tuple[float, ...] = attrs.field(default=(), converter=_delays)
    #: Messages with the same key are received in order, however many subscriptions there are.
    ordered: bool = True
    #: The most unsettled messages of a subscription.
    prefetch: int = PREFETCH

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(f"a group needs a name, such as that of the service, not {self.name!r}")
        if not self.topics or not all(isinstance(topic, str) and topic for topic in self.topics):
            raise ValueError(f"the group {self.name!r} needs topics that have names, not {list(self.topics)!r}")
        if not all(isinstance(delay, (int, float)) and 0 < delay < math.inf for delay in self.delays):
            raise ValueError(f"the delays of a group are seconds above 0, not {list(self.delays)!r}")
        if not isinstance(self.prefetch, int) or self.prefetch < 1:
            raise ValueError(f"the prefetch of a group is a whole number, 1 or more, not {self.prefetch!r}")


def check_group(group: object) -> None:
    """Raise TypeError for what is no group, with the way to write one."""
    if not isinstance(group, Group):
        name = group if isinstance(group, str) else "billing"
        raise TypeError(f'a Group is needed, not {group!r}: write subscribe(Group({name!r}, ["orders"]))')


@attrs.frozen
class GroupBacklog:
    """How many messages wait for a group."""

    #: Messages that no subscription has received, by topic, queue or partition.
    waiting: Mapping[str, int]
    #: Deferred messages.
    delayed: int
    #: Dead letters.
    dead: int


@attrs.frozen
class TopologyItem:
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
        """The message. One that was deferred has its original topic."""

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
    def is_stale(self) -> bool:
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
    """
    A broker that also delivers: each group keeps its failed messages in queues or topics of its own.

    `defer` and `add_dead_letters` copy a message there, and the consumer settles the original afterwards: if the
    process dies in between, the message exists twice. All methods are safe from any thread and raise
    BrokerUnavailable if the broker cannot be reached. A subscription is for one thread.
    """

    def subscribe(self, group: Group, /) -> Subscription:
        """
        Receive the messages of the group's topics, and those that it has deferred once their delay is over.

        Each group receives each message; its subscriptions share them. It creates the queues and topics that are
        missing, unless the broker was configured to declare nothing. Messages wait for a group from its first
        subscription on, or from `apply_topology`. The caller closes the subscription. Raises ConfigurationError if
        a queue or topic exists and differs.
        """

    def defer(
        self, messages: Sequence[IncomingMessage], group: Group, /, *, after: float, timeout: float | None = None
    ) -> None:
        """
        Keep messages for the group, with their notes; return when the broker has confirmed all of them.

        This group alone receives them again in `after` seconds: 0, or one of its delays. Attributes and notes that
        are too large for the broker are cut or left out, the body never. `timeout` is that of `publish`.

        Raises PublishFailed, and ValueError for a delay that the group does not have.
        """

    def add_dead_letters(
        self, messages: Sequence[IncomingMessage], group: Group, /, *, timeout: float | None = None
    ) -> None:
        """
        Keep messages as dead letters of the group, with their notes; promises and raises what `defer` does.

        Nothing delivers them again but `read_dead_letters`.
        """

    def read_dead_letters(self, group: Group, /) -> Subscription:
        """
        Receive the group's dead letters, oldest first. `ack` removes one; unsettled ones stay.

        One reader at a time.
        """

    def backlog(self, group: Group, /) -> GroupBacklog:
        """Count the messages that wait for the group."""

    def inspect_topology(self, group: Group, /) -> Sequence[TopologyItem]:
        """Return what the group needs and its state; create nothing."""

    def apply_topology(self, group: Group, /) -> Sequence[TopologyItem]:
        """
        Create what the group needs and is missing, and return the state of everything.

        Messages wait for the group from then on.
        """


#: The prefix of headers that carry notes.
NOTE = "cqrs-"
