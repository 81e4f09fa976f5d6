"""Publishing with confirms: calls of any thread become batches, one I/O thread sends them on one channel."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import pika
from pika.channel import Channel
from pika.connection import Parameters

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.errors import BrokerUnavailable, ClosedError, DeliveryError, MessageRejected, PublishFailed
from cqrs_sync.integrations.rabbitmq.amqp import LargeMessage, MessageEncoder
from cqrs_sync.integrations.rabbitmq.connection import CAN_EMIT, ConnectionThread, LivenessProbe, PikaConnection
from cqrs_sync.integrations.rabbitmq.errors import NACKED, delivery_error, is_message_error
from cqrs_sync.integrations.rabbitmq.messages import PREFIX
from cqrs_sync.integrations.rabbitmq.topology import Exchange, ignore_answer
from cqrs_sync.lifecycle import reset_in_child

logger: logging.Logger = logging.getLogger(__name__)

#: A call is cut into batches of this size: the first is sent while the next is encoded.
_BATCH_MESSAGES = 100
_BATCH_BYTES = 1024 * 1024
#: Batches and bytes of one call in flight: they bound the memory, and keep the broker busy.
_IN_FLIGHT_BATCHES = 10
_IN_FLIGHT_BYTES = 8 * 1024 * 1024
#: Share of the seconds of `close` that is kept for closing the connection.
_CLOSE_SHARE = 0.2
#: Bytes joined into one write.
_WRITE = 65536
_CLOSED = "the broker object was closed before an answer came"

_WAITING, _SENT, _SETTLED = range(3)

Failures = list[tuple[OutgoingMessage, DeliveryError]]


class PublishBatch:
    """
    Messages that are sent together, and the state of each.

    One lock wakes the caller when all are settled: a future per message would cost more than encoding it.
    The caller creates the batch and waits for it. Everything else is called by the connection thread.
    """

    __slots__ = ("_done", "_errors", "_left", "_states", "abandoned", "encoded", "messages", "size")

    def __init__(self, messages: Sequence[OutgoingMessage], encoder: MessageEncoder) -> None:
        self.messages: Sequence[OutgoingMessage] = messages
        #: Bytes of all bodies.
        self.size: int = sum(len(message.body) for message in messages)
        #: None for a message that cannot be encoded: it has failed.
        self.encoded: list[bytes | LargeMessage | None] = []
        #: The caller does not wait any more: messages that are not sent yet must not be sent.
        self.abandoned: bool = False
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

    def mark_sent(self, index: int) -> None:
        """Note that this message was sent: until its confirm, nothing tells whether it arrived."""
        self._states[index] = _SENT

    def mark_returned(self, index: int, error: DeliveryError) -> None:
        """Note that the broker returned this message as unroutable. The broker confirms it all the same, later."""
        self._errors[index] = error

    def is_returned(self, index: int) -> bool:
        """Tell whether the broker returned this message."""
        return index in self._errors

    def settle(self, index: int) -> None:
        """Note the broker's confirm: the message has failed if it was returned, else it is published."""
        self._states[index] = _SETTLED
        self._left -= 1
        if self._left == 0:
            self._done.release()

    def fail(self, index: int, error: DeliveryError) -> None:
        """Settle a message that the broker does not confirm."""
        self._errors[index] = error
        self.settle(index)

    def fail_unsettled(self, error: DeliveryError) -> None:
        """Settle every message that has no answer yet."""
        for index, state in enumerate(self._states):
            if state != _SETTLED:
                self.fail(index, self._errors.get(index, error))

    def wait(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds until every message is settled; tell whether they are."""
        return self._left == 0 or self._done.acquire(timeout=max(0.0, timeout))

    def failures(self, cause: str) -> Failures:
        """Return each message that is not confirmed with its error; `cause` says why unsettled ones have no answer."""
        # The connection thread may settle messages meanwhile: one copy decides.
        states = bytes(self._states)
        if not self._errors and states.count(_SETTLED) == len(states):
            return []
        unsettled = {
            _WAITING: BrokerUnavailable(f"not sent in time: {cause}"),
            _SENT: BrokerUnavailable(f"not confirmed in time, it may have arrived: {cause}"),
        }
        errors = [self._errors.get(index) or unsettled.get(state) for index, state in enumerate(states)]
        return [(message, error) for message, error in zip(self.messages, errors, strict=True) if error is not None]


class ConfirmingPublisher:
    """
    Publishes to one exchange from any thread, and waits for the confirms.

    The first call starts the connection thread. A forked child makes its own. Attributes become headers,
    with `prefix` before their names. `silence_timeout`: seconds without an answer until it reconnects.
    """

    def __init__(
        self,
        parameters: Parameters,
        exchange: Exchange,
        *,
        declare: bool,
        silence_timeout: float,
        max_bytes: int,
        prefix: str = PREFIX,
    ) -> None:
        self._encoder = MessageEncoder(exchange.name, max_bytes, prefix)
        self._new_channel = partial(
            ConfirmChannel, parameters, exchange, declare=declare, silence_timeout=silence_timeout, prefix=prefix
        )
        self._channel: ConfirmChannel | None = None
        self._running_calls = 0
        self._closed = False
        self._changed = threading.Condition()
        reset_in_child(self)

    def publish(self, messages: Sequence[OutgoingMessage], timeout: float) -> None:
        """Publish a batch and return when every message is confirmed. Raises PublishFailed and ClosedError."""
        channel = self._enter()
        try:
            failures = self._publish(channel, messages, time.monotonic() + timeout) if messages else None
        finally:
            self._leave()
        if failures:
            raise PublishFailed(failures)

    def close(self, timeout: float) -> None:
        """Refuse new messages, let running calls finish, close the connection."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._running_calls == 0, max(0.0, timeout) * (1 - _CLOSE_SHARE))
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.close(deadline - time.monotonic())

    def reset_in_child(self) -> None:
        """Leave the connection and its thread to the parent; the child makes its own at first use."""
        self._changed = threading.Condition()
        self._running_calls = 0
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.leave_to_parent()

    def _publish(self, channel: ConfirmChannel, messages: Sequence[OutgoingMessage], deadline: float) -> Failures:
        failures: Failures = []
        in_flight: deque[PublishBatch] = deque()
        try:
            for part in _parts(messages):
                while len(in_flight) >= _IN_FLIGHT_BATCHES or sum(batch.size for batch in in_flight) > _IN_FLIGHT_BYTES:
                    failures += channel.wait_for(in_flight[0], deadline - time.monotonic())
                    in_flight.popleft()
                if time.monotonic() >= deadline:
                    error = BrokerUnavailable(f"not sent in time: {channel.last_error()}")
                    failures += ((message, error) for message in part)
                    continue
                batch = PublishBatch(part, self._encoder)
                in_flight.append(batch)
                channel.submit(batch)
            while in_flight:
                failures += channel.wait_for(in_flight[0], deadline - time.monotonic())
                in_flight.popleft()
        finally:
            # After Ctrl-C or a worker's time limit the rest must not be sent.
            for batch in in_flight:
                batch.abandoned = True
        return failures

    def _enter(self) -> ConfirmChannel:
        with self._changed:
            if self._closed:
                raise ClosedError("this RabbitMQBroker is closed")
            self._running_calls += 1
            if self._channel is None:
                self._channel = self._new_channel()
            return self._channel

    def _leave(self) -> None:
        with self._changed:
            self._running_calls -= 1
            if self._closed:
                self._changed.notify_all()


def _parts(messages: Sequence[OutgoingMessage]) -> Iterator[Sequence[OutgoingMessage]]:
    """Cut the messages of a call into parts of bounded size, in order."""
    start = size = 0
    for end, message in enumerate(messages):
        if end > start and (end - start == _BATCH_MESSAGES or size + len(message.body) > _BATCH_BYTES):
            yield messages[start:end]
            start, size = end, 0
        size += len(message.body)
    yield messages[start:] if start else messages


#: One message: its batch and its index there.
Item = tuple[PublishBatch, int]
_NONE: tuple[None, int] = (None, 0)


class ConfirmChannel:
    """
    A channel in confirm mode: it pipelines the batches of all threads and settles each message by the broker's answer.

    Other threads call the public methods above `on_connected`; the connection thread calls everything else. A message
    that was in flight when the connection broke is sent again, with the same id, while its caller waits: delivery is
    at least once, and consumers drop ids that they have seen.
    """

    def __init__(
        self, parameters: Parameters, exchange: Exchange, *, declare: bool, silence_timeout: float, prefix: str
    ) -> None:
        self._exchange = exchange
        self._declare = declare
        self._prefix = prefix
        self._thread = ConnectionThread(parameters, "cqrs-sync-rabbitmq-publisher", self)
        self._probe = LivenessProbe(
            self._thread, silence_timeout, lambda: bool(self._in_flight) and self._blocked is None
        )
        self._closed = False
        self._connection: PikaConnection | None = None
        self._channel: Channel | None = None
        self._frame_max = 0
        #: The broker's reason while it blocks publishers.
        self._blocked: str | None = None
        self._queue: deque[PublishBatch] = deque()
        self._drain_scheduled = False
        #: In flight when a connection broke: sent before anything new.
        self._resend: deque[Item] = deque()
        #: One of these closed the channel: they are sent one at a time, until the channel closes again.
        self._suspects: deque[Item] = deque()
        self._one_by_one = False
        #: By delivery tag, in the order they were sent.
        self._in_flight: dict[int, Item] = {}
        self._tag = 0
        self._lowest_open = 1
        self._last_returned = 0
        self._writing: list[bytes] = []
        self._written = 0

    def submit(self, batch: PublishBatch) -> None:
        """Send a batch as soon as possible."""
        self._queue.append(batch)
        try:
            self._drain_soon()
        except RuntimeError as error:
            # No thread can start: the interpreter is leaving, or there are too many.
            self._drain_scheduled = False
            batch.abandoned = True
            batch.fail_unsettled(BrokerUnavailable(f"not sent: {error}"))
        if self._closed:
            batch.fail_unsettled(BrokerUnavailable(_CLOSED))

    def wait_for(self, batch: PublishBatch, timeout: float) -> Failures:
        """Wait at most `timeout` seconds for a batch and return the messages that are not confirmed."""
        if batch.wait(timeout):
            return batch.failures("")
        batch.abandoned = True
        # Queued messages are dropped now, not when the broker is back: that may take hours.
        self._drain_soon()
        return batch.failures(self.last_error())

    def last_error(self) -> str:
        """Return why the broker confirms nothing."""
        blocked, error = self._blocked, self._thread.last_error
        if blocked is not None:
            return f"the broker blocks publishers: {blocked} (RabbitMQ at {self._thread.address})"
        return str(error or f"no answer (RabbitMQ at {self._thread.address})")

    def close(self, timeout: float) -> None:
        """Close the connection and fail the messages that are left."""
        self._closed = True
        self._thread.close(timeout)
        self._fail_all(BrokerUnavailable(_CLOSED))

    def leave_to_parent(self) -> None:
        """Give up the parent's connection in a forked child."""
        self._thread.leave_to_parent()

    def on_connected(self, connection: PikaConnection) -> None:
        """Listen for alarms: a broker that runs out of memory or disk stops reading from publishers."""
        self._connection, self._frame_max = connection, connection.params.frame_max
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)

    def on_channel_open(self, channel: Channel) -> None:
        """Set up exchange, returns and confirms."""
        self._channel = channel
        channel.add_on_return_callback(self._on_return)
        self._exchange.declare(channel, ignore_answer, passive=not self._declare)
        channel.confirm_delivery(self._on_confirm, callback=self._on_ready)

    def on_channel_lost(self, error: Exception) -> None:
        """Send unanswered messages again; one at a time, if one of them may have closed the channel."""
        unanswered: list[Item] = []
        for batch, index in self._in_flight.values():
            if batch.is_returned(index):
                batch.settle(index)
            else:
                unanswered.append((batch, index))
        self._in_flight.clear()
        self._writing.clear()
        self._written = 0
        self._channel = self._blocked = None
        if not is_message_error(error):
            (self._suspects if self._one_by_one else self._resend).extendleft(reversed(unanswered))
        elif len(unanswered) == 1:
            batch, index = unanswered[0]
            batch.fail(index, delivery_error(error, self._thread.address))
        else:
            self._suspects.extendleft(reversed(unanswered))
        self._one_by_one = bool(self._suspects)

    def on_refused(self, error: DeliveryError) -> None:
        """Fail all messages: none can be published."""
        self._fail_all(error)

    def needs_channel(self) -> bool:
        """Tell whether a caller still waits; forget the messages of those that do not."""
        for items in (self._resend, self._suspects):
            waiting = [item for item in items if not item[0].abandoned]
            items.clear()
            items.extend(waiting)
        # Callers append to the queue meanwhile: each of these steps is atomic.
        for batch in list(self._queue):
            if batch.abandoned:
                self._queue.remove(batch)
        return bool(self._queue or self._resend or self._suspects)

    def _drain_soon(self) -> None:
        # Two threads may both read False, which costs one drain too many. `_drain` clears
        # the flag before it reads the queue, so no batch is missed.
        if not self._drain_scheduled:
            self._drain_scheduled = True
            self._thread.call_soon(self._drain)

    def _fail_all(self, error: DeliveryError) -> None:
        items = chain(self._in_flight.values(), self._resend, self._suspects)
        batches = dict.fromkeys([*(batch for batch, _ in items), *self._queue])
        for waiting in (self._in_flight, self._resend, self._suspects, self._queue):
            waiting.clear()
        for batch in batches:
            batch.fail_unsettled(error)

    def _on_ready(self, _: Any) -> None:
        self._tag, self._lowest_open, self._last_returned = 0, 1, 0
        self._thread.mark_ready()
        self._drain()

    def _drain(self) -> None:
        self._drain_scheduled = False
        if not self._thread.ready or self._blocked is not None:
            if self.needs_channel():
                self._thread.connect()
            return
        if self._one_by_one:
            while self._suspects and not self._in_flight:
                self._send(*self._suspects.popleft())
            self._one_by_one = bool(self._in_flight)
        if not self._one_by_one:
            self._send_all()
        self._write()
        self._probe.start()

    def _send_all(self) -> None:
        while self._resend:
            self._send(*self._resend.popleft())
        while self._queue:
            batch = self._queue.popleft()
            for index in range(len(batch.messages)):
                self._send(batch, index)

    def _send(self, batch: PublishBatch, index: int) -> None:
        encoded = batch.encoded[index]
        if encoded is None or batch.abandoned:
            return
        frames: Iterable[bytes] = (encoded,) if isinstance(encoded, bytes) else ()
        if isinstance(encoded, LargeMessage):
            try:
                frames = encoded.frames(self._frame_max)
            except MessageRejected as error:
                batch.fail(index, error)
                return
        self._tag += 1
        self._in_flight[self._tag] = (batch, index)
        batch.mark_sent(index)
        if not CAN_EMIT:
            self._publish_through_pika(batch.messages[index])
            return
        for data in frames:
            self._writing.append(data)
            self._written += len(data)
            if self._written >= _WRITE:
                self._write()

    def _write(self) -> None:
        if self._writing and self._connection is not None:
            self._connection.emit(b"".join(self._writing))
        self._writing.clear()
        self._written = 0

    def _publish_through_pika(self, message: OutgoingMessage) -> None:
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
            batch, index = self._in_flight.pop(answered, _NONE)
            if batch is None:
                continue
            if refused:
                batch.fail(index, BrokerUnavailable(NACKED))
            else:
                batch.settle(index)
        if method.multiple:
            self._lowest_open = tag + 1
        if self._one_by_one and not self._in_flight:
            self._drain()

    def _on_return(self, _: Any, method: Any, properties: Any, __: bytes) -> None:
        """
        Find the returned message: a return has the message's id, not its tag.

        Returns come in the order of publishing, so the search starts behind the last returned message.
        That tells apart messages with the same id, even with the same topic.
        """
        for tag in range(self._last_returned + 1, self._tag + 1):
            batch, index = self._in_flight.get(tag, _NONE)
            if batch is None or batch.is_returned(index):
                continue
            message = batch.messages[index]
            if message.id == properties.message_id and message.topic == method.routing_key:
                self._last_returned = tag
                text = f"no queue is bound to the topic {method.routing_key!r} on the exchange {self._exchange.name!r}"
                answer = f"({method.reply_code} {method.reply_text})"
                way_out = "start a consumer of it, or create the queue of its group with `cqrs-sync topology apply`"
                batch.mark_returned(index, MessageRejected(f"{text} {answer}: {way_out}"))
                return
        logger.warning("RabbitMQ returned a message that is not in flight: %r", properties.message_id)

    def _on_blocked(self, _: Any, answer: Any) -> None:
        self._blocked = str(answer.method.reason)
        logger.warning("RabbitMQ at %s blocks publishers: %s", self._thread.address, self._blocked)

    def _on_unblocked(self, _: Any, __: Any) -> None:
        self._blocked = None
        self._drain()
