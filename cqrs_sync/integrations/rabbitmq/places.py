"""What a group needs on the broker, and how each of it is declared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import attrs
from pika.channel import Channel

from cqrs_sync.broker import Group
from cqrs_sync.errors import ConfigurationError

#: Bytes of a name in AMQP.
SHORT = 255
#: Milliseconds RabbitMQ takes as a time to live.
_LONGEST = 2**32 - 1
#: A consumer counts deliveries itself and sets aside; this is for messages that no consumer gets that far with.
_GROUP_DELIVERIES = 1000
#: Looking at dead letters delivers them: RabbitMQ 4 would drop them after 20 looks.
_DEAD_DELIVERIES = 2**31 - 1
_QUORUM = "quorum"

Answer = Callable[[Any], None]


@attrs.frozen
class Exchange:
    """A durable exchange."""

    name: str
    type: str
    kind: ClassVar[str] = "exchange"

    @property
    def details(self) -> str:
        """What it is like."""
        return f"{self.type}, durable"

    def declare(self, channel: Channel, answer: Answer, *, passive: bool = False) -> None:
        """Ask for it; made where it is missing, unless `passive`."""
        channel.exchange_declare(self.name, exchange_type=self.type, durable=True, passive=passive, callback=answer)


@attrs.frozen
class Queue:
    """A durable queue."""

    name: str
    arguments: Mapping[str, Any] = attrs.field(factory=dict)
    kind: ClassVar[str] = "queue"

    @property
    def details(self) -> str:
        """What it is like."""
        return ", ".join(("durable", *(f"{name}={value}" for name, value in self.arguments.items())))

    def declare(self, channel: Channel, answer: Answer, *, passive: bool = False) -> None:
        """Ask for it; made where it is missing, unless `passive`."""
        channel.queue_declare(self.name, durable=True, arguments=dict(self.arguments), passive=passive, callback=answer)


@attrs.frozen
class Binding:
    """A queue gets from an exchange what has this topic, or matches it."""

    queue: str
    exchange: str
    topic: str
    kind: ClassVar[str] = "binding"

    @property
    def name(self) -> str:
        """Where from, what and where to."""
        return f"{self.exchange} -- {self.topic} -> {self.queue}"

    @property
    def details(self) -> str:
        """Its name says it all."""
        return ""

    def declare(self, channel: Channel, answer: Answer, *, passive: bool = False) -> None:
        """Make it; AMQP has no way to ask."""
        del passive
        channel.queue_bind(self.queue, self.exchange, self.topic, callback=answer)


Place = Exchange | Queue | Binding


@attrs.frozen
class Places:
    """Where the messages of a group are, in RabbitMQ."""

    #: Where everybody publishes.
    exchange: Exchange
    #: Where groups publish what they set aside: whoever is bound to everything would get it from the other one.
    aside: Exchange
    queue: Queue
    #: By delay, in seconds.
    retries: Mapping[float, Queue]
    dead: Queue
    topics: tuple[str, ...]

    @property
    def all(self) -> tuple[Place, ...]:
        """All of it, in an order it can be made in."""
        queues = (self.queue, *self.retries.values(), self.dead)
        return (
            self.exchange,
            self.aside,
            *queues,
            *(Binding(self.queue.name, self.exchange.name, topic) for topic in self.topics),
            *(Binding(queue.name, self.aside.name, queue.name) for queue in queues),
        )

    def place_for(self, after: float | None) -> str:
        """Return the queue for what is set aside. Raises ValueError for a delay that the group does not have."""
        if after is None:
            return self.dead.name
        if after == 0:
            return self.queue.name
        if after not in self.retries:
            delays = ", ".join(map(str, self.retries)) or "none"
            raise ValueError(f"the group of {self.queue.name} has no delay of {after} s; it has: {delays}")
        return self.retries[after].name


def aside_of(exchange: str) -> Exchange:
    """Return the exchange for what groups set aside."""
    return Exchange(f"{exchange}.aside", "direct")


def places_of(group: Group, exchange: str, queue_arguments: Mapping[str, Any]) -> Places:
    """
    Return the places of a group; nothing is asked or made.

    Raises ConfigurationError for names that AMQP does not take or that could be another group's places.
    """
    name = f"{exchange}.{group.name}"
    is_taken = group.name.endswith(".dead") or ".retry." in group.name
    if not group.name or is_taken or len(name.encode()) > SHORT - 32:
        raise ConfigurationError(
            f"{group.name!r} cannot be a group of {exchange!r}: exchange and group have at most {SHORT - 32} bytes "
            "together, and groups are not called *.dead or *.retry.*, as their places are"
        )
    aside = aside_of(exchange)
    kind = queue_arguments.get("x-queue-type", _QUORUM)
    dead = Queue(f"{name}.dead", _of_kind(kind, {"x-delivery-limit": _DEAD_DELIVERIES}))
    queue = Queue(name, {**_group_arguments(kind, aside, dead, group), **queue_arguments})
    retries = {delay: _retry(delay, name, kind) for delay in group.delays if delay != 0}
    return Places(Exchange(exchange, "topic"), aside, queue, retries, dead, group.topics)


def _group_arguments(kind: str, aside: Exchange, dead: Queue, group: Group) -> dict[str, Any]:
    arguments = {
        **_of_kind(kind, {"x-delivery-limit": _GROUP_DELIVERIES, **_SURELY}),
        "x-dead-letter-exchange": aside.name,
        "x-dead-letter-routing-key": dead.name,
    }
    # One subscription receives and the others stand by: any other way, two of them may have messages of a key.
    return arguments | ({"x-single-active-consumer": True} if group.ordered else {})


def _retry(delay: float, name: str, kind: str) -> Queue:
    milliseconds = round(delay * 1000)
    if not 0 < milliseconds <= _LONGEST:
        raise ConfigurationError(f"RabbitMQ waits between 0.001 and {_LONGEST // 1000} s, not {delay}")
    seconds = f"{milliseconds / 1000:.3f}".rstrip("0").rstrip(".")
    arguments = {
        **_of_kind(kind, _SURELY),
        "x-message-ttl": milliseconds,
        # The exchange without a name brings messages to the queue that is called so.
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": name,
    }
    return Queue(f"{name}.retry.{seconds}", arguments)


def _of_kind(kind: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Classic queues refuse what only quorum queues know."""
    return {"x-queue-type": kind, **(arguments if kind == _QUORUM else {})}


#: What expires, or was delivered too often, is kept until the queue it goes to has confirmed it.
_SURELY: Mapping[str, Any] = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
