"""One producer of librdkafka, and the thread that hears what it has to say."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

# Asking about topics imports it: a child forked at that moment would wait for its import lock for ever.
import confluent_kafka.admin  # noqa: F401
from confluent_kafka import KafkaError, KafkaException, Producer

from cqrs_sync.integrations.confluent.errors import configuration_error, is_final
from cqrs_sync.lifecycle import reset_in_child

#: Seconds between two looks at whether the producer is to end.
_LOOK = 0.1
#: Seconds that it may take to report everything as failed.
_FAILING = 2.0
#: Seconds that waiting for room in the queue may miss it.
_ROOM = 0.05

#: Called with librdkafka's error, None for a confirmation, and the message.
Report = Callable[[KafkaError | None, Any], object]


class Retired(Exception):
    """This producer takes nothing more; another one does."""


class SharedProducer:
    """
    A producer for all threads.

    Reports, errors and log lines come out of librdkafka where it is polled, so a thread
    does nothing else. It also lets go of the producer: that waits for librdkafka's own
    threads. `lost` is called in it when the producer will never send again.

    Raises ConfigurationError where librdkafka does not take its options.
    """

    def __init__(self, options: Mapping[str, Any], lost: Callable[[SharedProducer, KafkaError], None]) -> None:
        self._lost = lost
        #: What was last said about connections, forgotten with the next confirmation.
        self.why: KafkaError | None = None
        #: Why nothing will ever be sent from here, where that is so.
        self.refusal: KafkaError | None = None
        #: Whether anything was confirmed.
        self.was_heard = False
        self._until: float | None = None
        self._purging = False
        self._was_empty = False
        try:
            self._producer: Any = Producer({**options, "error_cb": self._heard_error})
        except (KafkaException, TypeError, ValueError) as error:
            raise configuration_error(error) from error
        reset_in_child(self)
        self._thread = threading.Thread(target=self._serve, name="cqrs-confluent-poll", daemon=True)
        self._thread.start()

    def send(
        self, topic: str, body: bytes, key: bytes | None, headers: list[tuple[str, bytes]], report: Report
    ) -> None:
        """
        Put a record into the queue; `report` is called once, from another thread.

        Raises BufferError where there is no room, Retired, and what librdkafka says about the record.
        """
        producer = self._producer
        if self._until is not None or producer is None:
            raise Retired
        producer.produce(topic, body, key, headers=headers, on_delivery=report)

    def wait_for_room(self, until: float) -> None:
        """Wait until something has left the queue, and not for long."""
        producer = self._producer
        if producer is not None:
            self._poll(producer, max(0.0, min(_ROOM, until - time.monotonic())))

    def error_of_topic(self, topic: str, timeout: float) -> KafkaError | None:
        """
        Ask the broker what is wrong with this topic, None where nothing is; it may make it.

        Raises KafkaException where it does not answer in time, and Retired.
        """
        producer = self._producer
        if producer is None:
            raise Retired
        error: KafkaError | None = producer.list_topics(topic, timeout=max(0.0, timeout)).topics[topic].error
        return error

    def heard(self) -> None:
        """Take note that the broker has confirmed something."""
        self.was_heard = True
        self.why = None

    def finish(self, timeout: float) -> None:
        """Take nothing more, and end when everything is answered, after `timeout` seconds at the latest."""
        self._until = time.monotonic() + timeout

    def abandon(self) -> None:
        """Take nothing more, send nothing more: what is waiting or under way fails at once."""
        self._purging = True
        self._until = time.monotonic() + _FAILING

    def close(self, timeout: float) -> None:
        """As `finish`, and wait for it."""
        self.finish(timeout)
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def reset_in_child(self) -> None:
        """
        Never touch the parent's producer again.

        Its threads are not here, so destroying it would wait for them for ever, and what
        the interpreter collects in the end is destroyed. So it is never collected.
        """
        keep_for_ever(self._producer)
        self._until = time.monotonic()

    def _serve(self) -> None:
        while not self._is_over():
            self._poll(self._producer, _LOOK)
        until = time.monotonic() + _FAILING
        while len(self._producer) and time.monotonic() < until:
            # Whoever waits for these is told so.
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
            # Nothing of ours raises in there: it is librdkafka's word that this producer is at its end.
            self._lost(self, error.args[0])

    def _heard_error(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN or self.why is None:  # noqa: SLF001
            self.why = error
        if is_final(error) and not self.was_heard and self.refusal is None:
            self.refusal = error
            self._lost(self, error)


def keep_for_ever(handle: object) -> None:
    """Count one reference to this object too many."""
    if handle is not None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(handle))
