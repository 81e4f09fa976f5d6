"""
The broker socket: publish outgoing messages, receive incoming ones, set aside those that failed.

A backend is any object with these methods. Each promise stands on the method that
gives it, and `cqrs_sync.testing.contracts.broker` holds a backend to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

import attrs

#: Messages that a subscription of a group holds unsettled, unless it is told otherwise.
PREFETCH = 200


@attrs.frozen
class OutgoingMessage:
    """
    One event on its way out, as final bytes.

    `attributes` are the context attributes of CloudEvents 1.0 by their bare names
    (`id`, `source`, `type`, `time`, `specversion`, `partitionkey`, `traceparent`,
    ...); a backend adds the prefix its protocol binding asks for. They are empty
    where `body` is a structured CloudEvent, which holds them itself.
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
    """One message as it came in; nothing in it is to be trusted."""

    topic: str
    body: bytes = attrs.field(repr=lambda body: f"<{len(body)} bytes>")
    content_type: str | None = None
    key: str | None = None
    attributes: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    #: What was noted on it when it was set aside, such as `attempts` and `reason`.
    notes: Mapping[str, str] = attrs.field(factory=dict, repr=False)


@attrs.frozen
class Group:
    """Who receives: the subscriptions of a group share its messages, and what it has set aside."""

    name: str
    topics: tuple[str, ...]
    #: Seconds after which what is set aside comes again, each a place of its own to wait in.
    delays: tuple[float, ...] = ()
    #: Messages of a key are received in order, whatever the number of subscriptions.
    ordered: bool = True
    #: Messages that a subscription holds unsettled, at most.
    prefetch: int = PREFETCH


@attrs.frozen
class GroupBacklog:
    """What waits for a group."""

    #: Messages that nobody has received, by topic, queue or partition.
    waiting: Mapping[str, int]
    #: Set aside for a while.
    delayed: int
    #: Set aside for good.
    dead: int


@attrs.frozen
class Piece:
    """One thing that a group needs on its broker: an exchange, a queue, a binding, a topic."""

    kind: str
    name: str
    #: What it is like, for people.
    details: str = ""
    #: `missing`, `there`, or `different`; bindings of RabbitMQ are `unknown`: it does not tell.
    state: str = "missing"
    #: What is different, and what to do about it.
    trouble: str = ""


class MessageBroker(Protocol):
    """Where notification events leave; safe from any thread and in a forked child."""

    def publish(self, messages: Sequence[OutgoingMessage], /, *, timeout: float | None = None) -> None:
        """
        Publish a batch and return when the broker has confirmed every message.

        The batch is pipelined; messages with the same key keep their order.
        `timeout` (seconds) bounds the whole call, connecting included; without it
        the backend's own `publish_timeout` does. One bad message does not keep its
        neighbours from being confirmed.

        Raises PublishFailed, with each message that was not confirmed and why
        (MessageRejected or BrokerUnavailable), and Closed after `close()`.
        """

    def close(self, timeout: float = 5.0) -> None:
        """Let go of connections and threads within `timeout` seconds. A second call does nothing."""


class Delivery(Protocol):
    """One received message, to be settled once by whoever received it."""

    @property
    def message(self) -> IncomingMessage:
        """What came in; where it was set aside, with the topic it had at first."""

    @property
    def origin(self) -> str:
        """Where it was received from, for people: a queue, or a partition and an offset."""

    @property
    def redeliveries(self) -> int:
        """
        How often it may have been delivered before: 0 where it certainly was not.

        A broker that does not count says 1 of whatever somebody may have had in hand.
        """

    @property
    def lapsed(self) -> bool:
        """Whether the broker gives it to somebody else by now, or again to this one: settling it does nothing."""

    def ack(self) -> None:
        """It is done: never deliver it again."""

    def nack(self) -> None:
        """It is not done: deliver it again."""


class Subscription(Protocol):
    """
    A stream of deliveries, for one thread; whoever opened it closes it.

    A class that inherits from it needs `receive` and `close`.
    """

    @property
    def has_joined(self) -> bool:
        """Whether the broker has let it in: a group of Kafka does so while its members receive, not before."""
        return True

    def receive(self, timeout: float) -> Delivery | None:
        """
        Wait at most `timeout` seconds for the next message; None where none came.

        Raises BrokerUnavailable where the broker cannot be reached.
        """

    def receive_many(self, most: int, timeout: float) -> Sequence[Delivery]:
        """
        Wait at most `timeout` seconds for the next message; return it with those that are there by then, `most` in all.

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
            # What came is somebody's to settle; the next call says what is wrong.
            if not deliveries:
                raise
        return deliveries

    def keep_alive(self) -> None:
        """
        Do what keeps the subscription alive, and receive nothing; called now and then by who has enough in hand.

        Raises BrokerUnavailable as `receive` does.
        """
        return

    def __iter__(self) -> Iterator[Delivery]:
        """Deliver for ever."""
        while True:
            delivery = self.receive(timeout=1.0)
            if delivery is not None:
                yield delivery

    def close(self) -> None:
        """Give back what was not settled."""

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
        Receive what is published to these topics.

        Each group receives each message; the subscriptions of a group share them.
        Messages wait for a group from its first subscription on.
        """


@runtime_checkable
class GroupBroker(ReceivingBroker, Protocol):
    """
    A broker for consumers: its groups keep what failed in places of their own.

    `set_aside` copies a message there, and whoever received it settles it then: where a process dies in
    between, it is there twice. All of it is safe from any thread, but for what subscriptions say of themselves,
    and raises BrokerUnavailable where the broker cannot be reached.
    """

    def join(self, group: Group, /) -> Subscription:
        """
        Receive what is published to the group's topics, and what it has set aside for a while when that is over.

        Makes what is missing of the group's places, unless the broker was told to declare nothing.
        Messages wait for a group from its first subscription on, or from `build`. Raises ConfigurationError for
        places that exist and are different.
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
        Keep messages for the group, with their notes; returns when the broker has confirmed all of them.

        They are received again `after` seconds, by this group alone: 0, or one of its delays. None is for
        good: they are dead letters. Attributes and notes that are too large for the
        broker are cut or left out, the body never. `timeout` is that of `publish`.

        Raises PublishFailed, ValueError for a delay the group does not have.
        """

    def dead(self, group: Group, /) -> Subscription:
        """
        Receive the group's dead letters, oldest first: `ack` removes one, what is not settled stays.

        For one reader at a time.
        """

    def backlog(self, group: Group, /) -> GroupBacklog:
        """Count what waits for the group."""

    def topology(self, group: Group, /) -> Sequence[Piece]:
        """Look at what the group needs; changes nothing."""

    def build(self, group: Group, /) -> Sequence[Piece]:
        """
        Make what is missing of what the group needs, and return it all as it is then.

        Messages wait for the group from then on.
        """


#: What makes a note of ours out of a header's name.
NOTE = "cqrs-"
