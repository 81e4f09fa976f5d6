"""Receiving from Kafka: one consumer, settled message by message."""

from __future__ import annotations

import logging
import operator
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from cqrs_sync.broker import IncomingMessage
from cqrs_sync.integrations.confluent.errors import configuration_error, connection_error
from cqrs_sync.integrations.confluent.producer import keep_for_ever
from cqrs_sync.integrations.confluent.settings import Settings
from cqrs_sync.integrations.confluent.start import InitialOffsets, Place
from cqrs_sync.kafka import BaseKafkaSubscription, FetchBuffer, SubscriptionPlan, incoming_message
from cqrs_sync.lifecycle import close_at_exit, reset_in_child

logger = logging.getLogger(__name__)

#: Seconds without a connection to any broker after which `receive` says so.
_PATIENCE = 1.0
#: Seconds for a look at whether the connection lives.
_PROBE = 0.3
#: Records taken at once.
_BATCH = 500
#: Seconds that closing may take: the last commit, and leaving the group.
_LEAVING = 4.0
#: The same where the interpreter leaves.
_AT_EXIT = 1.0
#: Errors among the messages that no waiting mends.
_HOPELESS = {
    *(KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.INVALID_GROUP_ID),
    *(KafkaError._FATAL, KafkaError._AUTHENTICATION),  # noqa: SLF001
}


class ConfluentSubscription(BaseKafkaSubscription):
    """
    A member of a consumer group, for one thread.

    What is finished is committed, up to the first message that is not; librdkafka does so
    as well before it gives a partition away, and at the end.
    When the group's partitions are shared out anew, what is not finished goes to their
    new owner; settling it here afterwards does nothing.
    """

    def __init__(self, reading: SubscriptionPlan, settings: Settings, until: float) -> None:
        self._reading = reading
        self._servers = ",".join(settings.servers)
        self._intake = FetchBuffer(self)
        #: Why all connections are lost, and since when.
        self._why: KafkaError | None = None
        self._lost_at: float | None = None
        #: Not before somebody receives: librdkafka joins in the background, and a group waits for who leaves meanwhile.
        self._has_to_join = False
        self._closed = False
        options = {
            **settings.consumer,
            "group.id": reading.group,
            "error_cb": self._heard_error,
            "on_commit": self._committed,
        }
        self._in_part = _shares_out_in_part(options)
        try:
            self._consumer: Any = Consumer(options)
        except (KafkaException, TypeError, ValueError) as error:
            raise configuration_error(error) from error
        reset_in_child(self)
        close_at_exit(self)
        self._begin(until, makes_topics=str(options["allow.auto.create.topics"]).lower() == "true")

    def close(self) -> None:
        """Commit what is finished, and leave the rest to the group's next member."""
        self._leave(_LEAVING)

    def close_at_exit(self) -> None:
        """Close within a second; a member that is gone without a word is missed by its group."""
        self._leave(_AT_EXIT)

    def reset_in_child(self) -> None:
        """Never touch the parent's consumer: its threads are not here."""
        keep_for_ever(self._consumer)
        self._closed = True

    # What the intake asks of its client: each record is a Message of librdkafka's.

    offset_of = staticmethod(operator.methodcaller("offset"))

    @staticmethod
    def headers_of(record: Any) -> Iterable[tuple[str, bytes | None]]:
        """Return the headers of a record."""
        headers: list[tuple[str, bytes | None]] = record.headers() or []
        return headers

    @staticmethod
    def message_of(record: Any, *, kept: bool) -> IncomingMessage:
        """Read a record."""
        return incoming_message(record.topic(), record.value(), record.key(), record.headers() or (), kept=kept)

    def pause(self, places: Collection[Place]) -> None:
        """Fetch nothing of these partitions."""
        if places:
            self._consumer.pause([TopicPartition(*place) for place in places])

    def resume(self, places: Collection[Place]) -> None:
        """Go on with them."""
        if places:
            self._consumer.resume([TopicPartition(*place) for place in places])

    def commit(self, finished: dict[Place, int]) -> None:
        """Commit without waiting."""
        self._store(finished)
        try:
            self._consumer.commit(asynchronous=True)
        except KafkaException as error:
            logger.debug("what is stored is committed by librdkafka itself: %s", error)

    def _begin(self, until: float, *, makes_topics: bool) -> None:
        topics = self._reading.topics
        try:
            self._start = InitialOffsets(
                self._consumer, topics, until, makes_topics=makes_topics, whole=self._reading.whole
            )
            if self._reading.alone:
                self._hold(self._start.partitions)
                self._consumer.assign(self._start.partitions)
            else:
                self._has_to_join = True
        except BaseException as error:
            self._leave(_LEAVING)
            if isinstance(error, KafkaException):
                raise connection_error(error, self._servers, self._why) from error
            raise

    def _join(self) -> None:
        self._has_to_join = False
        self._consumer.unsubscribe()
        topics = list(self._reading.topics)
        self._consumer.subscribe(topics, on_assign=self._got, on_revoke=self._lost, on_lost=self._lost)

    def _leave(self, timeout: float) -> None:
        if self._closed:
            return
        self._closed = True
        self._store(self._intake.finished)
        self._intake.close()
        # librdkafka has no limit for it, and waits for a broker that does not answer.
        leaving = threading.Thread(target=self._consumer.close, name="cqrs-confluent-leave", daemon=True)
        leaving.start()
        leaving.join(timeout)
        if leaving.is_alive():
            logger.warning("kafka at %s does not answer: the group has to miss this member first", self._servers)

    def _got(self, consumer: Any, partitions: Sequence[TopicPartition]) -> None:
        try:
            self._start.begin(partitions, consumer.incremental_assign if self._in_part else consumer.assign)
        except KafkaException as error:
            # They are ours now, and what comes from them is not looked at: they will be ours once more.
            logger.warning("where to begin is not known, the group is joined again: %s", error)
            self._has_to_join = True
            return
        self._hold(partitions)

    def _hold(self, partitions: Iterable[TopicPartition]) -> None:
        holding = self._reading.holding
        self._intake.got(holding((one.topic, one.partition), one.topic, one.partition) for one in partitions)

    def _lost(self, _consumer: Any, partitions: Iterable[TopicPartition]) -> None:
        gone = self._intake.lost([(one.topic, one.partition) for one in partitions])
        self._store(gone)
        self._start.remember(gone)

    def _store(self, finished: dict[Place, int]) -> None:
        """Have librdkafka commit these places with its next commit, at the latest when it gives them away."""
        if not finished:
            return
        try:
            self._consumer.store_offsets(offsets=[TopicPartition(*place, offset) for place, offset in finished.items()])
        except KafkaException as error:
            # Lost without a word, a moment ago: `_lost` is on its way.
            logger.debug("not stored: %s", error)

    def _fetch(self, timeout: float, most: int | None = None) -> None:
        if self._has_to_join:
            self._join()
        self._intake.pause_and_resume()
        try:
            # It would wait until there are as many as may be taken.
            records = self._consumer.consume(most or _BATCH, 0)
            if not records and timeout > 0:
                record = self._consumer.poll(timeout)
                records = [] if record is None else [record]
        except KafkaException as error:
            raise connection_error(error, self._servers) from error
        parts: dict[Place, list[Any]] = defaultdict(list)
        for record in records:
            if record.error() is None:
                parts[record.topic(), record.partition()].append(record)
            else:
                self._heard_instead(record.error())
        for place, part in parts.items():
            self._intake.take(place, part)

    def _heard_instead(self, trouble: KafkaError) -> None:
        if trouble.code() in _HOPELESS or trouble.fatal():
            raise connection_error(KafkaException(trouble), self._servers)
        logger.info("librdkafka goes on after: %s", trouble.str())

    def _committed(self, error: KafkaError | None, places: Sequence[TopicPartition]) -> None:
        # Called in our thread, out of `poll`.
        if error is not None and error.code() != KafkaError._NO_OFFSET:  # noqa: SLF001
            logger.warning("the offsets of %d partition(s) are not committed: %s", len(places), error.str())
            return
        for one in places:
            if one.error is None and one.offset >= 0:
                self._intake.committed((one.topic, one.partition), one.offset)

    def _heard_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001
            self._lost_at = self._lost_at or time.monotonic()
        else:
            self._why = error

    def _check_connection(self, now: float) -> None:
        """Raise BrokerUnavailable where all connections are lost, and have been for a while."""
        if self._lost_at is None or now - self._lost_at <= _PATIENCE:
            return
        try:
            self._consumer.list_topics(self._reading.topics[0], timeout=_PROBE)
        except KafkaException as error:
            raise connection_error(error, self._servers, self._why) from error
        self._lost_at = self._why = None


def _shares_out_in_part(options: dict[str, Any]) -> bool:
    """Tell whether a group keeps what it can when it is shared out anew, and takes partitions one by one."""
    strategy = str(options.get("partition.assignment.strategy", ""))
    return "cooperative" in strategy or options.get("group.protocol") == "consumer"
