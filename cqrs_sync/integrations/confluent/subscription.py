"""Receiving with librdkafka."""

from __future__ import annotations

import logging
import operator
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from cqrs_sync.broker import IncomingMessage
from cqrs_sync.integrations.confluent.producer import keep_forever
from cqrs_sync.integrations.confluent.settings import MISSING_TOPIC, connection_error, new_client, seconds_left
from cqrs_sync.kafka.client import Headers, Partition
from cqrs_sync.kafka.cloudevents import incoming_message
from cqrs_sync.kafka.settings import KafkaSettings
from cqrs_sync.kafka.subscription import BaseKafkaSubscription, InitialOffsets
from cqrs_sync.kafka.topology import SubscriptionPlan
from cqrs_sync.lifecycle import close_at_exit, reset_in_child

logger: logging.Logger = logging.getLogger(__name__)

#: Seconds without a connection to any broker after which `receive` says so.
_PATIENCE = 1.0
#: Seconds for a look at whether the connection lives.
_PROBE = 0.3
#: Records that are read at a time.
_BATCH = 500
#: Seconds that closing may take, for the last commit and for leaving the group; and when the interpreter leaves.
_LEAVING, _AT_EXIT = 4.0, 1.0
#: Seconds between two looks at topics that are missing.
_LOOK = 0.1
#: Seconds to ask for the committed offsets of partitions while all else waits.
_LOOK_UP = 2.0
#: Errors among the records that will not pass.
_FINAL = {
    *(KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.INVALID_GROUP_ID),
    *(KafkaError._FATAL, KafkaError._AUTHENTICATION),  # noqa: SLF001
}


class ConfluentSubscription(BaseKafkaSubscription):
    """
    A consumer of librdkafka.

    The offsets that are stored here are committed ten times a second, before librdkafka gives a partition away, and
    at the end.
    """

    def __init__(self, plan: SubscriptionPlan, settings: KafkaSettings, timeout: float) -> None:
        super().__init__(plan, settings.servers)
        #: Why all connections are lost, and since when.
        self._why: KafkaError | None = None
        self._lost_at: float | None = None
        #: It joins with the first `receive`, not before: librdkafka joins in the background, and a group waits for a
        #: member that leaves meanwhile.
        self._has_to_join = not plan.standalone
        options = {
            **settings.consumer,
            "group.id": plan.group,
            "error_cb": self._heard_error,
            "on_commit": self._committed,
        }
        self._is_incremental = _rebalances_incrementally(options)
        self._consumer = new_client(Consumer, options)
        reset_in_child(self)
        close_at_exit(self)
        try:
            self._initial_offsets = InitialOffsets(
                self, plan, timeout, creates_topics=str(options["allow.auto.create.topics"]).lower() == "true"
            )
            if plan.standalone:
                self._assign(self._initial_offsets.partitions)
                self._consumer.assign(_vendors(self._initial_offsets.partitions))
        except BaseException as error:
            self._leave(_LEAVING)
            if isinstance(error, KafkaException):
                raise connection_error(error, self._servers, self._why) from error
            raise

    def close(self) -> None:
        self._leave(_LEAVING)

    def close_at_exit(self) -> None:
        """Close within a second; the group has to miss a member that leaves silently."""
        self._leave(_AT_EXIT)

    def reset_in_child(self) -> None:
        """Never touch the parent's consumer: its threads are not in the child."""
        keep_forever(self._consumer)
        self._closed = True

    # The port: each record is a Message of librdkafka.

    offset_of: Callable[[Any], int] = staticmethod(operator.methodcaller("offset"))

    @staticmethod
    def headers_of(record: Any) -> Headers:
        return record.headers() or []

    @staticmethod
    def message_of(record: Any, *, deferred: bool) -> IncomingMessage:
        headers = record.headers() or ()
        return incoming_message(record.topic(), record.value(), record.key(), headers, deferred=deferred)

    def pause(self, partitions: Collection[Partition]) -> None:
        if partitions:
            self._consumer.pause(_vendors(partitions))

    def resume(self, partitions: Collection[Partition]) -> None:
        if partitions:
            self._consumer.resume(_vendors(partitions))

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        self._store(offsets)
        try:
            self._consumer.commit(asynchronous=True)
        except KafkaException as error:
            logger.debug("librdkafka commits the stored offsets itself, later: %s", error)

    def find_partitions(self, topics: Collection[str], timeout: float) -> dict[str, list[int]]:
        until = time.monotonic() + timeout
        found: dict[str, list[int]] = {}
        for topic in topics:
            told = self._consumer.list_topics(topic, timeout=seconds_left(until)).topics[topic]
            if told.error is not None and told.error.code() not in {*MISSING_TOPIC, KafkaError.LEADER_NOT_AVAILABLE}:
                raise KafkaException(told.error)
            if told.partitions:
                found[topic] = sorted(told.partitions)
        if len(found) < len(topics):
            self._consumer.poll(_LOOK)
        return found

    def committed_offsets(self, partitions: Collection[Partition], timeout: float) -> dict[Partition, int | None]:
        offsets: dict[Partition, int | None] = {}
        for one in self._consumer.committed(_vendors(partitions), timeout=timeout):
            if one.error is not None:
                raise KafkaException(one.error)
            offsets[one.topic, one.partition] = one.offset if one.offset >= 0 else None
        return offsets

    def end_offsets(self, partitions: Collection[Partition], timeout: float) -> dict[Partition, int]:
        until = time.monotonic() + timeout
        ends: dict[Partition, int] = {}
        for partition in partitions:
            vendors, left = TopicPartition(*partition), seconds_left(until)
            _, ends[partition] = self._consumer.get_watermark_offsets(vendors, timeout=left)
        return ends

    def commit_before_joining(self, offsets: Mapping[Partition, int], timeout: float) -> Collection[Partition]:
        """Commit offsets from outside the group; librdkafka knows no `timeout` for it."""
        del timeout
        try:
            told = self._consumer.commit(offsets=_vendor_offsets(offsets), asynchronous=False)
        except KafkaException as error:
            if error.args[0].code() not in {KafkaError.UNKNOWN_MEMBER_ID, KafkaError.ILLEGAL_GENERATION}:
                raise
            return ()
        return [(one.topic, one.partition) for one in told if one.error is None]

    def _join(self) -> None:
        self._has_to_join = False
        self._consumer.unsubscribe()
        topics = list(self._plan.topics)
        self._consumer.subscribe(topics, on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked)

    def _leave(self, timeout: float) -> None:
        if self._closed:
            return
        self._closed = True
        self._store(self._buffer.uncommitted)
        self._buffer.close()
        # librdkafka's `close` has no timeout, and waits for a broker that does not answer.
        leaving = threading.Thread(target=self._consumer.close, name="cqrs-confluent-leave", daemon=True)
        leaving.start()
        leaving.join(timeout)
        if leaving.is_alive():
            logger.warning(
                "kafka at %s does not answer: the group gives the partitions of this member to others"
                " only when its session ends",
                self._servers,
            )

    def _assigned(self, consumer: Any, assigned: Sequence[TopicPartition]) -> None:
        partitions = [(one.topic, one.partition) for one in assigned]
        try:
            if self._initial_offsets.may_override_commit(partitions):
                self._begin(partitions, consumer)
        except KafkaException as error:
            # They are assigned now, and what comes from them is not buffered: joining again assigns them once more.
            logger.warning("joining the group again, because the broker does not tell where to begin: %s", error)
            self._has_to_join = True
            return
        self._assign(partitions)

    def _begin(self, partitions: Sequence[Partition], consumer: Any) -> None:
        """Begin where InitialOffsets says; librdkafka itself begins at the committed offset."""
        begins: list[TopicPartition] = []
        moved: dict[Partition, int] = {}
        for partition, committed in self.committed_offsets(partitions, _LOOK_UP).items():
            begin = self._initial_offsets.start_offset(partition, committed)
            if begin is None:
                begins.append(TopicPartition(*partition))
                continue
            begins.append(TopicPartition(*partition, begin))
            if begin != committed:
                moved[partition] = begin
        (consumer.incremental_assign if self._is_incremental else consumer.assign)(begins)
        if moved:
            consumer.store_offsets(offsets=_vendor_offsets(moved))
        self._initial_offsets.settle(partitions)

    def _revoked(self, _consumer: Any, revoked: Iterable[TopicPartition]) -> None:
        finished = self._buffer.revoke([(one.topic, one.partition) for one in revoked])
        self._store(finished)
        self._initial_offsets.remember(finished)

    def _store(self, offsets: Mapping[Partition, int]) -> None:
        """Let librdkafka commit these offsets with its next commit, at the latest when it gives the partitions away."""
        if not offsets:
            return
        try:
            self._consumer.store_offsets(offsets=_vendor_offsets(offsets))
        except KafkaException as error:
            # The partition was lost a moment ago: `_revoked` is about to be called.
            logger.debug("not stored: %s", error)

    def _fetch(self, timeout: float, limit: int | None = None) -> None:
        if self._has_to_join:
            self._join()
        self._buffer.pause_and_resume()
        try:
            # With a timeout it would wait until there are as many records as it may return.
            records = self._consumer.consume(limit or _BATCH, 0)
            if not records and timeout > 0:
                record = self._consumer.poll(timeout)
                records = [] if record is None else [record]
        except KafkaException as error:
            raise connection_error(error, self._servers) from error
        by_partition: dict[Partition, list[Any]] = defaultdict(list)
        for record in records:
            trouble = record.error()
            if trouble is None:
                by_partition[record.topic(), record.partition()].append(record)
            elif trouble.code() in _FINAL or trouble.fatal():
                raise connection_error(KafkaException(trouble), self._servers)
            else:
                logger.info("librdkafka continues after: %s", trouble.str())
        for partition, part in by_partition.items():
            self._buffer.add(partition, part)

    def _committed(self, error: KafkaError | None, offsets: Sequence[TopicPartition]) -> None:
        # librdkafka calls it in the thread that polls.
        if error is not None and error.code() != KafkaError._NO_OFFSET:  # noqa: SLF001
            logger.warning("the offsets of %d partition(s) could not be committed: %s", len(offsets), error.str())
            return
        for one in offsets:
            if one.error is None and one.offset >= 0:
                self._buffer.confirm_commit((one.topic, one.partition), one.offset)

    def _heard_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001
            self._lost_at = self._lost_at or time.monotonic()
        else:
            self._why = error

    def _check_connection(self, now: float) -> None:
        if self._lost_at is None or now - self._lost_at <= _PATIENCE:
            return
        try:
            self._consumer.list_topics(self._plan.topics[0], timeout=_PROBE)
        except KafkaException as error:
            raise connection_error(error, self._servers, self._why) from error
        self._lost_at = self._why = None


def _rebalances_incrementally(options: Mapping[str, Any]) -> bool:
    """Tell whether members keep what they can in a rebalance, so that partitions come and go one by one."""
    strategy = str(options.get("partition.assignment.strategy", ""))
    return "cooperative" in strategy or options.get("group.protocol") == "consumer"


def _vendors(partitions: Iterable[Partition]) -> list[TopicPartition]:
    return [TopicPartition(*partition) for partition in partitions]


def _vendor_offsets(offsets: Mapping[Partition, int]) -> list[TopicPartition]:
    return [TopicPartition(*partition, offset) for partition, offset in offsets.items()]
