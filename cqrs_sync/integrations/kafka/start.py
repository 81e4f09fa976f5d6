"""Where a group begins to read."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from kafka import OffsetAndMetadata, TopicPartition
from kafka.errors import CommitFailedError, KafkaTimeoutError

from cqrs_sync.errors import ConfigurationError

logger = logging.getLogger(__name__)

#: Seconds a broker that does not make topics gets to tell about one that was made a moment ago.
_NEW_TOPIC = 1.0
#: Seconds to ask for the place of one partition.
_LOOK_UP = 2.0


class InitialOffsets:
    """
    Lets a new group begin where its first subscription found the end of each topic.

    Kafka keeps a place only for groups that have committed one. So the end is committed
    before the first message is read; the broker takes that from outside of the group
    only while it has no members. A group that has members and is new to a topic begins
    there once it knows its partitions. Partitions that come later are read from their
    first message on, and so are topics of which it reads the `whole`.

    kafka-python leaves its group and joins it again with every lost connection. What was
    finished and could not be committed is `remember`ed until the partition comes back:
    whoever had it meanwhile may be further, not less far.

    A partition that comes back to the member that had it keeps its place in kafka-python, which
    is behind what was in hand and is nobody's now. So each one begins anew where the broker says.
    """

    def __init__(
        self, consumer: Any, cluster: Any, topics: Sequence[str], until: float, *, whole: Collection[str] = ()
    ) -> None:
        self._consumer = consumer
        self._until = until
        #: All that there are.
        self.partitions = self._partitions(cluster, topics)
        asked = [partition for partition in self.partitions if partition.topic not in whole]
        places = {partition: consumer.committed(partition, timeout_ms=self._left()) for partition in asked}
        known = {partition.topic for partition, place in places.items() if place is not None}
        new = [partition for partition in asked if partition.topic not in known]
        self._ends: dict[Any, int] = consumer.end_offsets(new, timeout_ms=self._left()) if new else {}
        self._finished: dict[Any, int] = {}
        #: Partitions of which nothing may be read yet.
        self.held: set[Any] = set()
        if self._ends:
            self._keep_places(self._ends)

    def remember(self, finished: Mapping[Any, int]) -> None:
        """Keep in mind how far we were in partitions that are taken from us."""
        self._finished.update(finished)

    def hold_back(self, partitions: Iterable[Any]) -> None:
        """Hold these partitions until their beginning is settled."""
        self.held.update(partitions)

    def forget(self, partitions: Iterable[Any]) -> None:
        """Hold these no longer: they are not ours any more."""
        self.held.difference_update(partitions)

    def release_connection(self) -> None:
        """Settle the beginning of partitions that were held back."""
        for partition in list(self.held):
            place = self._consumer.committed(partition, timeout_ms=_LOOK_UP * 1000)
            if partition not in self.held:
                # Lost while the broker was asked.
                continue
            begin = self._ends.get(partition) if place is None else place
            finished = self._finished.get(partition)
            if finished is not None and (begin is None or begin < finished):
                begin = finished
            if begin is None:
                self._consumer.seek_to_beginning(partition)
            else:
                self._consumer.seek(partition, begin)
            if begin != place:
                self._consumer.commit({partition: OffsetAndMetadata(begin, "", -1)}, timeout_ms=_LOOK_UP * 1000)
            self._ends.pop(partition, None)
            self._finished.pop(partition, None)
            self.held.discard(partition)

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
            ask_about_topics(cluster, left)
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


def ask_about_topics(cluster: Any, timeout: float) -> None:
    """Have the broker tell about its topics once more; wait for it, and not for long."""
    answered = threading.Event()
    cluster.request_update().add_both(lambda _: answered.set())
    answered.wait(timeout)
