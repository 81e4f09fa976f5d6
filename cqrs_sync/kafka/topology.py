"""The topics of a group: those it receives from, its retry topics, and its dead letter topic."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs

from cqrs_sync.broker import Group, GroupBacklog, TopologyItem, check_group
from cqrs_sync.errors import ConfigurationError, CqrsError
from cqrs_sync.kafka.client import Partition, PartitionOffsets
from cqrs_sync.kafka.partitions import OwnedPartition

_LEGAL_GROUP = re.compile(r"[a-zA-Z0-9._-]{1,200}")
_LEGAL_TOPIC = re.compile(r"(?!\.{1,2}$)[a-zA-Z0-9._-]{1,249}")
#: Offsets between the committed one and the last one delivered: so many times the prefetch, and at least so many.
_WINDOW_FACTOR, _LEAST_WINDOW = 10, 1000


@functools.lru_cache(maxsize=1024)
def check_topic(topic: str, error: type[CqrsError]) -> None:
    """Raise `error` for a name that no broker accepts: clients would ask about it until the time is over."""
    if not isinstance(topic, str) or not _LEGAL_TOPIC.fullmatch(topic):
        raise error(f"{topic!r} cannot be a topic: use letters, digits, '.', '_' and '-', 249 at most")


@attrs.frozen
class SubscriptionPlan:
    """What a consumer reads, and as which group."""

    group: str
    topics: tuple[str, ...]
    #: Makes the partition of a topic.
    partition: Callable[[str, int], OwnedPartition]
    #: Topics that a new group reads from their first record on, not from their end on.
    from_beginning: frozenset[str] = frozenset()
    #: Whether it takes all partitions without joining the group.
    standalone: bool = False


class GroupTopics:
    """
    Names the topics of a group.

    `<group>.retry.<seconds>` for each delay, `<group>.retry.0` for messages that come again at once, `<group>.dead`
    for dead letters. All records of a retry topic have the same delay, so they are due in the order they were written.

    Raises ConfigurationError for names that cannot be a group or a topic.
    """

    def __init__(self, group: Group) -> None:
        check_group(group)
        if not _LEGAL_GROUP.fullmatch(group.name):
            raise ConfigurationError(
                f"{group.name!r} cannot be a group: its topics are called after it,"
                " so use letters, digits, '.', '_' and '-', 200 at most"
            )
        for topic in group.topics:
            check_topic(topic, ConfigurationError)
        self.group = group
        #: The retry topics, with their delays in seconds.
        delays = sorted({0.0, *group.delays})
        self.retry: dict[str, float] = {f"{group.name}.retry.{_number(delay)}": delay for delay in delays}
        self.dead: str = f"{group.name}.dead"
        #: The group that reads the dead letters: its committed offset tells which are removed.
        self.reader: str = f"{self.dead}.reader"
        #: The topics that a subscription of the group receives from, and those that belong to the group alone.
        self.topics: tuple[str, ...] = (*group.topics, *self.retry)
        self.own: tuple[str, ...] = (*self.retry, self.dead)

    def retry_topic(self, delay: float) -> str:
        """Return the retry topic of this delay; raises ValueError if there is none."""
        for topic, seconds in self.retry.items():
            if seconds == delay:
                return topic
        known = ", ".join(map(_number, self.group.delays)) or "none"
        raise ValueError(f"{self.group.name} has no delay of {_number(delay)} s, only: {known}")

    def plan(self) -> SubscriptionPlan:
        """Read the topics of the group, and its retry topics from their first record on."""
        window = max(_WINDOW_FACTOR * self.group.prefetch, _LEAST_WINDOW)

        def partition(topic: str, number: int) -> OwnedPartition:
            delay = self.retry.get(topic)
            # A delay of 0 becomes None: nothing has to wait.
            return OwnedPartition(topic, number, window=window, delay=delay or None, deferred=delay is not None)

        return SubscriptionPlan(self.group.name, self.topics, partition, from_beginning=frozenset(self.retry))

    def offsets_plan(self) -> SubscriptionPlan:
        """Read nothing and do not join: a subscription that is opened and closed commits the offsets of a new group."""
        return attrs.evolve(self.plan(), standalone=True)

    def dead_letter_plan(self) -> SubscriptionPlan:
        """Read the dead letters, without a limit before the first one is removed."""
        return SubscriptionPlan(
            self.reader,
            (self.dead,),
            lambda topic, number: OwnedPartition(topic, number, window=sys.maxsize, deferred=True),
            from_beginning=frozenset({self.dead}),
            standalone=True,
        )

    def partition_counts(self, partitions: int) -> dict[str, int]:
        """Return how many partitions each topic should have, -1 for the broker's default."""
        # Dead letters have one: they are read in their order.
        return {**dict.fromkeys(self.topics, partitions), self.dead: 1}

    def items(self, existing: Mapping[str, int], partitions: int) -> list[TopologyItem]:
        """Compare the topics that exist, and their partitions, with what the group needs."""
        return [_item(topic, existing.get(topic), count) for topic, count in self.partition_counts(partitions).items()]

    def missing(self, existing: Mapping[str, int], partitions: int, topics: Iterable[str]) -> dict[str, int]:
        """Return which of these topics to create, with their partitions; raises ConfigurationError if one differs."""
        counts = self.partition_counts(partitions)
        for topic in topics:
            item = _item(topic, existing.get(topic), counts[topic])
            if item.state == "different":
                raise ConfigurationError(f"the topic {topic!r} {item.trouble}")
        return {topic: counts[topic] for topic in topics if topic not in existing}

    def backlog(self, offsets: Mapping[Partition, PartitionOffsets], dead: Sequence[PartitionOffsets]) -> GroupBacklog:
        """Add up what waits."""
        begun = {topic for (topic, _), one in offsets.items() if one.committed is not None}
        waiting = {
            # A group that is new to a topic begins at its end; partitions that were added later are read whole.
            f"{topic}[{number}]": one.lag if topic in begun else 0
            for (topic, number), one in offsets.items()
            if topic not in self.retry
        }
        delayed = sum(one.lag for (topic, _), one in offsets.items() if topic in self.retry)
        return GroupBacklog(waiting, delayed, sum(one.lag for one in dead))


def _item(topic: str, existing: int | None, wanted: int) -> TopologyItem:
    if existing is None:
        details = f"{wanted} partition(s)" if wanted > 0 else "the broker's default number of partitions"
        return TopologyItem("topic", topic, details)
    details = f"{existing} partition(s)"
    if existing >= wanted:
        return TopologyItem("topic", topic, details, "there")
    trouble = (
        f"has {existing} partition(s), {wanted} are asked for: ask for {existing}, or let the group finish what is in"
        f" it and run `kafka-topics.sh --alter --topic {topic} --partitions {wanted}`"
        " (keys move to other partitions then)"
    )
    return TopologyItem("topic", topic, details, "different", trouble)


def _number(seconds: float) -> str:
    return str(int(seconds)) if seconds == int(seconds) else repr(float(seconds))
