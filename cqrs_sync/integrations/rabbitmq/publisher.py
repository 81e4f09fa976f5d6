"""What one call of `publish` waits for."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import pika
from pika.channel import Channel
from pika.connection import Parameters

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.errors import BrokerUnavailable, Closed, DeliveryError, MessageRejected, PublishFailed
from cqrs_sync.integrations.rabbitmq.amqp import Encoder, LargeMessage
from cqrs_sync.integrations.rabbitmq.connection import CAN_EMIT, Connection, Link, Watch
from cqrs_sync.integrations.rabbitmq.errors import blames_a_message, delivery_error
from cqrs_sync.integrations.rabbitmq.topology import Exchange
from cqrs_sync.lifecycle import reset_in_child

_WAITING, _SENT, _RETURNED, _CONFIRMED, _FAILED = range(5)


class Batch:
    """
    Messages that are sent together, and what has become of each.

    One latch for all of them: a future per message would cost more than encoding it.
    The caller makes it and waits for it; everything between is the I/O thread's.
    """

    __slots__ = ("_done", "_errors", "_left", "_states", "abandoned", "encoded", "messages", "size")

    def __init__(self, messages: Sequence[OutgoingMessage], encoder: Encoder) -> None:
        self.messages = messages
        #: Bytes of all bodies.
        self.size = sum(len(message.body) for message in messages)
        #: None where a message cannot be encoded: it has failed.
        self.encoded: list[bytes | LargeMessage | None] = []
        #: Whether the caller has gone: what is not sent yet must not be sent any more.
        self.abandoned = False
        self._states = bytearray(len(messages))
        self._left = len(messages)
        self._errors: dict[int, DeliveryError] = {}
        self._done = threading.Lock()
        self._done.acquire()
        for index, message in enumerate(messages):
            try:
                self.encoded.append(encoder.encode(message))
            except MessageRejected as error:
                self.encoded.append(None)
                self.fail(index, error)

    def sent(self, index: int) -> None:
        """Take note that this message is on its way: from now on nobody knows whether it arrived."""
        self._states[index] = _SENT

    def returned(self, index: int, error: DeliveryError) -> None:
        """Take note that the broker gave this message back; its confirm is still to come."""
        self._states[index] = _RETURNED
        self._errors[index] = error

    def awaits_return(self, index: int, message_id: str, topic: str) -> bool:
        """Tell whether this message, which is under way, is the one that was given back."""
        message = self.messages[index]
        return self._states[index] == _SENT and message.id == message_id and message.topic == topic

    def was_returned(self, index: int) -> bool:
        """Tell whether the broker gave this message back."""
        return self._states[index] == _RETURNED

    def confirm(self, index: int) -> None:
        """Take note that the broker has answered for this message."""
        self._states[index] = _FAILED if self._states[index] == _RETURNED else _CONFIRMED
        self._settled()

    def fail(self, index: int, error: DeliveryError) -> None:
        """Take note that this message will not be confirmed."""
        self._states[index] = _FAILED
        self._errors[index] = error
        self._settled()

    def fail_rest(self, error: DeliveryError) -> None:
        """Take note that nothing that is still open will be confirmed."""
        for index, state in enumerate(self._states):
            if state < _CONFIRMED:
                self.fail(index, self._errors.get(index, error))

    def wait(self, until: float) -> bool:
        """Wait at most until `until` for every message to be settled; tell whether they are."""
        return self._left == 0 or self._done.acquire(timeout=max(0.0, until - time.monotonic()))

    def failures(self, trouble: str) -> list[tuple[OutgoingMessage, DeliveryError]]:
        """Pair each message that is not confirmed with the reason; `trouble` is why open ones are open."""
        # The I/O thread may go on while we read: what counts is this moment.
        states = bytes(self._states)
        if states.count(_CONFIRMED) == len(states):
            return []
        return [
            (self.messages[index], self._errors.get(index) or _open(state, trouble))
            for index, state in enumerate(states)
            if state != _CONFIRMED
        ]

    def _settled(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._done.release()


def _open(state: int, trouble: str) -> DeliveryError:
    if state == _WAITING:
        return BrokerUnavailable(f"not sent in time: {trouble}")
    return BrokerUnavailable(f"not confirmed in time, whether it arrived is unknown: {trouble}")


logger = logging.getLogger(__name__)

#: Bytes joined into one write.
_WRITE = 65536

#: One message: which batch, and where in it.
Item = tuple[Batch, int]
_NOBODY: tuple[None, int] = (None, 0)


class Publisher:
    """
    Sends batches of any thread, pipelined, and settles each message as the broker answers.

    `submit`, `nudge`, `trouble`, `stop` and `disown` belong to other threads, the rest to
    the I/O thread. What was under way when the connection broke is sent again, with the
    same id, while its caller waits: at least once, consumers drop ids they have seen.
    """

    def __init__(
        self, parameters: Parameters, exchange: Exchange, *, declare: bool, patience: float, prefix: str
    ) -> None:
        self._exchange = exchange
        self._declare = declare
        self._prefix = prefix
        self._link = Link(parameters, self, "cqrs-sync-rabbitmq-publisher")
        self._watch = Watch(self._link, patience, lambda: bool(self._in_flight) and self._blocked is None)
        self._stopped = False
        self._channel: Channel | None = None
        self._frame_max = 0
        self._blocked: str | None = None
        self._queue: deque[Batch] = deque()
        self._scheduled = False
        #: Sent again before anything new.
        self._again: deque[Item] = deque()
        #: One of these ended the channel: they are sent one by one, until it does so again.
        self._suspects: deque[Item] = deque()
        self._one_by_one = False
        #: By delivery tag, in the order they were sent.
        self._in_flight: dict[int, Item] = {}
        self._tag = 0
        self._lowest_open = 1
        self._last_returned = 0
        self._writing: list[bytes] = []
        self._written = 0

    def submit(self, batch: Batch) -> None:
        """Send a batch as soon as possible."""
        self._queue.append(batch)
        try:
            self.nudge()
        except RuntimeError as error:
            # No thread can be started: the process is leaving, or has too many.
            self._scheduled = False
            batch.abandoned = True
            batch.fail_rest(BrokerUnavailable(f"not sent: {error}"))
        if self._stopped:
            batch.fail_rest(_closed())

    def nudge(self) -> None:
        """Look at the queue soon."""
        # Two threads may both see False: that costs one look too many. `_drain` clears
        # the flag before it looks, so there is never one too few.
        if not self._scheduled:
            self._scheduled = True
            self._link.wake(self._drain)

    def trouble(self) -> str:
        """Say why messages are not confirmed."""
        blocked, trouble = self._blocked, self._link.trouble
        if blocked is not None:
            return f"the broker blocks publishers: {blocked} (RabbitMQ at {self._link.address})"
        if trouble is not None:
            return str(trouble)
        return f"no answer (RabbitMQ at {self._link.address})"

    def stop(self, until: float) -> None:
        """Close the connection and fail what is left."""
        self._stopped = True
        self._link.stop(until)
        self._fail_all(_closed())

    def disown(self) -> None:
        """Let go, in a forked child, of what belongs to the parent."""
        self._link.disown()

    def opened(self, connection: Connection) -> None:
        """Listen for alarms: the broker stops reading from publishers when it runs out of memory or disk."""
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)

    def set_up(self, channel: Channel) -> None:
        """Prepare a new channel: the exchange, returns, confirms."""
        self._channel = channel
        channel.add_on_return_callback(self._on_return)
        self._exchange.declare(channel, _nothing, passive=not self._declare)
        channel.confirm_delivery(self._on_confirm, callback=self._on_ready)

    def lost(self, error: Exception) -> None:
        """Send again what has no answer, one by one where a message may be what ended the channel."""
        under_way = [item for item in self._in_flight.values() if not _settled_by_return(item)]
        self._in_flight.clear()
        self._writing.clear()
        self._written = 0
        self._channel = self._blocked = None
        if not blames_a_message(error):
            (self._suspects if self._one_by_one else self._again).extendleft(reversed(under_way))
        elif len(under_way) == 1:
            batch, index = under_way[0]
            batch.fail(index, delivery_error(error, self._link.address))
        else:
            self._suspects.extendleft(reversed(under_way))
        self._one_by_one = bool(self._suspects)

    def refused(self, error: DeliveryError) -> None:
        """Fail everything that waits: nothing can be published at all."""
        self._fail_all(error)

    def wanted(self) -> bool:
        """Tell whether somebody still waits; forget those who do not."""
        for items in (self._again, self._suspects):
            waiting = [item for item in items if not item[0].abandoned]
            items.clear()
            items.extend(waiting)
        # Callers append meanwhile: the queue is changed by steps that are atomic.
        for batch in list(self._queue):
            if batch.abandoned:
                self._queue.remove(batch)
        return bool(self._queue or self._again or self._suspects)

    def _fail_all(self, error: DeliveryError) -> None:
        items = chain(self._in_flight.values(), self._again, self._suspects)
        batches = {id(batch): batch for batch in [*(batch for batch, _ in items), *self._queue]}
        for waiting in (self._in_flight, self._again, self._suspects, self._queue):
            waiting.clear()
        for batch in batches.values():
            batch.fail_rest(error)

    def _on_ready(self, _: Any) -> None:
        self._tag, self._lowest_open, self._last_returned = 0, 1, 0
        connection = self._link.connection
        self._frame_max = connection.params.frame_max if connection is not None else 0
        self._link.is_ready()
        self._drain()

    def _drain(self) -> None:
        self._scheduled = False
        if not self._link.ready or self._blocked is not None:
            if self.wanted():
                self._link.ensure()
            return
        if self._one_by_one:
            while self._suspects and not self._in_flight:
                self._send(*self._suspects.popleft())
            self._one_by_one = bool(self._in_flight)
        if not self._one_by_one:
            self._send_all()
        self._write()
        self._watch.start()

    def _send_all(self) -> None:
        while self._again:
            self._send(*self._again.popleft())
        while self._queue:
            batch = self._queue.popleft()
            for index in range(len(batch.messages)):
                self._send(batch, index)

    def _send(self, batch: Batch, index: int) -> None:
        encoded = batch.encoded[index]
        if encoded is None or batch.abandoned:
            return
        pieces: Iterable[bytes] = (encoded,) if isinstance(encoded, bytes) else ()
        if isinstance(encoded, LargeMessage):
            try:
                pieces = encoded.pieces(self._frame_max)
            except MessageRejected as error:
                batch.fail(index, error)
                return
        self._tag += 1
        self._in_flight[self._tag] = (batch, index)
        batch.sent(index)
        if CAN_EMIT:
            for piece in pieces:
                self._writing.append(piece)
                self._written += len(piece)
                if self._written >= _WRITE:
                    self._write()
        else:
            self._publish(batch.messages[index])

    def _write(self) -> None:
        if self._writing and self._link.connection is not None:
            self._link.connection.emit(b"".join(self._writing))
        self._writing.clear()
        self._written = 0

    def _publish(self, message: OutgoingMessage) -> None:
        """Publish through pika's own encoder."""
        assert self._channel is not None
        headers = {f"{self._prefix}{name}": value for name, value in message.attributes.items()}
        properties = pika.BasicProperties(
            content_type=message.content_type, headers=headers or None, delivery_mode=2, message_id=message.id
        )
        self._channel.basic_publish(self._exchange.name, message.topic, message.body, properties, mandatory=True)

    def _on_confirm(self, answer: Any) -> None:
        method = answer.method
        tag: int = method.delivery_tag
        refused = isinstance(method, pika.spec.Basic.Nack)
        for answered in range(self._lowest_open if method.multiple else tag, tag + 1):
            batch, index = self._in_flight.pop(answered, _NOBODY)
            if batch is None:
                continue
            if refused:
                batch.fail(index, BrokerUnavailable("the broker did not take it (nack): a queue is full or failing"))
            else:
                batch.confirm(index)
        if method.multiple:
            self._lowest_open = tag + 1
        if self._one_by_one and not self._in_flight:
            self._drain()

    def _on_return(self, _: Any, method: Any, properties: Any, __: bytes) -> None:
        """
        Find what was given back: a return names the message, not its tag.

        Returns come in the order of publishing, so the search goes on where the last
        one ended; two messages with the same id, even the same topic, are told apart.
        """
        for tag in range(self._last_returned + 1, self._tag + 1):
            batch, index = self._in_flight.get(tag, _NOBODY)
            if batch is not None and batch.awaits_return(index, properties.message_id, method.routing_key):
                self._last_returned = tag
                words = f"no queue is bound to the topic {method.routing_key!r} on the exchange {self._exchange.name!r}"
                way_out = "start who receives it, or make the queue of its group with `cqrs-sync topology apply`"
                answer = f"({method.reply_code} {method.reply_text})"
                batch.returned(index, MessageRejected(f"{words} {answer}: {way_out}"))
                return
        logger.warning("RabbitMQ returned a message that was not under way: %r", properties.message_id)

    def _on_blocked(self, _: Any, answer: Any) -> None:
        self._blocked = str(answer.method.reason)
        logger.warning("RabbitMQ at %s blocks publishers: %s", self._link.address, self._blocked)

    def _on_unblocked(self, _: Any, __: Any) -> None:
        self._blocked = None
        self._drain()


def _settled_by_return(item: Item) -> bool:
    batch, index = item
    if batch.was_returned(index):
        batch.confirm(index)
        return True
    return False


def _closed() -> BrokerUnavailable:
    return BrokerUnavailable("the broker object was closed before an answer came")


def _nothing(_: Any) -> None:
    """Wait for the answer, as pika does where it is given a callback."""


#: The first of these is on its way while the next is encoded.
_BATCH_MESSAGES = 100
_BATCH_BYTES = 1024 * 1024
#: So much of a call is under way at a time: memory is bounded, and the broker never idle.
_UNDER_WAY = 10
_UNDER_WAY_BYTES = 8 * 1024 * 1024
#: Of the seconds `close` has, this share is kept for saying goodbye.
_GOODBYE = 0.2

Failures = list[tuple[OutgoingMessage, DeliveryError]]


class Outlet:
    """
    Cuts calls into batches and waits for them; its publisher starts with the first call.

    Any thread may publish. A forked child makes a publisher of its own.
    """

    def __init__(self, encoder: Encoder, make_publisher: Callable[[], Publisher]) -> None:
        self.encoder = encoder
        self.publisher: Publisher | None = None
        #: Calls that run.
        self.calls = 0
        self._make_publisher = make_publisher
        self._closed = False
        self._changed = threading.Condition()
        reset_in_child(self)

    def publish(self, messages: Sequence[OutgoingMessage], until: float) -> None:
        """Publish a batch and return when every message is confirmed. Raises PublishFailed and Closed."""
        publisher = self._enter()
        try:
            failures = self._publish(publisher, messages, until) if messages else None
        finally:
            self._leave()
        if failures:
            raise PublishFailed(failures)

    def close(self, until: float) -> None:
        """Refuse new messages, let running calls finish, close the connection."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self.calls == 0, max(0.0, until - time.monotonic()) * (1 - _GOODBYE))
            publisher, self.publisher = self.publisher, None
        if publisher is not None:
            publisher.stop(until)

    def reset_in_child(self) -> None:
        """Leave the parent's connection and thread alone; the child makes its own at first use."""
        self._changed = threading.Condition()
        self.calls = 0
        publisher, self.publisher = self.publisher, None
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
                batch = Batch(part, self.encoder)
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
            if self._closed:
                raise Closed("this RabbitMQBroker is closed")
            self.calls += 1
            if self.publisher is None:
                self.publisher = self._make_publisher()
            return self.publisher

    def _leave(self) -> None:
        with self._changed:
            self.calls -= 1
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
