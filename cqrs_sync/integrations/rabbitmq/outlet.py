"""Calls of `publish`, to one exchange."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.errors import BrokerUnavailable, Closed, DeliveryError, PublishFailed
from cqrs_sync.integrations.rabbitmq.batch import Batch
from cqrs_sync.integrations.rabbitmq.frames import Encoder
from cqrs_sync.integrations.rabbitmq.publisher import Publisher
from cqrs_sync.lifecycle import reset_in_child

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
