"""Where a group begins to read."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from kafka import OffsetAndMetadata, TopicPartition
from kafka.errors import CommitFailedError, KafkaTimeoutError

from cqrs_sync.errors import ConfigurationError

logger = logging.getLogger(__name__)

#: Seconds a broker that does not make topics gets to tell about one that was made a moment ago.
_NEW_TOPIC = 1.0
#: Seconds to ask for the place of one partition.
_LOOK_UP = 2.0


class Start:
    """
    Lets a new group begin where its first subscription found the end of each topic.

    Kafka keeps a place only for groups that have committed one. So the end is committed
    before the first message is read; the broker takes that from outside of the group
    only while it has no members. A group that has members and is new to a topic begins
    there once it knows its partitions. Partitions that come later are read from their
    first message on.
    """

    def __init__(self, consumer: Any, cluster: Any, topics: Sequence[str], until: float) -> None:
        self._consumer = consumer
        self._until = until
        partitions = self._partitions(cluster, topics)
        places = {partition: consumer.committed(partition, timeout_ms=self._left()) for partition in partitions}
        known = {partition.topic for partition, place in places.items() if place is not None}
        new = [partition for partition in partitions if partition.topic not in known]
        self._ends: dict[Any, int] = consumer.end_offsets(new, timeout_ms=self._left()) if new else {}
        self._held: set[Any] = set()
        if self._ends:
            self._keep_places(self._ends)

    def hold_back(self, partitions: Iterable[Any]) -> None:
        """Read nothing from partitions whose beginning is not settled yet."""
        held = [partition for partition in partitions if partition in self._ends]
        self._held = set(held)
        self._consumer.pause(*held)

    def let_go(self) -> None:
        """Settle the beginning of partitions that were held back."""
        for partition in list(self._held):
            if self._consumer.committed(partition, timeout_ms=_LOOK_UP * 1000) is None:
                self._consumer.seek(partition, self._ends[partition])
                self._consumer.commit_async({partition: OffsetAndMetadata(self._ends[partition], "", -1)})
            self._consumer.resume(partition)
            self._held.discard(partition)

    def _keep_places(self, ends: dict[Any, int]) -> None:
        self._consumer.assign(list(ends))
        try:
            self._consumer.commit(
                {partition: OffsetAndMetadata(end, "", -1) for partition, end in ends.items()},
                timeout_ms=self._left(),
            )
            self._ends = {}
        except CommitFailedError:
            logger.debug("the group has members already")
        self._consumer.unsubscribe()

    def _partitions(self, cluster: Any, topics: Sequence[str]) -> list[Any]:
        """Wait until the broker has told about all topics, made them where it makes topics."""
        until = self._until
        if not cluster.config["allow_auto_create_topics"]:
            until = min(until, time.monotonic() + _NEW_TOPIC)
        cluster.set_topics(topics)
        while missing := [topic for topic in topics if cluster.partitions_for_topic(topic) is None]:
            left = until - time.monotonic()
            if left <= 0:
                raise ConfigurationError(f"there is no topic {missing[0]!r} on the broker: create it")
            answered = threading.Event()
            cluster.request_update().add_both(lambda _, answered=answered: answered.set())
            answered.wait(left)
        return [
            TopicPartition(topic, partition)
            for topic in topics
            for partition in sorted(cluster.partitions_for_topic(topic))
        ]

    def _left(self) -> float:
        left = self._until - time.monotonic()
        if left <= 0:
            raise KafkaTimeoutError("the broker did not answer in time")
        return left * 1000
