"""Keeps one producer for a process, and replaces it when it fails."""

from __future__ import annotations

import logging
import threading
import time

from cqrs_sync.errors import ClosedError
from cqrs_sync.kafka.client import ProducerClient, ProducerConnector, RecordBatch
from cqrs_sync.lifecycle import reset_in_child

logger: logging.Logger = logging.getLogger(__name__)

#: Seconds without any confirmation after which a producer that owes an answer is replaced.
_PATIENCE = 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 0.5


class ProducerSupervisor:
    """
    Gives one producer to all threads, and replaces it as soon as it is suspect.

    Idempotent producers do not recover from everything, whichever the client. One of kafka-python may never send
    again after a batch expired or a record was refused. One of librdkafka may be fenced for good after a message
    expired, and offers the same batch until it expires if the broker has forgotten the producer.

    A retired producer finishes in the background what it can, for `grace` seconds at most. An abandoned one sends
    nothing more: its callers learn of it at once and send again through the next one.

    If connecting blocks longer than a caller may wait, a thread connects for as long as a caller waits.
    """

    def __init__(self, connector: ProducerConnector, *, grace: float) -> None:
        self._connector = connector
        self._grace = grace
        self._closed = False
        #: When the latest call began that the broker has confirmed.
        self._confirmed_at = float("-inf")
        self.reset_in_child()
        reset_in_child(self)

    def reset_in_child(self) -> None:
        """Forget the parent's producer, which keeps itself out of reach; the next call makes a new one."""
        self._connector.reset_in_child()
        self._changed = threading.Condition()
        self._producer: ProducerClient | None = None
        #: A record that was not answered in time: its batch, its index, and when it was sent.
        self._unanswered: tuple[RecordBatch, int, float] | None = None
        #: What the last attempt to connect raised.
        self._failed: BaseException | None = None
        self._connecting = False
        self._waiting = 0

    def producer(self, timeout: float) -> ProducerClient:
        """
        Return the producer; if there is none, wait for it for `timeout` seconds at most.

        Raises BrokerUnavailable, ClosedError, and ConfigurationError if the client does not accept its options.
        """
        producer = self._producer
        if producer is not None and (self._unanswered is None or self._is_trusted(producer)):
            return producer
        until = time.monotonic() + timeout
        with self._changed:
            failed_before = self._failed
            while True:
                if self._closed:
                    raise ClosedError("this Kafka broker is closed")
                if self._producer is not None:
                    return self._producer
                if not self._connector.blocks:
                    # Under the lock: `abandon`, called by a thread of the client, waits until the producer is known.
                    self._producer = self._connector.connect(self.abandon)
                    return self._producer
                if self._failed is not failed_before and self._connector.is_final(self._failed):
                    raise self._connector.unreachable(self._failed)
                self._wait(until)

    def confirm(self, producer: ProducerClient, since: float) -> None:
        """Note that the broker has confirmed what was sent at `since`."""
        self._confirmed_at = since
        producer.confirm()

    def record_unanswered(self, producer: ProducerClient, batch: RecordBatch, index: int, since: float) -> None:
        """Note that this record, sent at `since`, was not answered in time."""
        if producer is self._producer and self._unanswered is None:
            self._unanswered = (batch, index, since)

    def retire(self, producer: ProducerClient, reason: object) -> None:
        """Replace this producer; it finishes what it can."""
        if self._replace(producer, reason):
            producer.finish(self._grace)

    def abandon(self, producer: ProducerClient, reason: object) -> None:
        """Replace this producer; what it holds fails, and the next one may send it."""
        self._replace(producer, reason)
        producer.abandon()

    def close(self, timeout: float) -> None:
        """Send what waits and end the producer, within `timeout` seconds."""
        with self._changed:
            self._closed = True
            producer, self._producer = self._producer, None
            self._connector.cancel()
            self._changed.notify_all()
        if producer is not None:
            producer.close(timeout)

    def _replace(self, producer: ProducerClient, reason: object) -> bool:
        with self._changed:
            if self._producer is not producer:
                return False
            self._producer = None
            self._unanswered = None
        logger.warning("replacing the Kafka producer: %s", reason)
        return True

    def _is_trusted(self, producer: ProducerClient) -> bool:
        unanswered = self._unanswered
        if unanswered is None:
            return True
        batch, index, since = unanswered
        answers = batch.answers()
        is_answered = index in answers
        if is_answered and answers[index] is None:
            self._unanswered = None
            return True
        now = time.monotonic()
        is_silent = producer.was_heard and max(since, self._confirmed_at) + _PATIENCE <= now
        if not is_answered and not is_silent:
            return True
        silence = f"the broker has not answered for {now - since:.1f} s"
        if is_silent and producer.abandoned_when_silent:
            self.abandon(producer, silence)
        else:
            self.retire(producer, producer.delivery_error(answers[index]) if is_answered else silence)
        return False

    def _wait(self, until: float) -> None:
        """Wait for a change, and start a thread that connects if there is none. Under the lock."""
        left = until - time.monotonic()
        if left <= 0:
            raise self._connector.unreachable(self._failed)
        if not self._connecting:
            self._connecting = True
            threading.Thread(target=self._connect, name="cqrs-kafka-connect", daemon=True).start()
        self._waiting += 1
        try:
            self._changed.wait(left)
        finally:
            self._waiting -= 1

    def _connect(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            producer, error = None, None
            try:
                producer = self._connector.connect(self.abandon)
            except Exception as reason:  # noqa: BLE001 -- those who wait get it as the cause of ours
                error = reason
            if self._end_attempt(producer, error, pause):
                return
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _end_attempt(self, producer: ProducerClient | None, error: BaseException | None, pause: float) -> bool:
        """Tell whether to stop: there is a producer, or no caller waits for one, or there will never be one."""
        with self._changed:
            if producer is not None and not self._closed:
                self._producer = producer
                self._failed = None
                self._unanswered = None
            elif error is not None:
                self._failed = error
                if not self._connector.is_final(error) and self._waiting and not self._closed:
                    self._changed.wait(pause)
                    return False
            self._connecting = False
            self._changed.notify_all()
        if producer is not None and producer is not self._producer:
            producer.close(self._grace)
        return True
