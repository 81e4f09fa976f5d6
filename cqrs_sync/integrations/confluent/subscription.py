"""Receiving from Kafka: one consumer, settled message by message."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from cqrs_sync.broker import Delivery, Subscription
from cqrs_sync.integrations.confluent.failures import configuration_error, connection_error
from cqrs_sync.integrations.confluent.producer import keep_for_ever
from cqrs_sync.integrations.confluent.settings import Settings
from cqrs_sync.integrations.confluent.start import Place, Start
from cqrs_sync.lifecycle import close_at_exit, reset_in_child
from cqrs_sync.records import Progress, RecordDelivery, incoming_message

logger = logging.getLogger(__name__)

#: Seconds without a connection to any broker after which `receive` says so.
_PATIENCE = 1.0
#: Seconds between two looks at whether the connection lives, and for one of them.
_LOOK, _PROBE = 0.5, 0.3
#: Seconds that closing may take: the last commit, and leaving the group.
_LEAVING = 4.0
#: The same where the interpreter leaves.
_AT_EXIT = 1.0
#: Errors among the messages that no waiting mends.
_HOPELESS = {
    *(KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.INVALID_GROUP_ID),
    *(KafkaError._FATAL, KafkaError._AUTHENTICATION),  # noqa: SLF001
}


class ConfluentSubscription(Subscription):
    """
    A member of a consumer group, for one thread.

    What is finished is stored, up to the first message that is not; librdkafka commits
    what is stored, ten times a second, before it gives a partition away, and at the end.
    When the group's partitions are shared out anew, what is not finished goes to their
    new owner; settling it here afterwards does nothing.
    """

    def __init__(self, topics: Sequence[str], group: str, settings: Settings, until: float) -> None:
        self._topics = list(topics)
        self._servers = ",".join(settings.servers)
        self._progress: dict[Place, Progress] = {}
        #: What was given back.
        self._returned: deque[tuple[Place, Any]] = deque()
        #: What is finished and not known to be committed.
        self._finished: dict[Place, int] = {}
        #: Why all connections are lost, and since when.
        self._why: KafkaError | None = None
        self._lost_at: float | None = None
        self._has_to_rejoin = False
        self._closed = False
        options = {**settings.consumer, "group.id": group, "error_cb": self._heard_error, "on_commit": self._committed}
        self._in_part = _shares_out_in_part(options)
        try:
            self._consumer: Any = Consumer(options)
        except (KafkaException, TypeError, ValueError) as error:
            raise configuration_error(error) from error
        reset_in_child(self)
        close_at_exit(self)
        self._begin(until, makes_topics=str(options["allow.auto.create.topics"]).lower() == "true")

    def receive(self, timeout: float) -> Delivery | None:
        """Wait at most `timeout` seconds for the next message; None where none came."""
        until = time.monotonic() + timeout
        while not self._returned:
            left = until - time.monotonic()
            record = self._poll(max(0.0, min(left, _LOOK)))
            if record is not None:
                place = (record.topic(), record.partition())
                self._progress[place].handed_out(record.offset())
                return self._delivery(place, record)
            self._check_connection()
            if left <= 0:
                return None
        return self._delivery(*self._returned.popleft())

    def settle(self, delivery: RecordDelivery, *, done: bool) -> None:
        """Settle a delivery; it does nothing where its partition has gone to another member."""
        if self._progress.get(delivery.partition) is not delivery.progress:
            return
        if not done:
            self._returned.appendleft((delivery.partition, delivery.record))
        elif (watermark := delivery.progress.finished(delivery.record.offset())) is not None:
            self._finished[delivery.partition] = watermark
            topic, number = delivery.partition
            self._consumer.store_offsets(offsets=[TopicPartition(topic, number, watermark)])

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

    def _delivery(self, place: Place, record: Any) -> RecordDelivery:
        message = incoming_message(record.topic(), record.value(), record.key(), record.headers() or ())
        return RecordDelivery(message, place, record, self._progress[place], self.settle)

    def _begin(self, until: float, *, makes_topics: bool) -> None:
        try:
            self._start = Start(self._consumer, self._topics, until, makes_topics=makes_topics)
            self._join()
        except BaseException as error:
            self._leave(_LEAVING)
            if isinstance(error, KafkaException):
                raise connection_error(error, self._servers, self._why) from error
            raise

    def _join(self) -> None:
        self._consumer.subscribe(self._topics, on_assign=self._got, on_revoke=self._lost, on_lost=self._lost)

    def _leave(self, timeout: float) -> None:
        if self._closed:
            return
        self._closed = True
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
            self._has_to_rejoin = True
            return
        for one in partitions:
            self._progress[one.topic, one.partition] = Progress()

    def _lost(self, _consumer: Any, partitions: Iterable[TopicPartition]) -> None:
        gone = {(one.topic, one.partition) for one in partitions}
        self._start.remember({place: self._finished.pop(place) for place in gone if place in self._finished})
        for place in gone:
            if place in self._progress:
                self._progress.pop(place).lapsed = True
        self._returned = deque(entry for entry in self._returned if entry[0] not in gone)

    def _poll(self, timeout: float) -> Any:
        if self._has_to_rejoin:
            self._has_to_rejoin = False
            self._consumer.unsubscribe()
            self._join()
        try:
            record = self._consumer.poll(timeout)
        except KafkaException as error:
            raise connection_error(error, self._servers) from error
        if record is None:
            return None
        trouble = record.error()
        if trouble is None:
            # One that was fetched before its partition was given away is somebody else's.
            return record if (record.topic(), record.partition()) in self._progress else None
        if trouble.code() in _HOPELESS or trouble.fatal():
            raise connection_error(KafkaException(trouble), self._servers)
        logger.info("librdkafka goes on after: %s", trouble.str())
        return None

    def _committed(self, error: KafkaError | None, places: Sequence[TopicPartition]) -> None:
        # Called in our thread, out of `poll`.
        if error is not None and error.code() != KafkaError._NO_OFFSET:  # noqa: SLF001
            logger.warning("the offsets of %d partition(s) are not committed: %s", len(places), error.str())
            return
        for one in places:
            place = (one.topic, one.partition)
            if one.error is None and self._finished.get(place) == one.offset:
                del self._finished[place]

    def _heard_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001
            self._lost_at = self._lost_at or time.monotonic()
        else:
            self._why = error

    def _check_connection(self) -> None:
        """Raise BrokerUnavailable where all connections are lost, and have been for a while."""
        if self._lost_at is None or time.monotonic() - self._lost_at <= _PATIENCE:
            return
        try:
            self._consumer.list_topics(self._topics[0], timeout=_PROBE)
        except KafkaException as error:
            raise connection_error(error, self._servers, self._why) from error
        self._lost_at = self._why = None


def _shares_out_in_part(options: dict[str, Any]) -> bool:
    """Tell whether a group keeps what it can when it is shared out anew, and takes partitions one by one."""
    strategy = str(options.get("partition.assignment.strategy", ""))
    return "cooperative" in strategy or options.get("group.protocol") == "consumer"
