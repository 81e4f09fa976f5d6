"""A broker for Kafka, whichever its client: publishing, subscriptions, and the topics of groups."""

from __future__ import annotations

import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from cqrs_sync.broker import Group, GroupBacklog, IncomingMessage, OutgoingMessage, Subscription, TopologyItem
from cqrs_sync.context import earliest_deadline
from cqrs_sync.errors import ClosedError, ConfigurationError, PublishFailed
from cqrs_sync.kafka.client import TopicAdmin
from cqrs_sync.kafka.cloudevents import deferred_messages
from cqrs_sync.kafka.publisher import KafkaPublisher
from cqrs_sync.kafka.settings import KafkaSettings, Options
from cqrs_sync.kafka.supervisor import ProducerSupervisor
from cqrs_sync.kafka.topology import GroupTopics, SubscriptionPlan
from cqrs_sync.lifecycle import close_at_exit

#: Seconds that closing may take when the interpreter leaves.
_AT_EXIT = 1.0
#: Seconds, at least, for a call that subscribes, or looks at topics or creates them.
_LEAST = 5.0


class BaseKafkaBroker(ABC):
    """
    Publishes messages, and keeps the retries and dead letters of groups in topics: see GroupTopics.

    A subclass reads options, makes producers, opens subscriptions and connects to look at topics.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        publish_timeout: float = 5.0,
        partitions: int = -1,
        replication_factor: int = -1,
        declare: bool = True,
        client_config: Mapping[str, Any] | None = None,
        producer_config: Mapping[str, Any] | None = None,
        consumer_config: Mapping[str, Any] | None = None,
    ) -> None:
        self._settings = self._read_options(
            url, publish_timeout, client_config or {}, producer_config or {}, consumer_config or {}
        )
        if publish_timeout <= 0:
            raise ConfigurationError(f"publish_timeout is a number of seconds above 0, not {publish_timeout!r}")
        for name, number in (("partitions", partitions), ("replication_factor", replication_factor)):
            if number != -1 and number < 1:
                raise ConfigurationError(f"{name} is {number}: it is 1 or more, or -1 for the broker's default")
        self._publish_timeout = publish_timeout
        self._publisher = KafkaPublisher(*self._producers(self._settings.producer))
        self._partitions = partitions
        self._replication_factor = replication_factor
        self._declare = declare
        self._closed = False
        close_at_exit(self)
        # No call of `publish` runs when it is collected.
        weakref.finalize(self, self._publisher.close, 0.0).atexit = False

    def publish(self, messages: Sequence[OutgoingMessage], /, *, timeout: float | None = None) -> None:
        """Publish a batch and return when the broker has confirmed every message."""
        self._check_open()
        until = earliest_deadline(self._publish_timeout if timeout is None else timeout)
        failures = self._publisher.publish(messages, _left(until))
        if failures:
            raise PublishFailed(failures)

    def subscribe(self, group: Group, /) -> Subscription:
        """
        Receive what is published to the group's topics, and what it has deferred when that is due.

        Creates the group's own topics that are missing. A new group starts at the end of the topics it receives from;
        from then on the broker keeps its offsets. A record that is not due yet holds up those behind it in its retry
        topic, and nothing else. Raises BrokerUnavailable, and ConfigurationError for a topic that does not exist and
        that the broker does not create.
        """
        topics = GroupTopics(group)
        until = self._until()
        self._declare_topics(topics, topics.own, until)
        return self._subscribe(topics.plan(), _left(until))

    def defer(
        self, messages: Sequence[IncomingMessage], group: Group, /, *, after: float, timeout: float | None = None
    ) -> None:
        """
        Keep messages for the group, with their notes; returns when the broker has confirmed all of them.

        Raises PublishFailed, whose messages name the retry topic.
        """
        self._keep(messages, GroupTopics(group).retry_topic(after), after, timeout)

    def add_dead_letters(
        self, messages: Sequence[IncomingMessage], group: Group, /, *, timeout: float | None = None
    ) -> None:
        """
        Keep messages as dead letters; returns when the broker has confirmed all of them.

        Raises PublishFailed, whose messages name the dead letter topic.
        """
        self._keep(messages, GroupTopics(group).dead, None, timeout)

    def read_dead_letters(self, group: Group, /) -> Subscription:
        """
        Receive the group's dead letters, oldest first: `ack` removes one, an unsettled one stays.

        For one reader at a time. Dead letters are removed in their order: if a later one is settled first, the next
        reader receives both it and the earlier one.
        """
        topics = GroupTopics(group)
        until = self._until()
        self._declare_topics(topics, [topics.dead], until)
        return self._subscribe(topics.dead_letter_plan(), _left(until))

    def backlog(self, group: Group, /) -> GroupBacklog:
        """Count what waits for the group, without joining it."""
        topics = GroupTopics(group)
        with self._admin(_left(self._until())) as admin:
            existing = admin.partition_counts([*topics.topics, topics.dead])
            dead = {topics.dead: existing.pop(topics.dead)} if topics.dead in existing else {}
            dead_letters = admin.offsets(dead, topics.reader) if dead else {}
            offsets = admin.offsets(existing, group.name) if existing else {}
            return topics.backlog(offsets, list(dead_letters.values()))

    def inspect_topology(self, group: Group, /) -> Sequence[TopologyItem]:
        """Look at the topics that the group needs; changes nothing."""
        topics = GroupTopics(group)
        with self._admin(_left(self._until())) as admin:
            return self._items(admin, topics)

    def apply_topology(self, group: Group, /) -> Sequence[TopologyItem]:
        """
        Create the topics that are missing, those the group receives from as well, and return all as they are then.

        From then on the broker keeps the offsets of a new group.
        """
        topics = GroupTopics(group)
        until = self._until()
        with self._admin(_left(until)) as admin:
            missing = [item.name for item in self._items(admin, topics) if item.state == "missing"]
            counts = topics.partition_counts(self._partitions)
            self._create(admin, {topic: counts[topic] for topic in missing})
            applied = self._items(admin, topics)
        self._subscribe(topics.offsets_plan(), _left(until)).close()
        return applied

    def close(self, timeout: float = 5.0) -> None:
        """Close connections and threads within `timeout` seconds. A second call does nothing."""
        self._closed = True
        self._publisher.close(timeout)

    def close_at_exit(self) -> None:
        """Close within a second: every call of `publish` that matters has returned."""
        self.close(_AT_EXIT)

    def __repr__(self) -> str:
        servers = ",".join(self._settings.servers)
        return f"{type(self).__name__}({servers!r}, publish_timeout={self._publish_timeout})"

    @abstractmethod
    def _read_options(
        self, url: str | Sequence[str], publish_timeout: float, shared: Options, producer: Options, consumer: Options
    ) -> KafkaSettings:
        """Raise ConfigurationError, without any value in it, for options that the client does not accept."""

    @abstractmethod
    def _producers(self, options: Options) -> tuple[ProducerSupervisor, ProducerSupervisor]:
        """Supervise a producer of batches, and one that sends one record at a time."""

    @abstractmethod
    def _admin(self, timeout: float) -> AbstractContextManager[TopicAdmin]:
        """Connect, within `timeout` seconds, to look at topics."""

    @abstractmethod
    def _subscribe(self, plan: SubscriptionPlan, timeout: float) -> Subscription:
        """Open a subscription within `timeout` seconds."""

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"this {type(self).__name__} is closed")

    def _keep(
        self, messages: Sequence[IncomingMessage], topic: str, after: float | None, timeout: float | None
    ) -> None:
        copies = deferred_messages(messages, topic, after=after, limit=self._settings.largest_record)
        self.publish(copies, timeout=timeout)

    def _until(self) -> float:
        return earliest_deadline(max(self._publish_timeout, _LEAST))

    def _declare_topics(self, topics: GroupTopics, names: Sequence[str], until: float) -> None:
        if self._declare:
            with self._admin(_left(until)) as admin:
                self._create(admin, topics.missing(admin.partition_counts(names), self._partitions, names))

    def _create(self, admin: TopicAdmin, topics: Mapping[str, int]) -> None:
        if topics:
            admin.create_topics(topics, self._replication_factor)

    def _items(self, admin: TopicAdmin, topics: GroupTopics) -> list[TopologyItem]:
        return topics.items(admin.partition_counts(topics.partition_counts(self._partitions)), self._partitions)


def _left(until: float) -> float:
    return until - time.monotonic()
