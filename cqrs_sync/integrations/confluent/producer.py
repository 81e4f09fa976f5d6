"""librdkafka's producer, and the thread that hears what it has to say."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any

# Asking about topics imports it: a child forked at that moment would wait for its import lock without end.
import confluent_kafka.admin  # noqa: F401
from confluent_kafka import KafkaError, KafkaException, Producer

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.errors import BrokerUnavailable, DeliveryError, MessageRejected
from cqrs_sync.integrations.confluent.settings import (
    LOST_PRODUCER,
    MISSING_TOPIC,
    REFUSALS,
    REFUSED_CONNECTIONS,
    code_of,
    connection_error,
    delivery_error,
    new_client,
)
from cqrs_sync.kafka.client import (
    ErrorAction,
    HeaderList,
    OnFailure,
    ProducerClient,
    ProducerConnector,
    ProducerRetired,
    RecordBatch,
    TopicNotKnown,
)
from cqrs_sync.lifecycle import reset_in_child

#: Seconds between two looks at whether the producer has to end.
_LOOK = 0.1
#: Seconds that it may take to report everything as failed.
_FAILING = 2.0
#: Seconds for which a thread waits at most, before it looks again whether the queue has room.
_ROOM = 0.05


class ConfluentProducer(ProducerClient):
    """
    A producer of librdkafka.

    Reports, errors and log lines come out of librdkafka where it is polled, so a thread does nothing else. It also
    drops the producer: that waits for librdkafka's own threads.

    librdkafka keeps what it knows of a topic for minutes, so after a topic was missing another producer sends to it.
    Making one takes a millisecond, and connects in the background.

    Raises ConfigurationError if librdkafka does not accept its options.
    """

    caches_missing_topics = True
    abandoned_when_silent = True
    was_heard: bool = False
    refusal: DeliveryError | None = None

    def __init__(self, options: Mapping[str, Any], on_failure: OnFailure) -> None:
        self._on_failure = on_failure
        self._servers = options["bootstrap.servers"]
        #: What librdkafka said last about connections, until the next confirmation.
        self._trouble: KafkaError | None = None
        self._until: float | None = None
        self._purging = False
        self._was_empty = False
        self._producer = new_client(Producer, {**options, "error_cb": self._heard_error})
        reset_in_child(self)
        self._thread = threading.Thread(target=self._poll_until_closed, name="cqrs-confluent-poll", daemon=True)
        self._thread.start()

    def new_batch(self, timeout: float) -> RecordBatch:
        return _ReportBatch(self, timeout)

    def produce(self, message: OutgoingMessage, key: bytes | None, headers: HeaderList, report: Any) -> None:
        """
        Put a record into the queue; `report` is called once, by another thread.

        Raises BufferError if the queue is full, ProducerRetired, and what librdkafka says about the record.
        """
        producer = self._producer
        if self._until is not None or producer is None:
            raise ProducerRetired
        producer.produce(message.topic, message.body, key, headers=headers, on_delivery=report)

    def wait_for_room(self, timeout: float) -> None:
        """Wait until something has left the queue, for a moment at most."""
        producer = self._producer
        if producer is not None:
            self._poll(producer, max(0.0, min(_ROOM, timeout)))

    def find_topics(self, topics: Collection[str], timeout: float) -> Iterator[tuple[str, DeliveryError | None]]:
        """Ask the broker about one topic after the other; it may create them."""
        until = time.monotonic() + timeout
        for topic in topics:
            try:
                told = self._handle().list_topics(topic, timeout=max(0.0, until - time.monotonic()))
            except (KafkaException, ProducerRetired) as reason:
                unknown = BrokerUnavailable(f"the broker has not told about the topic {topic!r} in time")
                unknown.__cause__ = reason
                yield topic, unknown
                continue
            error = told.topics[topic].error
            if error is None or error.code() == KafkaError.LEADER_NOT_AVAILABLE:
                yield topic, None
            elif error.code() in MISSING_TOPIC:
                yield topic, MessageRejected(f"there is no topic {topic!r} on the broker: create it")
            else:
                yield topic, delivery_error(error)

    def action_after(self, error: KafkaError) -> ErrorAction:
        """A whole request fails with what the broker says about one record in it."""
        code = error.code()
        if error.fatal() or code in LOST_PRODUCER:
            return ErrorAction.SEND_AGAIN
        if code in MISSING_TOPIC:
            return ErrorAction.FIND_TOPIC
        if code in REFUSALS and code != KafkaError.TOPIC_EXCEPTION:
            return ErrorAction.SEND_ALONE
        # A producer that has let a message expire may be fenced for good.
        return ErrorAction.FAIL_AND_REPLACE if code == KafkaError._MSG_TIMED_OUT else ErrorAction.FAIL  # noqa: SLF001

    def delivery_error(self, error: BaseException | KafkaError) -> DeliveryError:
        return delivery_error(error, self._trouble)

    def connection_trouble(self) -> str:
        trouble = self._trouble
        return "" if trouble is None else trouble.str()

    def confirm(self) -> None:
        self.was_heard = True
        self._trouble = None

    def finish(self, timeout: float) -> None:
        self._until = time.monotonic() + timeout

    def abandon(self) -> None:
        self._purging = True
        self._until = time.monotonic() + _FAILING

    def close(self, timeout: float) -> None:
        self.finish(timeout)
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def reset_in_child(self) -> None:
        """
        Never touch the parent's producer again.

        Its threads are not in the child, so destroying it would wait for them without end; and what the interpreter
        collects at its end is destroyed. So it is never collected.
        """
        keep_forever(self._producer)
        self._until = time.monotonic()

    def fail(self, error: KafkaError) -> None:
        """Note that this producer will never send again."""
        self._on_failure(self, error.str())

    def _handle(self) -> Any:
        producer = self._producer
        if producer is None:
            raise ProducerRetired
        return producer

    def _poll_until_closed(self) -> None:
        while not self._is_over():
            self._poll(self._producer, _LOOK)
        until = time.monotonic() + _FAILING
        while len(self._producer) and time.monotonic() < until:
            # The callers that wait for these records are told so.
            self._producer.purge()
            self._poll(self._producer, _ROOM)
        # The last reference: librdkafka's threads end here.
        self._producer = None

    def _is_over(self) -> bool:
        until = self._until
        if until is None:
            return False
        if self._purging:
            self._producer.purge()
        # Twice in a row: a thread that is sending right now may not have seen that this is the end.
        was_empty, self._was_empty = self._was_empty, not len(self._producer)
        return (was_empty and self._was_empty) or time.monotonic() >= until

    def _poll(self, producer: Any, timeout: float) -> None:
        try:
            producer.poll(timeout)
        except KafkaException as error:
            # Our callbacks raise nothing: librdkafka says that this producer is at its end.
            self.fail(error.args[0])

    def _heard_error(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN or self._trouble is None:  # noqa: SLF001
            self._trouble = error
        if error.code() in REFUSED_CONNECTIONS and not self.was_heard and self.refusal is None:
            self.refusal = connection_error(KafkaException(error), self._servers)
            self.fail(error)


class ConfluentConnector(ProducerConnector):
    """Makes producers of librdkafka, which connect in the background."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options

    def connect(self, on_failure: OnFailure) -> ConfluentProducer:
        return ConfluentProducer(self._options, on_failure)


class _ReportBatch(RecordBatch):
    """Collects delivery reports, whichever thread brings them."""

    def __init__(self, producer: ConfluentProducer, timeout: float) -> None:
        self._producer = producer
        self._until = time.monotonic() + timeout
        self._sent = 0
        #: None is a confirmation.
        self._reports: dict[int, KafkaError | None] = {}
        self._awaited: int | None = None
        self._complete = threading.Event()

    def send(self, index: int, message: OutgoingMessage, key: bytes | None, headers: HeaderList) -> None:
        while True:
            try:
                self._producer.produce(message, key, headers, partial(self._report, index))
            except BufferError as error:
                left = self._until - time.monotonic()
                if left <= 0:
                    raise BrokerUnavailable("not sent: the queue was full all the time") from error
                self._producer.wait_for_room(left)
            except KafkaException as error:
                code = code_of(error)
                if code in MISSING_TOPIC:
                    raise TopicNotKnown(message.topic) from error
                if code in LOST_PRODUCER:
                    self._producer.fail(error.args[0])
                    raise ProducerRetired from error
                raise
            else:
                self._sent += 1
                return

    def wait(self, timeout: float) -> None:
        self._awaited = self._sent
        if len(self._reports) < self._sent:
            self._complete.wait(timeout)

    def answers(self) -> dict[int, Any]:
        # A copy: another thread may add to them.
        return dict(self._reports)

    def _report(self, index: int, error: KafkaError | None, _message: Any) -> None:
        self._reports[index] = error
        if len(self._reports) == self._awaited:
            self._complete.set()


def keep_forever(handle: object) -> None:
    """Count one reference to this object too many."""
    if handle is not None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(handle))
