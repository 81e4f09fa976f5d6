"""The I/O thread's side of publishing: one channel in confirm mode for the whole process."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from itertools import chain
from typing import Any

import pika
from pika.channel import Channel
from pika.connection import Parameters

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.errors import BrokerUnavailable, DeliveryError, MessageRejected
from cqrs_sync.integrations.rabbitmq.batch import Batch
from cqrs_sync.integrations.rabbitmq.connection import CAN_EMIT, Connection
from cqrs_sync.integrations.rabbitmq.failures import blames_a_message, delivery_error
from cqrs_sync.integrations.rabbitmq.frames import LargeMessage
from cqrs_sync.integrations.rabbitmq.link import Link
from cqrs_sync.integrations.rabbitmq.places import Exchange
from cqrs_sync.integrations.rabbitmq.watch import Watch

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
