"""What a group needs on the broker, and how each of it is declared."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, Self

import attrs
from pika import exceptions
from pika.adapters.select_connection import IOLoop
from pika.channel import Channel
from pika.connection import Parameters

from cqrs_sync.broker import Group, GroupBacklog, Piece
from cqrs_sync.errors import BrokerUnavailable, ConfigurationError
from cqrs_sync.integrations.rabbitmq.connection import Connection, address_of
from cqrs_sync.integrations.rabbitmq.errors import words_for

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


#: Seconds for a goodbye.
_GOODBYE = 1.0

#: Asks on the channel; the answer is given to the callback.
Question = Callable[[Channel, Answer], None]


class Inquiry:
    """
    A conversation in the caller's thread that ends by `until`; whoever makes it uses `with`.

    A refusal ends the channel, not the conversation: the next question has a new one.
    Entering and asking raise BrokerUnavailable.
    """

    def __init__(self, parameters: Parameters, until: float) -> None:
        self._parameters = parameters
        self._until = until
        self._loop: Any = IOLoop()
        self._connection: Any = None
        self._channel: Channel | None = None
        self._gone: Exception | None = None

    def ask(self, question: Question) -> Any:
        """Return the answer's method, or pika's ChannelClosedByBroker where the broker refuses."""
        if self._channel is None:
            self._channel = self._open_channel()
        channel, answers = self._channel, []
        channel.add_on_close_callback(lambda _, error: answers.append(error))
        question(channel, answers.append)
        self._run(lambda: bool(answers))
        answer = answers[0]
        if isinstance(answer, Exception):
            self._channel = None
            return answer
        return answer.method

    def __enter__(self) -> Self:
        self._loop.activate_poller()
        try:
            self._connection = Connection(
                self._parameters,
                on_open_error_callback=self._on_gone,
                on_close_callback=self._on_gone,
                custom_ioloop=self._loop,
            )
            self._run(lambda: self._connection.is_open)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self._end()

    def _open_channel(self) -> Channel:
        opened: list[Channel] = []
        self._connection.channel(on_open_callback=opened.append)
        self._run(lambda: bool(opened))
        return opened[0]

    def _run(self, is_done: Callable[[], bool]) -> None:
        """Let pika work until it is done."""
        while not is_done():
            if self._gone is None and time.monotonic() >= self._until:
                self._gone = TimeoutError("no answer")
            if self._gone is not None:
                address = address_of(self._parameters)
                raise BrokerUnavailable(f"{words_for(self._gone)} (RabbitMQ at {address})") from self._gone
            self._turn(self._until)

    def _turn(self, until: float) -> None:
        # The poller waits for timers: this one ends the wait.
        timer = self._loop.call_later(max(0.0, until - time.monotonic()), lambda: None)
        self._loop.poll()
        self._loop.process_timeouts()
        self._loop.remove_timeout(timer)

    def _end(self) -> None:
        until = time.monotonic() + _GOODBYE
        connection = self._connection
        # pika trips over closing what is not open yet.
        if connection is not None and connection.is_open and self._gone is None:
            connection.close()
            while self._gone is None and time.monotonic() < until:
                self._turn(until)
        if connection is not None and not connection.is_closed:
            connection.abort(exceptions.ConnectionClosed(320, "not needed any more"))
            self._turn(time.monotonic())
        self._loop.deactivate_poller()
        self._loop.close()

    def _on_gone(self, _: Any, error: Exception) -> None:
        self._gone = error


#: Close codes of a channel.
_FORBIDDEN, _MISSING = 403, 404


def look(inquiry: Inquiry, places: Places, *, is_theirs: bool) -> list[Piece]:
    """
    Tell what is there of them, and what is different; changes nothing.

    `is_theirs`: the exchange everybody publishes to is somebody else's and may be of any type.
    """
    pieces: list[Piece] = []
    for place in places.all:
        if isinstance(place, Binding):
            is_missing = any(
                piece.state == "missing" for piece in pieces if piece.name in {place.queue, place.exchange}
            )
            pieces.append(_piece(place, "missing" if is_missing else "unknown"))
        else:
            compares = not (is_theirs and place is places.exchange)
            pieces.append(_look_at(inquiry, place, compares=compares))
    return pieces


def build(inquiry: Inquiry, places: Places, *, is_theirs: bool) -> list[Piece]:
    """Make what is missing of them, and tell how all of it is then."""
    pieces: list[Piece] = []
    for place in places.all:
        is_passive = is_theirs and place is places.exchange
        answer = inquiry.ask(partial(place.declare, passive=is_passive))
        pieces.append(_piece(place, "there") if not isinstance(answer, Exception) else _refused(place, answer))
    return pieces


def count(inquiry: Inquiry, places: Places) -> GroupBacklog:
    """Count the messages that are in no consumer's hand; a queue that is not there has none."""

    def ready(queue: Place) -> int:
        answer = inquiry.ask(partial(queue.declare, passive=True))
        return 0 if isinstance(answer, Exception) else answer.message_count

    name = places.queue.name
    return GroupBacklog({name: ready(places.queue)}, sum(map(ready, places.retries.values())), ready(places.dead))


def mismatch(queue: str, refusal: BaseException) -> ConfigurationError:
    """Return the error for what the broker refuses to a group while it is set up."""
    return ConfigurationError(f"the group of {queue} cannot be set up: {_trouble(refusal)}")


def _look_at(inquiry: Inquiry, place: Place, *, compares: bool) -> Piece:
    answer = inquiry.ask(partial(place.declare, passive=True))
    if isinstance(answer, Exception):
        return _refused(place, answer)
    # Declaring what exists changes nothing: the broker only says whether it is the same.
    answer = inquiry.ask(place.declare) if compares else None
    return _refused(place, answer) if isinstance(answer, Exception) else _piece(place, "there")


def _refused(place: Place, refusal: Exception) -> Piece:
    code = getattr(refusal, "reply_code", 0)
    if code == _MISSING:
        return _piece(place, "missing")
    # Whoever may not configure cannot compare.
    return _piece(place, "unknown" if code == _FORBIDDEN else "different", _trouble(refusal))


def _piece(place: Place, state: str, trouble: str = "") -> Piece:
    return Piece(place.kind, place.name, place.details, state, trouble)


def _trouble(refusal: BaseException) -> str:
    code, text = getattr(refusal, "reply_code", 0), getattr(refusal, "reply_text", str(refusal))
    return f"{code} {text}; {_WAYS_OUT.get(code, _WAY_OUT)}"


_WAY_OUT = (
    "delete it once it is empty (it is made again as it has to be), give the broker the `queue_arguments` "
    "it has, or give the group another name"
)
_WAYS_OUT = {
    _FORBIDDEN: "give the user the permission to configure, or build it as another user and say `declare=False`",
    _MISSING: "build it first, or leave out `declare=False`",
}
