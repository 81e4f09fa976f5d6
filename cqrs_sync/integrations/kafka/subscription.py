"""Receiving from Kafka: one consumer, settled message by message."""

from __future__ import annotations

import contextlib
import logging
import operator
import time
from collections.abc import Collection, Iterable
from typing import Any

from kafka import KafkaConsumer, OffsetAndMetadata
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.errors import KafkaError

from cqrs_sync.broker import IncomingMessage
from cqrs_sync.errors import BrokerUnavailable
from cqrs_sync.integrations.kafka.client import Network, free_parked_records, keep_finished_joins
from cqrs_sync.integrations.kafka.errors import connection_error, is_passing
from cqrs_sync.integrations.kafka.settings import Settings
from cqrs_sync.integrations.kafka.start import InitialOffsets, ask_about_topics
from cqrs_sync.kafka import BaseKafkaSubscription, FetchBuffer, SubscriptionPlan, incoming_message

logger = logging.getLogger(__name__)

#: Records that are read at a time: few enough to be handled while they are in the cache of the processor.
_BATCH = 100
#: Seconds without a connection to any broker after which `receive` says so.
_PATIENCE = 1.0
#: Seconds that closing may take for the last commit, and for leaving the group.
_LAST_COMMIT, _LEAVING = 2.0, 2.0


class KafkaSubscription(BaseKafkaSubscription):
    """
    A member of a consumer group, for one thread.

    Its offsets are committed up to the first message that is not finished. When the
    group's partitions are shared out anew, what is not finished goes to their new
    owner; settling it here afterwards does nothing.
    """

    def __init__(self, reading: SubscriptionPlan, settings: Settings, until: float) -> None:
        self._servers = ",".join(settings.servers)
        self._reading = reading
        self._intake = FetchBuffer(self)
        #: The request under way.
        self._commit: Any = None
        self._lost_at: float | None = None
        self._closed = False
        self._network = Network({**settings.consumer, "group_id": reading.group})
        try:
            self._consumer = KafkaConsumer(**self._network.options)
            self._network.completed()
            self._batch = min(_BATCH, self._consumer.config["max_poll_records"])
            keep_finished_joins(self._consumer)
            self._start = InitialOffsets(
                self._consumer, self._network.cluster, reading.topics, until, whole=reading.whole
            )
            self._begin(until)
        except BaseException as error:
            self._network.hang_up()
            # A ValueError or TypeError is about the name of a topic or group.
            if isinstance(error, (KafkaError, TypeError, ValueError)):
                raise connection_error(self._network.explain(error), self._servers) from error
            raise

    def close(self) -> None:
        """Commit what is finished, and leave the rest to the group's next member."""
        if self._closed:
            return
        self._closed = True
        finished = dict(self._intake.finished)
        self._intake.close()
        try:
            if finished:
                self._consumer.commit(_offsets(finished), timeout_ms=_LAST_COMMIT * 1000)
        except KafkaError as error:
            logger.warning("finished messages will be delivered again, their offsets are not committed: %s", error)
        with contextlib.suppress(KafkaError):
            self._consumer.close(autocommit=False, timeout_ms=_LEAVING * 1000)
        self._network.hang_up()

    def lost(self, partitions: Iterable[Any]) -> None:
        """Forget partitions that are no longer ours."""
        gone = list(partitions)
        self._start.forget(gone)
        self._start.remember(self._intake.lost(gone))

    def rejoin(self) -> None:
        """Keep asking for a place in the group until there is one."""
        self._consumer._coordinator.request_rejoin()  # noqa: SLF001 -- see where it is called

    def got(self, partitions: Iterable[Any]) -> None:
        """Begin with partitions that are ours now."""
        partitions = list(partitions)
        self._intake.got(self._reading.holding(one, one.topic, one.partition) for one in partitions)
        self._start.hold_back(partitions)
        self._intake.pause_and_resume(self._start.held)

    # What the intake asks of its client: each record is one of kafka-python's.

    offset_of = staticmethod(operator.attrgetter("offset"))
    headers_of = staticmethod(operator.attrgetter("headers"))

    @staticmethod
    def message_of(record: Any, *, kept: bool) -> IncomingMessage:
        """Read a record."""
        return incoming_message(record.topic, record.value, record.key, record.headers, kept=kept)

    def pause(self, places: Collection[Any]) -> None:
        """Fetch nothing of these partitions."""
        self._consumer.pause(*places)

    def resume(self, places: Collection[Any]) -> None:
        """Go on with them."""
        self._consumer.resume(*places)

    def commit(self, finished: dict[Any, int]) -> None:
        """Commit without waiting, one request at a time: the next one holds all that has come together."""
        if self._commit is None or self._commit.is_done:
            self._commit = self._consumer.commit_async(_offsets(finished), callback=self._committed)

    def _begin(self, until: float) -> None:
        if self._reading.alone:
            self._consumer.assign(self._start.partitions)
            self.got(self._start.partitions)
        else:
            self._consumer.subscribe(self._reading.topics, listener=_Rebalanced(self))
            # kafka-python shares out a group once more where it had not heard of the topics when it did so first.
            ask_about_topics(self._network.cluster, max(0.0, until - time.monotonic()))

    def _fetch(self, timeout: float, most: int | None = None) -> None:
        self._intake.pause_and_resume(self._start.held)
        free_parked_records(self._consumer)
        try:
            fetched = self._consumer.poll(timeout_ms=timeout * 1000, max_records=most or self._batch)
            for partition, records in fetched.items():
                # From a place that is not settled yet: they are read once more from where it is.
                if partition not in self._start.held:
                    self._intake.take(partition, records)
            self._start.release_connection()
        except KafkaError as error:
            if not is_passing(error):
                raise connection_error(error, self._servers) from error

    def _committed(self, offsets: dict[Any, OffsetAndMetadata], answer: object) -> None:
        # Called by kafka-python in our thread.
        if isinstance(answer, Exception):
            logger.warning("the offsets of %d partition(s) are not committed: %s", len(offsets), answer)
            return
        for partition, place in offsets.items():
            self._intake.committed(partition, place.offset)

    def _check_connection(self, now: float) -> None:
        client = self._network.client
        nodes = [broker.node_id for broker in self._network.cluster.brokers()]
        if any(client.connected(node) or client.connected(f"coordinator-{node}") for node in nodes):
            self._lost_at = None
            return
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


def _offsets(watermarks: dict[Any, int]) -> dict[Any, OffsetAndMetadata]:
    return {partition: OffsetAndMetadata(offset, "", -1) for partition, offset in watermarks.items()}
