"""
The broker socket: publish outgoing messages, receive incoming ones.

A backend is any object with these methods. Each promise stands on the method that
gives it, and `cqrs_sync.testing.BrokerContract` holds a backend to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

import attrs


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
        """What came in."""

    def ack(self) -> None:
        """It is done: never deliver it again."""

    def nack(self) -> None:
        """It is not done: deliver it again."""


class Subscription(Protocol):
    """
    A stream of deliveries, for one thread; whoever opened it closes it.

    A class that inherits from it needs `receive` and `close`.
    """

    def receive(self, timeout: float) -> Delivery | None:
        """
        Wait at most `timeout` seconds for the next message; None where none came.

        Raises BrokerUnavailable where the broker cannot be reached.
        """

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
