"""Receiving with kafka-python."""

from __future__ import annotations

import contextlib
import logging
import operator
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.errors import CommitFailedError, KafkaError

from cqrs_sync.broker import IncomingMessage
from cqrs_sync.errors import BrokerUnavailable
from cqrs_sync.integrations.kafka.client import (
    KafkaConnections,
    connection_error,
    is_passing,
    keep_finished_joins,
    release_paused_records,
)
from cqrs_sync.kafka.client import Headers, Partition
from cqrs_sync.kafka.cloudevents import incoming_message
from cqrs_sync.kafka.settings import KafkaSettings
from cqrs_sync.kafka.subscription import BaseKafkaSubscription, InitialOffsets
from cqrs_sync.kafka.topology import SubscriptionPlan

logger: logging.Logger = logging.getLogger(__name__)

#: Records that are read at a time: few enough to be handled while they are in the cache of the processor.
_BATCH = 100
#: Seconds without a connection to any broker after which `receive` says so.
_PATIENCE = 1.0
#: Seconds that closing may take for the last commit, and for leaving the group.
_LAST_COMMIT, _LEAVING = 2.0, 2.0
#: Seconds to ask for the committed offset of one partition, and to commit another one.
_LOOK_UP = 2.0


class KafkaSubscription(BaseKafkaSubscription, ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """
    A consumer of kafka-python.

    kafka-python leaves its group and joins it again with every lost connection. And if a partition comes back to the
    member that had it, kafka-python reads on where it was: after messages that were delivered and not finished, which
    would be lost. So each assigned partition begins anew where InitialOffsets says, and nothing is read from it before.
    """

    def __init__(self, plan: SubscriptionPlan, settings: KafkaSettings, timeout: float) -> None:
        super().__init__(plan, settings.servers)
        until = time.monotonic() + timeout
        self._commit_request: Any = None
        self._lost_at: float | None = None
        #: Assigned partitions whose first offset is not settled.
        self._unsettled: set[Partition] = set()
        self._connections = KafkaConnections({**settings.consumer, "group_id": plan.group})
        with self._connections.connecting(self._servers):
            self._consumer = KafkaConsumer(**self._connections.options)
            self._connections.complete()
            self._batch = min(_BATCH, self._consumer.config["max_poll_records"])
            keep_finished_joins(self._consumer)
            self._initial_offsets = InitialOffsets(
                self, plan, until - time.monotonic(), creates_topics=self._consumer.config["allow_auto_create_topics"]
            )
            if plan.standalone:
                self._consumer.assign(_vendors(self._initial_offsets.partitions))
                self.on_partitions_assigned(self._initial_offsets.partitions)
            else:
                self._consumer.subscribe(plan.topics, listener=self)
                # kafka-python causes another rebalance if it had not heard of the topics before the first one.
                self._connections.refresh_topics(max(0.0, until - time.monotonic()))

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        finished = dict(self._buffer.uncommitted)
        self._buffer.close()
        try:
            if finished:
                self._consumer.commit(_vendor_offsets(finished), timeout_ms=_LAST_COMMIT * 1000)
        except KafkaError as error:
            logger.warning("finished messages will be delivered again: their offsets could not be committed: %s", error)
        with contextlib.suppress(KafkaError):
            self._consumer.close(autocommit=False, timeout_ms=_LEAVING * 1000)
        self._connections.close()

    # The port: each record is one of kafka-python's.

    offset_of: Callable[[Any], int] = staticmethod(operator.attrgetter("offset"))
    headers_of: Callable[[Any], Headers] = staticmethod(operator.attrgetter("headers"))

    @staticmethod
    def message_of(record: Any, *, deferred: bool) -> IncomingMessage:
        return incoming_message(record.topic, record.value, record.key, record.headers, deferred=deferred)

    def pause(self, partitions: Collection[Partition]) -> None:
        self._consumer.pause(*_vendors(partitions))

    def resume(self, partitions: Collection[Partition]) -> None:
        self._consumer.resume(*_vendors(partitions))

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Commit without waiting, one request at a time: the next one holds all that is finished by then."""
        if self._commit_request is None or self._commit_request.is_done:
            self._commit_request = self._consumer.commit_async(_vendor_offsets(offsets), callback=self._committed)

    def find_partitions(self, topics: Collection[str], timeout: float) -> dict[str, list[int]]:
        cluster = self._connections.cluster
        cluster.set_topics(topics)
        if any(cluster.partitions_for_topic(topic) is None for topic in topics):
            self._connections.refresh_topics(timeout)
        found = {topic: cluster.partitions_for_topic(topic) for topic in topics}
        return {topic: sorted(numbers) for topic, numbers in found.items() if numbers is not None}

    def committed_offsets(self, partitions: Collection[Partition], timeout: float) -> dict[Partition, int | None]:
        until = time.monotonic() + timeout
        return {
            partition: self._consumer.committed(
                TopicPartition(*partition), timeout_ms=max(1.0, (until - time.monotonic()) * 1000)
            )
            for partition in partitions
        }

    def end_offsets(self, partitions: Collection[Partition], timeout: float) -> dict[Partition, int]:
        ends: dict[Partition, int] = self._consumer.end_offsets(_vendors(partitions), timeout_ms=timeout * 1000)
        return ends

    def commit_before_joining(self, offsets: Mapping[Partition, int], timeout: float) -> Collection[Partition]:
        self._consumer.assign(_vendors(offsets))
        accepted: Collection[Partition] = list(offsets)
        try:
            self._consumer.commit(_vendor_offsets(offsets), timeout_ms=timeout * 1000)
        except CommitFailedError:
            accepted = ()
        self._consumer.unsubscribe()
        return accepted

    # kafka-python calls these two while `poll` waits.

    def on_partitions_assigned(self, assigned: Iterable[Partition]) -> None:
        partitions = list(assigned)
        self._assign(partitions)
        self._unsettled.update(partitions)
        self._buffer.pause_and_resume(self._unsettled)

    def on_partitions_revoked(self, revoked: Iterable[Partition]) -> None:
        partitions = list(revoked)
        self._unsettled.difference_update(partitions)
        self._initial_offsets.remember(self._buffer.revoke(partitions))
        # kafka-python forgets a rejoin for new metadata when `poll` times out during it, and then waits without end.
        self._consumer._coordinator.request_rejoin()  # noqa: SLF001

    def _settle_offsets(self) -> None:
        """Let partitions begin where they have to."""
        for partition in list(self._unsettled):
            committed = self.committed_offsets([partition], _LOOK_UP)[partition]
            if partition not in self._unsettled:
                # It was revoked while the broker was asked.
                continue
            vendors = TopicPartition(*partition)
            begin = self._initial_offsets.start_offset(partition, committed)
            if begin is None:
                self._consumer.seek_to_beginning(vendors)
            else:
                self._consumer.seek(vendors, begin)
                if begin != committed:
                    self._consumer.commit(_vendor_offsets({partition: begin}), timeout_ms=_LOOK_UP * 1000)
            self._initial_offsets.settle([partition])
            self._unsettled.discard(partition)

    def _fetch(self, timeout: float, limit: int | None = None) -> None:
        self._buffer.pause_and_resume(self._unsettled)
        release_paused_records(self._consumer)
        try:
            fetched = self._consumer.poll(timeout_ms=timeout * 1000, max_records=limit or self._batch)
            for partition, records in fetched.items():
                # Records from an offset that is not settled are read once more, from the one that is.
                if partition not in self._unsettled:
                    self._buffer.add(partition, records)
            self._settle_offsets()
        except KafkaError as error:
            if not is_passing(error):
                raise connection_error(error, self._servers) from error

    def _committed(self, offsets: dict[Any, OffsetAndMetadata], answer: object) -> None:
        # kafka-python calls it in the thread that polls.
        if isinstance(answer, Exception):
            logger.warning("the offsets of %d partition(s) could not be committed: %s", len(offsets), answer)
            return
        for partition, committed in offsets.items():
            self._buffer.confirm_commit(partition, committed.offset)

    def _check_connection(self, now: float) -> None:
        client = self._connections.client
        nodes = [broker.node_id for broker in self._connections.cluster.brokers()]
        if any(client.connected(node) or client.connected(f"coordinator-{node}") for node in nodes):
            self._lost_at = None
            return
        self._lost_at = self._lost_at or now
        if now - self._lost_at > _PATIENCE:
            raise BrokerUnavailable(f"kafka at {self._servers} cannot be reached")


def _vendors(partitions: Iterable[Partition]) -> list[Any]:
    return [TopicPartition(*partition) for partition in partitions]


def _vendor_offsets(offsets: Mapping[Partition, int]) -> dict[Any, OffsetAndMetadata]:
    return {TopicPartition(*partition): OffsetAndMetadata(offset, "", -1) for partition, offset in offsets.items()}
