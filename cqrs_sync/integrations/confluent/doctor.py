"""A healthy producer at any time: made when it is needed, replaced when it is not well."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError

from cqrs_sync.errors import Closed
from cqrs_sync.integrations.confluent.answers import Answers
from cqrs_sync.integrations.confluent.producer import SharedProducer

logger = logging.getLogger(__name__)

#: Seconds without any answer after which a producer that owes one is given up.
_PATIENCE = 1.0


class ProducerSupervisor:
    """
    Hands out one producer to all threads, and replaces it as soon as it is suspect.

    An idempotent producer of librdkafka does not come back from everything: one that has
    let a message expire may be fenced for good, and one whose broker has forgotten it
    offers the same batch until it expires. Making another one takes a millisecond and no
    answer from anybody. The old one finishes what it can, for `grace` seconds at most, or
    is abandoned where it can do nothing any more.
    """

    def __init__(self, options: Mapping[str, Any], *, grace: float) -> None:
        self._options = options
        self._grace = grace
        self._closed = False
        self._lock = threading.Lock()
        self._producer: SharedProducer | None = None
        #: A message that was not answered in time, as its answers, its number, and when it was sent.
        self._owed: tuple[Answers, int, float] | None = None
        #: When the latest call began that was confirmed.
        self._heard_at = float("-inf")

    def producer(self) -> SharedProducer:
        """Return the producer. Raises Closed, and ConfigurationError where librdkafka does not take its options."""
        producer = self._producer
        if producer is not None and (self._owed is None or self._is_trusted(producer, self._owed)):
            return producer
        with self._lock:
            if self._closed:
                raise Closed("this ConfluentKafkaBroker is closed")
            if self._producer is None:
                self._producer = SharedProducer(self._options, self._lost)
            return self._producer

    def heard(self, producer: SharedProducer, since: float) -> None:
        """Take note that what was sent at `since` was confirmed."""
        self._heard_at = since
        producer.heard()

    def owes(self, producer: SharedProducer, answers: Answers, index: int, since: float) -> None:
        """Take note that this message, sent at `since`, was not answered in time."""
        if producer is self._producer and self._owed is None:
            self._owed = (answers, index, since)

    def retire(self, producer: SharedProducer, reason: object) -> None:
        """Hand this producer out no more; it finishes what it can."""
        if self._replaced(producer, reason):
            producer.finish(self._grace)

    def abandon(self, producer: SharedProducer, reason: object) -> None:
        """Hand this producer out no more; whatever it holds fails, and may be sent by the next one."""
        self._replaced(producer, reason)
        producer.abandon()

    def close(self, timeout: float) -> None:
        """Send what is waiting and end, within `timeout` seconds."""
        with self._lock:
            self._closed = True
            producer, self._producer = self._producer, None
        if producer is not None:
            producer.close(timeout)

    def reset_in_child(self) -> None:
        """Make a new producer when it is needed; the parent's sees to itself."""
        self._lock = threading.Lock()
        self._producer = None
        self._owed = None

    def _lost(self, producer: SharedProducer, error: KafkaError) -> None:
        self.abandon(producer, error.str())

    def _replaced(self, producer: SharedProducer, reason: object) -> bool:
        with self._lock:
            if self._producer is not producer:
                return False
            self._producer = None
            self._owed = None
        logger.warning("the Kafka producer is replaced by a new one: %s", reason)
        return True

    def _is_trusted(self, producer: SharedProducer, owed: tuple[Answers, int, float]) -> bool:
        answers, index, since = owed
        if index in answers.known and answers.known[index] is None:
            self._owed = None
            return True
        # One that has never been heard of is still looking for its broker; another one would begin anew.
        silent = producer.was_heard and max(since, self._heard_at) + _PATIENCE <= time.monotonic()
        if silent:
            self.abandon(producer, f"no answer for {time.monotonic() - since:.1f} s")
        elif index in answers.known:
            self.retire(producer, answers.known[index])
        return not silent and index not in answers.known
