"""Where a group begins to read."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.kafka.client import ConsumerClient, Partition
from cqrs_sync.kafka.topology import SubscriptionPlan, check_topic

logger = logging.getLogger(__name__)

#: Seconds in which a broker that does not create topics may tell about one that was created a moment ago.
_NEW_TOPIC = 1.0
#: Seconds for a question, at least: the client then says itself that there was no answer.
_LEAST = 0.001


class InitialOffsets:
    """
    Lets a new group begin at the end that each topic has when its first subscription is opened.

    Kafka keeps offsets only for groups that have committed some. So the ends are committed before the first message is
    read; the broker accepts that from outside the group only while the group has no members. A group that has members
    and is new to a topic begins there once it knows its partitions. Partitions that are added later are read from
    their first record on, and so are the topics of the plan's `from_beginning`.

    What was finished in a partition and may not have been committed is remembered until the partition comes back: the
    member that had it meanwhile may have come further, not less far.

    Raises the client's errors, and ConfigurationError for a topic that does not exist.
    """

    def __init__(self, client: ConsumerClient, plan: SubscriptionPlan, timeout: float, *, creates_topics: bool) -> None:
        self._client = client
        self._until = time.monotonic() + timeout
        #: All partitions of all topics.
        self.partitions = self._find(plan.topics, creates_topics=creates_topics)
        asked = [partition for partition in self.partitions if partition[0] not in plan.from_beginning]
        committed = client.committed_offsets(asked, self._left()) if asked else {}
        known = {topic for (topic, _), offset in committed.items() if offset is not None}
        new = [partition for partition in asked if partition[0] not in known]
        self._ends = client.end_offsets(new, self._left()) if new else {}
        self._finished: dict[Partition, int] = {}
        if self._ends:
            accepted = client.commit_before_joining(self._ends, self._left())
            if not accepted:
                logger.debug("the group has members already: it begins at the end once partitions are assigned")
            self.settle(accepted)

    def remember(self, finished: Mapping[Partition, int]) -> None:
        """Remember how far this member came in partitions that are revoked."""
        self._finished.update(finished)

    def may_override_commit(self, partitions: Iterable[Partition]) -> bool:
        """Tell whether one of these may have to begin elsewhere than at its committed offset."""
        return any(partition in self._ends or partition in self._finished for partition in partitions)

    def start_offset(self, partition: Partition, committed: int | None) -> int | None:
        """Return the offset to begin at, None for the first record; `committed` is what the broker keeps now."""
        begin = self._ends.get(partition) if committed is None else committed
        finished = self._finished.get(partition)
        return finished if finished is not None and (begin is None or begin < finished) else begin

    def settle(self, partitions: Iterable[Partition]) -> None:
        """From now on the committed offset of these partitions counts."""
        for partition in partitions:
            self._ends.pop(partition, None)
            self._finished.pop(partition, None)

    def _find(self, topics: Collection[str], *, creates_topics: bool) -> list[Partition]:
        """Wait until the broker has told about all topics, created where it creates them."""
        for topic in topics:
            check_topic(topic, ConfigurationError)
        until = self._until if creates_topics else min(self._until, time.monotonic() + _NEW_TOPIC)
        while missing := set(topics) - (found := self._client.find_partitions(topics, self._left())).keys():
            if time.monotonic() >= until:
                # The topics of the plan come first, then those of its own.
                first = next(topic for topic in topics if topic in missing)
                raise ConfigurationError(f"there is no topic {first!r} on the broker: create it")
        return [(topic, number) for topic in topics for number in found[topic]]

    def _left(self) -> float:
        return max(_LEAST, self._until - time.monotonic())
