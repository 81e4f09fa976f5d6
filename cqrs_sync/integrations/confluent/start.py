"""Where a group begins to read."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from cqrs_sync.errors import ConfigurationError, MessageRejected
from cqrs_sync.integrations.confluent.errors import STRANGE_TOPIC
from cqrs_sync.integrations.confluent.topics import check_topic

logger = logging.getLogger(__name__)

#: A topic and the number of its partition.
Place: TypeAlias = "tuple[str, int]"

#: Seconds a broker that does not make topics gets to tell about one that was made a moment ago.
_NEW_TOPIC = 1.0
#: Seconds between two looks at a topic that is not there yet.
_LOOK = 0.1
#: Seconds to ask for the places of partitions while everything else waits.
_LOOK_UP = 2.0


class InitialOffsets:
    """
    Lets a new group begin where its first subscription found the end of each topic.

    Kafka keeps a place only for groups that have committed one. So the end is committed
    before the first message is read; the broker takes that from outside of the group
    only while it has no members. A group that has members and is new to a topic begins
    there once it knows its partitions. Partitions that come later are read from their
    first message on, and so are topics of which it reads the `whole`.

    What was finished and may not have been committed is `remember`ed until the partition
    comes back: whoever had it meanwhile may be further, not less far.

    Raises KafkaException, and ConfigurationError for a topic that is not there.
    """

    def __init__(
        self,
        consumer: Any,
        topics: Sequence[str],
        until: float,
        *,
        makes_topics: bool,
        whole: Collection[str] = (),
    ) -> None:
        self._consumer = consumer
        self._until = until
        until = until if makes_topics else min(until, time.monotonic() + _NEW_TOPIC)
        #: All that there are.
        self.partitions = self._find(topics, until)
        asked = [one for one in self.partitions if one.topic not in whole]
        told = consumer.committed(asked, timeout=self._left()) if asked else []
        kept = [one for one in told if one.offset >= 0]
        known = {one.topic for one in kept}
        #: Where to begin with partitions that nobody has begun with, and where we were in those we had.
        self._ends: dict[Place, int] = {}
        self._finished: dict[Place, int] = {}
        for one in asked:
            if one.topic not in known:
                _, end = consumer.get_watermark_offsets(one, timeout=self._left())
                self._ends[one.topic, one.partition] = end
        if self._ends:
            self._keep_places()

    def remember(self, finished: Mapping[Place, int]) -> None:
        """Keep in mind how far we were in partitions that are taken from us."""
        self._finished.update(finished)

    def begin(self, partitions: Sequence[TopicPartition], assign: Callable[[list[TopicPartition]], None]) -> None:
        """
        Begin with partitions that are ours now, where the broker does not know best where that is.

        Raises KafkaException where it does not tell in time: nothing may be read then.
        """
        unsettled = {(one.topic, one.partition) for one in partitions} & {*self._ends, *self._finished}
        if not unsettled:
            return
        begins, moved = [], []
        for kept in self._consumer.committed(partitions, timeout=_LOOK_UP):
            if kept.error is not None:
                raise KafkaException(kept.error)
            place = (kept.topic, kept.partition)
            known = [offset for offset in (kept.offset, self._finished.get(place, -1)) if offset >= 0]
            begins.append(TopicPartition(*place, max(known, default=self._ends.get(place, kept.offset))))
            if begins[-1].offset != kept.offset:
                moved.append(begins[-1])
        assign(begins)
        if moved:
            self._consumer.store_offsets(offsets=moved)
        for place in unsettled:
            self._ends.pop(place, None)
            self._finished.pop(place, None)

    def _keep_places(self) -> None:
        places = [TopicPartition(topic, partition, end) for (topic, partition), end in self._ends.items()]
        try:
            told = self._consumer.commit(offsets=places, asynchronous=False)
        except KafkaException as error:
            if error.args[0].code() not in {KafkaError.UNKNOWN_MEMBER_ID, KafkaError.ILLEGAL_GENERATION}:
                raise
            logger.debug("the group has members already")
            return
        for one in told:
            if one.error is None:
                self._ends.pop((one.topic, one.partition), None)

    def _find(self, topics: Sequence[str], until: float) -> list[TopicPartition]:
        """Wait until the broker has told about all topics, made them where it makes topics."""
        found: list[TopicPartition] = []
        for topic in topics:
            try:
                check_topic(topic)
            except (MessageRejected, TypeError) as error:
                raise ConfigurationError(str(error)) from error
            while not (numbers := self._numbers(topic)):
                if time.monotonic() >= until:
                    raise ConfigurationError(f"there is no topic {topic!r} on the broker: create it")
                self._consumer.poll(_LOOK)
            found += [TopicPartition(topic, number) for number in numbers]
        return found

    def _numbers(self, topic: str) -> list[int]:
        told = self._consumer.list_topics(topic, timeout=self._left()).topics[topic]
        if told.error is not None and told.error.code() not in {*STRANGE_TOPIC, KafkaError.LEADER_NOT_AVAILABLE}:
            raise KafkaException(told.error)
        return sorted(told.partitions)

    def _left(self) -> float:
        left = self._until - time.monotonic()
        if left <= 0:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "the broker did not answer in time"))  # noqa: SLF001
        return left
