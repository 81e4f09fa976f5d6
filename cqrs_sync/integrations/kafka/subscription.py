"""Receiving from Kafka: one consumer, settled message by message."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from kafka import KafkaConsumer, OffsetAndMetadata
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.errors import KafkaError

from cqrs_sync.broker import Delivery, Subscription
from cqrs_sync.errors import BrokerUnavailable
from cqrs_sync.integrations.kafka.failures import connection_error, is_passing
from cqrs_sync.integrations.kafka.network import Network
from cqrs_sync.integrations.kafka.settings import Settings
from cqrs_sync.integrations.kafka.start import Start
from cqrs_sync.records import Progress, RecordDelivery, incoming_message

logger = logging.getLogger(__name__)

#: Seconds without a connection to any broker after which `receive` says so.
_PATIENCE = 1.0
#: Seconds between two looks at whether the connection lives and finished messages are committed.
_LOOK = 0.5
#: Seconds that closing may take for the last commit, and for leaving the group.
_LAST_COMMIT, _LEAVING = 2.0, 2.0


class KafkaSubscription(Subscription):
    """
    A member of a consumer group, for one thread.

    Its offsets are committed up to the first message that is not finished. When the
    group's partitions are shared out anew, what is not finished goes to their new
    owner; settling it here afterwards does nothing.
    """

    def __init__(self, topics: Sequence[str], group: str, settings: Settings, until: float) -> None:
        self._servers = ",".join(settings.servers)
        self._progress: dict[Any, Progress] = {}
        self._ready: deque[tuple[Any, Any]] = deque()
        #: What is finished and not known to be committed, and what of it is under way.
        self._finished: dict[Any, int] = {}
        self._sent: dict[Any, int] = {}
        self._commit: Any = None
        self._lost_at: float | None = None
        self._closed = False
        self._network = Network({**settings.consumer, "group_id": group})
        try:
            self._consumer = KafkaConsumer(**self._network.options)
            self._network.completed()
            self._start = Start(self._consumer, self._network.cluster, topics, until)
            self._consumer.subscribe(topics, listener=_Rebalanced(self))
        except BaseException as error:
            self._network.hang_up()
            # A ValueError or TypeError is about the name of a topic or group.
            if isinstance(error, (KafkaError, TypeError, ValueError)):
                raise connection_error(self._network.explain(error), self._servers) from error
            raise

    def receive(self, timeout: float) -> Delivery | None:
        """Wait at most `timeout` seconds for the next message; None where none came."""
        until = time.monotonic() + timeout
        while not self._ready:
            left = until - time.monotonic()
            self._fetch(max(0.0, min(left, _LOOK)))
            self._commit_what_is_finished()
            if not self._ready:
                self._check_connection()
                if left <= 0:
                    return None
        partition, record = self._ready.popleft()
        message = incoming_message(record.topic, record.value, record.key, record.headers)
        return RecordDelivery(message, partition, record, self._progress[partition], self.settle)

    def settle(self, delivery: RecordDelivery, *, done: bool) -> None:
        """Settle a delivery; it does nothing where its partition has gone to another member."""
        if self._progress.get(delivery.partition) is not delivery.progress:
            return
        if not done:
            self._ready.appendleft((delivery.partition, delivery.record))
        elif (watermark := delivery.progress.finished(delivery.record.offset)) is not None:
            self._finished[delivery.partition] = watermark
            self._commit_what_is_finished()

    def close(self) -> None:
        """Commit what is finished, and leave the rest to the group's next member."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._finished:
                self._consumer.commit(_offsets(self._finished), timeout_ms=_LAST_COMMIT * 1000)
        except KafkaError as error:
            logger.warning("finished messages will be delivered again, their offsets are not committed: %s", error)
        with contextlib.suppress(KafkaError):
            self._consumer.close(autocommit=False, timeout_ms=_LEAVING * 1000)

    def lost(self, partitions: Iterable[Any]) -> None:
        """Forget partitions that are no longer ours."""
        gone = set(partitions)
        self._start.remember({one: self._finished.pop(one) for one in gone if one in self._finished})
        for partition in gone:
            if partition in self._progress:
                self._progress.pop(partition).lapsed = True
        self._ready = deque(entry for entry in self._ready if entry[0] not in gone)

    def rejoin(self) -> None:
        """Keep asking for a place in the group until there is one."""
        self._consumer._coordinator.request_rejoin()  # noqa: SLF001 -- see where it is called

    def got(self, partitions: Iterable[Any]) -> None:
        """Begin with partitions that are ours now."""
        for partition in partitions:
            self._progress[partition] = Progress()
        self._start.hold_back(partitions)

    def _fetch(self, timeout: float) -> None:
        _free_parked_records(self._consumer)
        try:
            for partition, records in self._consumer.poll(timeout_ms=timeout * 1000).items():
                for record in records:
                    self._progress[partition].handed_out(record.offset)
                    self._ready.append((partition, record))
            self._start.let_go()
        except KafkaError as error:
            if not is_passing(error):
                raise connection_error(error, self._servers) from error

    def _commit_what_is_finished(self) -> None:
        """Commit without waiting, one request at a time: the next one holds all that has come together."""
        if self._finished != self._sent and (self._commit is None or self._commit.is_done):
            self._sent = dict(self._finished)
            self._commit = self._consumer.commit_async(_offsets(self._sent), callback=self._committed)

    def _committed(self, offsets: dict[Any, OffsetAndMetadata], answer: object) -> None:
        # Called by kafka-python in our thread.
        self._sent = {}
        if isinstance(answer, Exception):
            logger.warning("the offsets of %d partition(s) are not committed: %s", len(offsets), answer)
            return
        for partition, place in offsets.items():
            if self._finished.get(partition) == place.offset:
                del self._finished[partition]

    def _check_connection(self) -> None:
        client = self._network.client
        nodes = [broker.node_id for broker in self._network.cluster.brokers()]
        if any(client.connected(node) or client.connected(f"coordinator-{node}") for node in nodes):
            self._lost_at = None
            return
        now = time.monotonic()
        self._lost_at = self._lost_at or now
        if now - self._lost_at > _PATIENCE:
            raise BrokerUnavailable(f"kafka at {self._servers} cannot be reached")


class _Rebalanced(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """Called by kafka-python while the subscription waits in `poll`."""

    def __init__(self, subscription: KafkaSubscription) -> None:
        self._subscription = subscription

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        self._subscription.lost(revoked)
        # kafka-python forgets a rejoin for new metadata when `poll` times out during it, and then waits for ever.
        self._subscription.rejoin()

    def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        self._subscription.got(assigned)


def _free_parked_records(consumer: Any) -> None:
    """
    Let kafka-python 3.0.12 give out what it had fetched of a partition that was paused and resumed.

    It does so when no other batch is in its hands, and takes one that is used up for one
    that is not: it would neither give these records out nor fetch the partition again.
    """
    fetcher = getattr(consumer, "_fetcher", None)
    if fetcher and getattr(fetcher, "_paused_partition_records", None) and not fetcher._next_partition_records:  # noqa: SLF001
        fetcher._next_partition_records = None  # noqa: SLF001


def _offsets(watermarks: dict[Any, int]) -> dict[Any, OffsetAndMetadata]:
    return {partition: OffsetAndMetadata(offset, "", -1) for partition, offset in watermarks.items()}
