"""The places of a group: topics in which it keeps what it has set aside."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs

from cqrs_sync.broker import Group, GroupBacklog, Piece
from cqrs_sync.errors import ConfigurationError
from cqrs_sync.kafka.partitions import OwnedPartition

_LEGAL = re.compile(r"[a-zA-Z0-9._-]{1,200}")
_LEGAL_TOPIC = re.compile(r"(?!\.{1,2}$)[a-zA-Z0-9._-]{1,249}")
#: Offsets between the group's place and the last one handed out: so many times what a subscription holds.
_REACH, _LEAST = 10, 1000


@attrs.frozen
class PartitionOffsets:
    """How far a partition goes, and how far somebody has come; None where nobody ever began."""

    first: int
    end: int
    kept: int | None = None

    @property
    def left(self) -> int:
        """How many there are to read for somebody who begins with the first one."""
        return max(0, self.end - max(self.first, self.kept or 0))


@attrs.frozen
class SubscriptionPlan:
    """What a consumer reads, and as whom."""

    group: str
    topics: tuple[str, ...]
    #: Takes a partition in hand: the client's name for it, its topic, its number.
    holding: Callable[[Any, str, int], OwnedPartition]
    #: Topics of which a new group reads everything, instead of what comes from then on.
    whole: frozenset[str] = frozenset()
    #: Whether it takes all partitions without asking who else is in the group.
    alone: bool = False

    @classmethod
    def of(cls, topics: tuple[str, ...], group: str) -> SubscriptionPlan:
        """Read topics as a group that has no places of its own."""
        return cls(group, topics, lambda place, topic, number: _holding(place, topic, number, reach=_LEAST))


class GroupTopics:
    """
    Names of topics.

    `<group>.retry.<seconds>` for each delay, `<group>.retry.0` for what comes again at
    once, `<group>.dead` for good. The delay of a place is constant, so its records are due
    in the order they were written.

    Raises ConfigurationError for a group that no topic can be called after, and for what cannot be a topic.
    """

    def __init__(self, group: Group) -> None:
        if not _LEGAL.fullmatch(group.name):
            raise ConfigurationError(
                f"{group.name!r} cannot be a group: its topics are called after it,"
                " so use letters, digits, '.', '_' and '-', 200 at most"
            )
        if not group.topics:
            raise ConfigurationError(f"there is nothing to receive for {group.name}: name a topic")
        for topic in group.topics:
            if not _LEGAL_TOPIC.fullmatch(topic):
                raise ConfigurationError(
                    f"{topic!r} cannot be a topic: use letters, digits, '.', '_' and '-', 249 at most"
                )
        self.group = group
        #: Topics to wait in, with the seconds.
        self.retry = {f"{group.name}.retry.{_number(delay)}": delay for delay in sorted({0.0, *group.delays})}
        self.dead = f"{group.name}.dead"
        #: Who reads the dead letters: its place tells which are removed.
        self.reader = f"{self.dead}.reader"

    @property
    def topics(self) -> tuple[str, ...]:
        """All that a subscription of the group receives from."""
        return (*self.group.topics, *self.retry)

    @property
    def own(self) -> tuple[str, ...]:
        """All that belongs to the group alone."""
        return (*self.retry, self.dead)

    def place(self, after: float | None) -> str:
        """Return the place for what comes again after so many seconds; raises ValueError where there is none."""
        if after is None:
            return self.dead
        for topic, delay in self.retry.items():
            if delay == after:
                return topic
        known = ", ".join(map(_number, self.group.delays)) or "none"
        raise ValueError(f"{self.group.name} has no delay of {_number(after)} s: {known}")

    def reading(self) -> SubscriptionPlan:
        """Read what is for the group, its places to wait in from their first record on."""
        reach = max(_REACH * self.group.prefetch, _LEAST)

        def holding(place: Any, topic: str, number: int) -> OwnedPartition:
            delay = self.retry.get(topic)
            # 0 is None here: nothing has to wait.
            return _holding(place, topic, number, reach=reach, delay=delay or None, kept=delay is not None)

        return SubscriptionPlan(self.group.name, self.topics, holding, whole=frozenset(self.retry))

    def keeping_place(self) -> SubscriptionPlan:
        """Read nothing, without joining: opened, it has the broker keep the place of a new group."""
        return attrs.evolve(self.reading(), alone=True)

    def reading_dead(self) -> SubscriptionPlan:
        """Read the dead letters; they may all be looked at before one is removed."""

        def holding(place: Any, topic: str, number: int) -> OwnedPartition:
            return _holding(place, topic, number, reach=sys.maxsize, kept=True)

        return SubscriptionPlan(self.reader, (self.dead,), holding, whole=frozenset({self.dead}), alone=True)

    def wanted(self, partitions: int) -> dict[str, int]:
        """Return how many partitions each topic should have, -1 where the broker knows."""
        # One: dead letters are read in their order.
        return {**dict.fromkeys((*self.group.topics, *self.retry), partitions), self.dead: 1}

    def pieces(self, there: Mapping[str, int], partitions: int) -> list[Piece]:
        """Compare topics and their partitions with what the group needs."""
        return [_piece(topic, there.get(topic), wanted) for topic, wanted in self.wanted(partitions).items()]

    def missing(self, there: Mapping[str, int], partitions: int, topics: Iterable[str]) -> dict[str, int]:
        """Return which of these topics are to be made, with their partitions; raises ConfigurationError as `join`."""
        wanted = self.wanted(partitions)
        for topic in topics:
            piece = _piece(topic, there.get(topic), wanted[topic])
            if piece.state == "different":
                raise ConfigurationError(f"the topic {topic!r} {piece.trouble}")
        return {topic: wanted[topic] for topic in topics if topic not in there}

    def backlog(
        self, group: Mapping[tuple[str, int], PartitionOffsets], dead: Sequence[PartitionOffsets]
    ) -> GroupBacklog:
        """Add up what waits."""
        begun = {topic for (topic, _), offsets in group.items() if offsets.kept is not None}
        waiting = {
            # Where the group has never been it begins at the end; in partitions that came later, at the beginning.
            f"{topic}[{number}]": offsets.left if topic in begun else 0
            for (topic, number), offsets in group.items()
            if topic not in self.retry
        }
        delayed = sum(offsets.left for (topic, _), offsets in group.items() if topic in self.retry)
        return GroupBacklog(waiting, delayed, sum(offsets.left for offsets in dead))


def _holding(place: Any, topic: str, number: int, **what: Any) -> OwnedPartition:
    return OwnedPartition(place, f"{topic}[{number}]", **what)


def _piece(topic: str, there: int | None, wanted: int) -> Piece:
    if there is None:
        details = f"{wanted} partition(s)" if wanted > 0 else "as many partitions as the broker makes"
        return Piece("topic", topic, details)
    details = f"{there} partition(s)"
    if there >= wanted:
        return Piece("topic", topic, details, "there")
    trouble = (
        f"has {there} partition(s) and {wanted} are asked for: ask for {there}, or let what is in it be read and run"
        f" `kafka-topics.sh --alter --topic {topic} --partitions {wanted}` (keys will be in other partitions then)"
    )
    return Piece("topic", topic, details, "different", trouble)


def _number(seconds: float) -> str:
    return str(int(seconds)) if seconds == int(seconds) else repr(float(seconds))
