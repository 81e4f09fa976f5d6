"""A healthy producer at any time: made when it is needed, replaced when it is not well."""

from __future__ import annotations

import importlib.util
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from cqrs_sync.errors import BrokerUnavailable, Closed, ConfigurationError
from cqrs_sync.integrations.kafka.client import Network
from cqrs_sync.integrations.kafka.errors import connection_error, is_final
from cqrs_sync.integrations.kafka.producer import SharedProducer

logger = logging.getLogger(__name__)

#: Seconds without any answer after which a producer that owes one is given up.
_PATIENCE = 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 0.5

_told_about_crc32c = False


class ProducerSupervisor:
    """
    Hands out one producer to all threads, and replaces it as soon as it is suspect.

    kafka-python's producer does not recover from everything: after a batch has expired,
    or after one message was refused, an idempotent one may never send again. So each
    failure ends it. The old one finishes in the background what it still can, for
    `grace` seconds at most; the new one is made in the background as well, as long as
    somebody waits for it: making one blocks longer than a caller may.
    """

    def __init__(self, options: Mapping[str, Any], servers: str, *, grace: float) -> None:
        self._options = options
        self._servers = servers
        self._grace = grace
        self._closed = False
        self._changed = threading.Condition()
        self._producer: SharedProducer | None = None
        #: A record that was not answered in time, and when it was sent.
        self._owed: tuple[Any, float] | None = None
        #: When the latest call began that was confirmed.
        self.heard_at = float("-inf")
        self._making = False
        self._waiting = 0
        #: Why the last attempt to make one failed.
        self._failed: BaseException | None = None
        #: The one under way.
        self._attempt: Network | None = None

    def producer(self, until: float) -> SharedProducer:
        """
        Return the producer; wait for it until `until` where there is none.

        Raises BrokerUnavailable, Closed, and ConfigurationError where kafka-python
        does not take its options.
        """
        producer = self._producer
        if producer is not None and (self._owed is None or self._is_trusted(producer)):
            return producer
        with self._changed:
            failed_before = self._failed
            while True:
                if self._closed:
                    raise Closed("this KafkaBroker is closed")
                if self._producer is not None:
                    return self._producer
                if self._failed is not failed_before and is_final(self._failed):
                    raise self._unreachable()
                self._wait(until)

    def owes(self, producer: SharedProducer, future: Any, since: float) -> None:
        """Take note that this record, sent at `since`, was not answered in time."""
        if producer is self._producer and self._owed is None:
            self._owed = (future, since)

    def retire(self, producer: SharedProducer, reason: object) -> None:
        """Hand this producer out no more; it finishes what it can."""
        if self._replaced(producer, reason):
            threading.Thread(target=producer.close, args=(self._grace,), name="cqrs-kafka-retire", daemon=True).start()

    def close(self, timeout: float) -> None:
        """Send what is waiting and end, within `timeout` seconds."""
        with self._changed:
            self._closed = True
            producer, self._producer = self._producer, None
            if self._attempt is not None:
                self._attempt.give_up()
            self._changed.notify_all()
        if producer is not None:
            producer.close(timeout)

    def reset_in_child(self) -> None:
        """Leave the parent's producer alone: it is kept, because collecting it would end it."""
        if self._producer is not None:
            self._producer.disown()
            _inherited.append(self._producer)
        self._changed = threading.Condition()
        self._producer = None
        self._owed = None
        self._failed = None
        self._attempt = None
        self._making = False
        self._waiting = 0

    def _give_up(self, producer: SharedProducer, reason: str) -> None:
        # Whoever waits for a confirmation is told at once, and sends again through another producer.
        if self._replaced(producer, reason):
            producer.abandon()

    def _replaced(self, producer: SharedProducer, reason: object) -> bool:
        with self._changed:
            if self._producer is not producer:
                return False
            self._producer = None
            self._owed = None
        logger.warning("the Kafka producer is replaced by a new one: %s", reason)
        return True

    def _is_trusted(self, producer: SharedProducer) -> bool:
        owed = self._owed
        if owed is None:
            return True
        future, since = owed
        if future.is_done and future.exception is None:
            self._owed = None
            return True
        if not future.is_done and max(since, self.heard_at) + _PATIENCE > time.monotonic():
            return True
        self.retire(producer, future.exception or f"no answer for {time.monotonic() - since:.1f} s")
        return False

    def _wait(self, until: float) -> None:
        """Under the lock: wait for whatever comes next, and see to it that somebody makes a producer."""
        left = until - time.monotonic()
        if left <= 0:
            raise self._unreachable()
        if not self._making:
            self._making = True
            threading.Thread(target=self._keep_making, name="cqrs-kafka-connect", daemon=True).start()
        self._waiting += 1
        try:
            self._changed.wait(left)
        finally:
            self._waiting -= 1

    def _unreachable(self) -> BrokerUnavailable | ConfigurationError:
        reason = (self._attempt and self._attempt.why) or self._failed
        if reason is None:
            return BrokerUnavailable(f"kafka at {self._servers} cannot be reached in time")
        return connection_error(reason, self._servers)

    def _keep_making(self) -> None:
        pause = _FIRST_PAUSE
        _tell_about_crc32c()
        while True:
            producer, error = None, None
            try:
                self._attempt = Network(self._options)
                producer = SharedProducer(self._attempt, self._give_up)
            except Exception as reason:  # noqa: BLE001 -- whoever waits gets it as the cause of ours
                error = reason
            if self._made(producer, error, pause):
                return
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _made(self, producer: SharedProducer | None, error: BaseException | None, pause: float) -> bool:
        """Tell whether the work is done: there is a producer, or nobody waits for one, or there never will be."""
        with self._changed:
            if producer is not None and not self._closed:
                self._producer = producer
                self._failed = None
                self._owed = None
            elif error is not None:
                self._failed = error
                if not is_final(error) and self._waiting and not self._closed:
                    self._changed.wait(pause)
                    return False
            self._making = False
            self._attempt = None
            self._changed.notify_all()
        if producer is not None and producer is not self._producer:
            producer.close(self._grace)
        return True


#: Producers of a parent process; collecting them would run their finalizers.
_inherited: list[SharedProducer] = []


def _tell_about_crc32c() -> None:
    global _told_about_crc32c  # noqa: PLW0603 -- once per process
    if not _told_about_crc32c and importlib.util.find_spec("crc32c") is None:
        logger.warning("checksums in pure Python take half the time of publishing: pip install 'cqrs-sync[kafka]'")
    _told_about_crc32c = True
