"""What a broker for Kafka is, whichever client it has: its producers, and their life."""

from __future__ import annotations

import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, Protocol, Self, TypeVar

from cqrs_sync.broker import Group, GroupBacklog, IncomingMessage, OutgoingMessage, Piece, Subscription
from cqrs_sync.context import within
from cqrs_sync.errors import Closed, ConfigurationError, DeliveryError, PublishFailed
from cqrs_sync.kafka.cloudevents import kept_messages
from cqrs_sync.kafka.topology import GroupTopics, PartitionOffsets, SubscriptionPlan
from cqrs_sync.lifecycle import close_at_exit, reset_in_child

#: Seconds, at least, for a call that looks around or makes topics.
_LEAST = 5.0


class TopicAdmin(Protocol):
    """A connection for whoever looks after topics; raises BrokerUnavailable and ConfigurationError."""

    def partitions(self, topics: Iterable[str], /) -> dict[str, int]:
        """Return how many partitions each of these has, of those that are there; makes none."""

    def make(self, topics: Mapping[str, int], replicas: int, /) -> None:
        """Make topics with so many partitions, -1 where the broker knows, and wait until they can be used."""

    def offsets(self, there: Mapping[str, int], group: str, /) -> dict[tuple[str, int], PartitionOffsets]:
        """Return how far the partitions of topics go and how far the group has come, without joining it."""


class RecordGroups(ABC):
    """
    The places of groups are topics: see GroupTopics.

    A class that inherits from it says how to publish and receive, and who looks after topics.
    """

    def __init__(self, *, partitions: int, replicas: int, declare: bool) -> None:
        for name, number in (("partitions", partitions), ("replication_factor", replicas)):
            if number != -1 and number < 1:
                raise ConfigurationError(f"{name} is {number}: it is 1 or more, or -1 for what the broker is told")
        self._partitions = partitions
        self._replicas = replicas
        self._declare = declare

    def join(self, group: Group, /) -> Subscription:
        """
        Receive what is published to the group's topics, and what it has set aside for a while when that is over.

        Makes what is missing of the group's own topics. A new group starts at the end of the
        topics it receives from, and from then on the broker keeps its place. A record that is
        not due yet holds up those behind it in its place, and nothing else.
        """
        places = GroupTopics(group)
        until = self._until()
        if self._declare:
            with self._admin(until) as admin:
                there = admin.partitions(places.own)
                self._make(admin, places.missing(there, self._partitions, places.own))
        return self._receiving(places.reading(), until)

    def set_aside(
        self,
        messages: Sequence[IncomingMessage],
        group: Group,
        /,
        *,
        after: float | None,
        timeout: float | None = None,
    ) -> None:
        """
        Keep messages for the group, with their notes; returns when the broker has confirmed all of them.

        Raises PublishFailed, whose messages have the place for their topic.
        """
        place = GroupTopics(group).place(after)
        self.publish(kept_messages(messages, place, after=after, limit=self._limit()), timeout=timeout)

    def dead(self, group: Group, /) -> Subscription:
        """
        Receive the group's dead letters, oldest first: `ack` removes one, what is not settled stays.

        For one reader at a time. What is removed is what the reader's place has passed: whoever
        settles a later one first sees it again, with the earlier one, next time.
        """
        places = GroupTopics(group)
        until = self._until()
        if self._declare:
            with self._admin(until) as admin:
                there = admin.partitions([places.dead])
                self._make(admin, places.missing(there, self._partitions, [places.dead]))
        return self._receiving(places.reading_dead(), until)

    def backlog(self, group: Group, /) -> GroupBacklog:
        """Count what waits for the group, without joining it."""
        places = GroupTopics(group)
        with self._admin(self._until()) as admin:
            there = admin.partitions([*places.topics, places.dead])
            dead = {places.dead: there.pop(places.dead)} if places.dead in there else {}
            letters = admin.offsets(dead, places.reader) if dead else {}
            return places.backlog(admin.offsets(there, group.name) if there else {}, list(letters.values()))

    def topology(self, group: Group, /) -> Sequence[Piece]:
        """Look at the topics that the group needs; changes nothing."""
        places = GroupTopics(group)
        with self._admin(self._until()) as admin:
            return self._pieces(admin, places)

    def build(self, group: Group, /) -> Sequence[Piece]:
        """
        Make the topics that are missing, those the group receives from as well, and return all as they are then.

        From then on the broker keeps the place of a group that is new.
        """
        places = GroupTopics(group)
        until = self._until()
        with self._admin(until) as admin:
            missing = [piece.name for piece in self._pieces(admin, places) if piece.state == "missing"]
            wanted = places.wanted(self._partitions)
            self._make(admin, {topic: wanted[topic] for topic in missing})
            built = self._pieces(admin, places)
        self._receiving(places.keeping_place(), until).close()
        return built

    @abstractmethod
    def publish(self, messages: Sequence[OutgoingMessage], /, *, timeout: float | None = None) -> None:
        """Publish a batch and return when the broker has confirmed every message."""

    @abstractmethod
    def _admin(self, until: float) -> AbstractContextManager[TopicAdmin]:
        """Connect."""

    @abstractmethod
    def _receiving(self, reading: SubscriptionPlan, until: float) -> Subscription:
        """Open a subscription."""

    @abstractmethod
    def _limit(self) -> int:
        """Return the largest record, in bytes, that can be published."""

    @abstractmethod
    def _patience(self) -> float:
        """Return the seconds that a call may take by default."""

    def _until(self) -> float:
        return within(max(self._patience(), _LEAST))

    def _make(self, admin: TopicAdmin, topics: Mapping[str, int]) -> None:
        if topics:
            admin.make(topics, self._replicas)

    def _pieces(self, admin: TopicAdmin, places: GroupTopics) -> list[Piece]:
        return places.pieces(admin.partitions(places.wanted(self._partitions)), self._partitions)


#: What a process that leaves without `close` waits for.
_AT_EXIT = 1.0


class ProducerSupervisor(Protocol):
    """Looks after the one producer of a process."""

    def close(self, timeout: float, /) -> None:
        """Let go of connections and threads within `timeout` seconds."""

    def reset_in_child(self) -> None:
        """Leave the parent's producer alone; the next call makes a new one."""


AnySupervisor = TypeVar("AnySupervisor", bound=ProducerSupervisor)


class BaseKafkaBroker(RecordGroups, Generic[AnySupervisor]):
    """
    Publishes through two producers: for batches, and for messages that have to be alone.

    A class that inherits from it takes a URL first, and says how to publish and receive, and who looks after topics.
    """

    def __init__(
        self,
        servers: Sequence[str],
        publish_timeout: float,
        doctors: tuple[AnySupervisor, AnySupervisor],
        *,
        partitions: int,
        replicas: int,
        declare: bool,
    ) -> None:
        super().__init__(partitions=partitions, replicas=replicas, declare=declare)
        self._servers = ",".join(servers)
        self._publish_timeout = publish_timeout
        self._together, self._alone = doctors
        self._closed = False
        reset_in_child(self)
        close_at_exit(self)
        # Nobody can be publishing then.
        weakref.finalize(self, _end, self._together, self._alone).atexit = False

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Make a broker from `kafka://user:password@host:port,host:port?option=value`."""
        return cls(url, **options)

    def publish(self, messages: Sequence[OutgoingMessage], /, *, timeout: float | None = None) -> None:
        """Publish a batch and return when the broker has confirmed every message."""
        self._check_open()
        failures = self._failures(messages, within(self._publish_timeout if timeout is None else timeout))
        if failures:
            raise PublishFailed(failures)

    def subscribe(self, *topics: str, group: str) -> Subscription:
        """
        Receive what is published to these topics.

        The first subscription of a group starts at the end of each topic, and from
        then on the broker keeps the group's place. Raises BrokerUnavailable, and
        ConfigurationError for a topic that is not there and not made by the broker.
        """
        if not topics:
            raise ConfigurationError("there is nothing to subscribe to: name a topic")
        return self._receiving(SubscriptionPlan.of(topics, group), self._until())

    def close(self, timeout: float = 5.0) -> None:
        """Let go of connections and threads within `timeout` seconds. A second call does nothing."""
        self._closed = True
        until = time.monotonic() + timeout
        self._together.close(timeout)
        self._alone.close(max(0.0, until - time.monotonic()))

    def close_at_exit(self) -> None:
        """Close within a second: every call of `publish` that matters has returned."""
        self.close(_AT_EXIT)

    def reset_in_child(self) -> None:
        """Leave the parent's connections alone; the next call makes new ones."""
        self._together.reset_in_child()
        self._alone.reset_in_child()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._servers!r}, publish_timeout={self._publish_timeout})"

    @abstractmethod
    def _failures(
        self, messages: Sequence[OutgoingMessage], until: float
    ) -> Sequence[tuple[OutgoingMessage, DeliveryError]]:
        """Publish a batch; return what was not confirmed, and why."""

    def _patience(self) -> float:
        return self._publish_timeout

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"this {type(self).__name__} is closed")


def _end(*doctors: ProducerSupervisor) -> None:
    for doctor in doctors:
        doctor.close(0.0)
