"""The exchanges, queues and bindings of a group: their names and arguments, and how the broker has them."""

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

from cqrs_sync.broker import Group, GroupBacklog, TopologyItem
from cqrs_sync.errors import BrokerUnavailable, ConfigurationError
from cqrs_sync.integrations.rabbitmq.amqp import SHORT
from cqrs_sync.integrations.rabbitmq.connection import PikaConnection, address_of
from cqrs_sync.integrations.rabbitmq.errors import describe, quiet_pika

#: The longest name of a group with its exchange: the names of its other queues are longer.
_LONGEST_NAME = SHORT - 32
#: Milliseconds that RabbitMQ takes as a time to live.
_LONGEST_TTL = 2**32 - 1
#: Consumers count deliveries, and make dead letters much earlier. This limit is for messages that crash every consumer.
_GROUP_DELIVERIES = 1000
#: Browsing dead letters delivers them. RabbitMQ 4 would drop them after 20 deliveries.
_DEAD_DELIVERIES = 2**31 - 1
_QUORUM = "quorum"
#: An expired or too often delivered message stays in its queue until the next queue has confirmed it.
_AT_LEAST_ONCE: Mapping[str, Any] = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
#: Seconds to close a connection regularly.
_CLOSE_TIMEOUT = 1.0
#: Close codes of a channel.
_REFUSALS = _FORBIDDEN, _MISSING, _LOCKED, _DIFFERENT = 403, 404, 405, 406

OnAnswer = Callable[[Any], None]


def ignore_answer(_: Any) -> None:
    """With a callback pika waits for the answer before it sends the next request."""


@attrs.frozen
class Exchange:
    """A durable exchange."""

    name: str
    type: str
    kind: ClassVar[str] = "exchange"

    @property
    def details(self) -> str:
        """Its type."""
        return f"{self.type}, durable"

    def declare(self, channel: Channel, on_answer: OnAnswer, *, passive: bool = False) -> None:
        """Create it if it is missing; only check that it is there if `passive`."""
        channel.exchange_declare(self.name, exchange_type=self.type, durable=True, passive=passive, callback=on_answer)


@attrs.frozen
class Queue:
    """A durable queue."""

    name: str
    arguments: Mapping[str, Any] = attrs.field(factory=dict)
    kind: ClassVar[str] = "queue"

    @property
    def details(self) -> str:
        """Its arguments."""
        return ", ".join(("durable", *(f"{name}={value}" for name, value in self.arguments.items())))

    def declare(self, channel: Channel, on_answer: OnAnswer, *, passive: bool = False) -> None:
        """Create it if it is missing; only check that it is there if `passive`."""
        arguments = dict(self.arguments)
        channel.queue_declare(self.name, durable=True, arguments=arguments, passive=passive, callback=on_answer)


@attrs.frozen
class QueueBinding:
    """A queue gets the messages of an exchange whose topic matches."""

    queue: str
    exchange: str
    topic: str
    kind: ClassVar[str] = "binding"
    details: ClassVar[str] = ""

    @property
    def name(self) -> str:
        """Exchange, topic and queue."""
        return f"{self.exchange} -- {self.topic} -> {self.queue}"

    def declare(self, channel: Channel, on_answer: OnAnswer, *, passive: bool = False) -> None:
        """Create it if it is missing, also if `passive`: AMQP cannot check bindings."""
        del passive
        channel.queue_bind(self.queue, self.exchange, self.topic, callback=on_answer)


Declaration = Exchange | Queue | QueueBinding


@attrs.frozen
class GroupTopology:
    """The exchanges and queues of a group."""

    #: All services publish here.
    exchange: Exchange
    #: Groups publish here what they keep. On the other exchange every group bound to `#` would get it.
    aside: Exchange
    queue: Queue
    #: By delay, in seconds.
    retries: Mapping[float, Queue]
    dead: Queue
    topics: tuple[str, ...]

    @property
    def declarations(self) -> tuple[Declaration, ...]:
        """All of it, in an order in which it can be created."""
        queues = (self.queue, *self.retries.values(), self.dead)
        return (
            self.exchange,
            self.aside,
            *queues,
            *(QueueBinding(self.queue.name, self.exchange.name, topic) for topic in self.topics),
            *(QueueBinding(queue.name, self.aside.name, queue.name) for queue in queues),
        )

    def retry_queue(self, after: float) -> str:
        """Return the queue for messages that are deferred. Raises ValueError for a delay that the group lacks."""
        if after == 0:
            return self.queue.name
        if after not in self.retries:
            known = ", ".join(f"{delay:g}" for delay in self.retries) or "none"
            raise ValueError(f"the group of {self.queue.name} has no delay of {after:g} s, only: {known}")
        return self.retries[after].name


def aside_exchange(exchange: str) -> Exchange:
    """Return the exchange for deferred messages and dead letters."""
    return Exchange(f"{exchange}.aside", "direct")


def topology_of(group: Group, exchange: str, queue_arguments: Mapping[str, Any]) -> GroupTopology:
    """
    Return what a group needs, without asking the broker.

    Raises ConfigurationError for a name that AMQP does not take, or that names a queue of another group.
    """
    name = f"{exchange}.{group.name}"
    is_reserved = group.name.endswith(".dead") or ".retry." in group.name
    if is_reserved or len(name.encode()) > _LONGEST_NAME:
        raise ConfigurationError(
            f"{group.name!r} cannot be a group of {exchange!r}: exchange and group together have at most "
            f"{_LONGEST_NAME} bytes, and *.dead and *.retry.* are the names of their other queues"
        )
    aside = aside_exchange(exchange)
    kind = queue_arguments.get("x-queue-type", _QUORUM)
    # A group that lives for one run leaves nothing behind.
    expiry = {argument: queue_arguments[argument] for argument in queue_arguments if argument == "x-expires"}
    dead = Queue(f"{name}.dead", {**_arguments(kind, {"x-delivery-limit": _DEAD_DELIVERIES}), **expiry})
    arguments = {
        **_arguments(kind, {"x-delivery-limit": _GROUP_DELIVERIES, **_AT_LEAST_ONCE}),
        "x-dead-letter-exchange": aside.name,
        "x-dead-letter-routing-key": dead.name,
    }
    if group.ordered:
        # One subscription receives, the others stand by. Otherwise two of them could have messages of one key.
        arguments["x-single-active-consumer"] = True
    queue = Queue(name, {**arguments, **queue_arguments})
    retries = {delay: _retry_queue(delay, name, kind) for delay in group.delays}
    return GroupTopology(Exchange(exchange, "topic"), aside, queue, retries, dead, group.topics)


def _retry_queue(delay: float, name: str, kind: str) -> Queue:
    milliseconds = round(delay * 1000)
    if not 0 < milliseconds <= _LONGEST_TTL:
        raise ConfigurationError(f"RabbitMQ waits between 0.001 and {_LONGEST_TTL // 1000} s, not {delay}")
    seconds = f"{milliseconds / 1000:.3f}".rstrip("0").rstrip(".")
    arguments = {
        **_arguments(kind, _AT_LEAST_ONCE),
        "x-message-ttl": milliseconds,
        # The default exchange delivers to the queue with the name of the routing key.
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": name,
    }
    return Queue(f"{name}.retry.{seconds}", arguments)


def _arguments(kind: str, quorum_only: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the arguments that classic queues refuse."""
    return {"x-queue-type": kind, **(quorum_only if kind == _QUORUM else {})}


class AdminConnection:
    """
    A connection for requests and answers in the caller's thread. Use it with `with`: it ends after `timeout` seconds.

    pika's BlockingConnection has no time limit for an answer. A refusal closes the channel, not the connection:
    the next request opens a new channel. Entering and `request` raise BrokerUnavailable.
    """

    def __init__(self, parameters: Parameters, timeout: float) -> None:
        self._parameters = parameters
        self._deadline = time.monotonic() + timeout
        self._loop: Any = IOLoop()
        self._connection: Any = None
        self._channel: Channel | None = None
        self._error: Exception | None = None

    @quiet_pika()
    def request(self, send: Callable[[Channel, OnAnswer], None]) -> Any:
        """Let `send` send a request; return the answer's method, or ChannelClosedByBroker if the broker refuses."""
        if self._channel is None:
            opened: list[Channel] = []
            self._connection.channel(on_open_callback=opened.append)
            self._run_until(lambda: bool(opened))
            self._channel = opened[0]
        channel, answers = self._channel, []
        channel.add_on_close_callback(lambda _, error: answers.append(error))
        send(channel, answers.append)
        self._run_until(lambda: bool(answers))
        answer = answers[0]
        if isinstance(answer, Exception):
            self._channel = None
            return answer
        return answer.method

    @quiet_pika()
    def __enter__(self) -> Self:
        self._loop.activate_poller()
        try:
            self._connection = PikaConnection(
                self._parameters,
                on_open_error_callback=self._on_closed,
                on_close_callback=self._on_closed,
                custom_ioloop=self._loop,
            )
            self._run_until(lambda: self._connection.is_open)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self._close()

    def _run_until(self, is_done: Callable[[], bool]) -> None:
        while not is_done():
            left = self._deadline - time.monotonic()
            if self._error is None and left <= 0:
                self._error = TimeoutError("no answer")
            if self._error is not None:
                address = address_of(self._parameters)
                raise BrokerUnavailable(f"{describe(self._error)} (RabbitMQ at {address})") from self._error
            self._run_once(left)

    def _run_once(self, timeout: float) -> None:
        # The poller waits until a timer is due: this one ends the wait.
        timer = self._loop.call_later(max(0.0, timeout), lambda: None)
        self._loop.poll()
        self._loop.process_timeouts()
        self._loop.remove_timeout(timer)

    @quiet_pika()
    def _close(self) -> None:
        deadline = time.monotonic() + _CLOSE_TIMEOUT
        connection = self._connection
        # pika cannot close a connection that is not open yet.
        if connection is not None and connection.is_open and self._error is None:
            connection.close()
            while self._error is None and (left := deadline - time.monotonic()) > 0:
                self._run_once(left)
        if connection is not None and not connection.is_closed:
            connection.abort(exceptions.ConnectionClosed(320, "not needed any more"))
            self._run_once(0)
        self._loop.deactivate_poller()
        self._loop.close()

    def _on_closed(self, _: Any, error: Exception) -> None:
        self._error = error


def inspect(connection: AdminConnection, topology: GroupTopology, *, any_exchange: bool) -> list[TopologyItem]:
    """
    Return what is there and what differs. Nothing is created.

    `any_exchange`: the exchange may be of any type, because another team owns it.
    """
    items: list[TopologyItem] = []
    for declaration in topology.declarations:
        if isinstance(declaration, QueueBinding):
            ends = {declaration.queue, declaration.exchange}
            is_missing = any(item.state == "missing" for item in items if item.name in ends)
            items.append(_item(declaration, "missing" if is_missing else "unknown"))
            continue
        answer = connection.request(partial(declaration.declare, passive=True))
        if not isinstance(answer, Exception) and not (any_exchange and declaration is topology.exchange):
            # To declare what exists changes nothing: the broker only compares it.
            answer = connection.request(declaration.declare)
        items.append(_item_for(declaration, answer))
    return items


def declare(connection: AdminConnection, topology: GroupTopology, *, any_exchange: bool) -> list[TopologyItem]:
    """Create what is missing, and return the state of everything."""
    return [
        _item_for(each, connection.request(partial(each.declare, passive=any_exchange and each is topology.exchange)))
        for each in topology.declarations
    ]


def count_backlog(connection: AdminConnection, topology: GroupTopology) -> GroupBacklog:
    """Count the messages that no consumer holds; a missing queue counts as empty."""

    def ready(queue: Queue) -> int:
        answer = connection.request(partial(queue.declare, passive=True))
        return 0 if isinstance(answer, Exception) else answer.message_count

    waiting = {topology.queue.name: ready(topology.queue)}
    return GroupBacklog(waiting, sum(map(ready, topology.retries.values())), ready(topology.dead))


def mismatch(queue: str, error: BaseException) -> ConfigurationError | None:
    """Return the error for a group whose declaration the broker has refused; None if `error` has another cause."""
    refusal = error.__cause__
    if isinstance(refusal, exceptions.ChannelClosedByBroker) and refusal.reply_code in _REFUSALS:
        return ConfigurationError(f"the group of {queue} cannot be set up: {_with_way_out(refusal)}")
    return None


def _item_for(declaration: Declaration, answer: Any) -> TopologyItem:
    if not isinstance(answer, Exception):
        return _item(declaration, "there")
    code = getattr(answer, "reply_code", 0)
    if code == _MISSING:
        return _item(declaration, "missing")
    # Without the permission to configure, RabbitMQ does not compare.
    return _item(declaration, "unknown" if code == _FORBIDDEN else "different", _with_way_out(answer))


def _item(declaration: Declaration, state: str, trouble: str = "") -> TopologyItem:
    return TopologyItem(declaration.kind, declaration.name, declaration.details, state, trouble)


def _with_way_out(refusal: BaseException) -> str:
    code, text = getattr(refusal, "reply_code", 0), getattr(refusal, "reply_text", str(refusal))
    order = "give the group the same `ordered` everywhere, or " if "x-single-active-consumer" in text else ""
    return f"{code} {text}; {order}{_WAYS_OUT.get(code, _WAY_OUT)}"


_WAY_OUT = (
    "delete it once it is empty (the next consumer creates it with the right arguments), give the broker the "
    "`queue_arguments` that it has, or give the group another name"
)
_WAYS_OUT = {
    _FORBIDDEN: "give the user the permission to configure, or build it as another user and set `declare=False`",
    _MISSING: "build it first, or leave out `declare=False`",
}
