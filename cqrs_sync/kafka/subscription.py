"""Where a group begins to read, and when a consumer fetches and commits, whichever its client."""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence

from cqrs_sync.broker import Delivery, Subscription
from cqrs_sync.errors import ConfigurationError
from cqrs_sync.kafka.client import ConsumerClient, Partition
from cqrs_sync.kafka.partitions import FetchBuffer
from cqrs_sync.kafka.topology import SubscriptionPlan, check_topic

#: Seconds between two looks at whether the connection lives and finished messages are committed.
_LOOK = 0.5
#: Seconds for which the client may be left alone while there is enough to deliver, and between calls of `keep_alive`.
_ALONE, _KEEP_ALIVE = 1.0, 0.2


class BaseKafkaSubscription(Subscription, ConsumerClient):
    """
    A member of a consumer group, for one thread.

    It delivers what was fetched, fetches more if there is nothing, and lets the client work in between. Offsets are
    committed up to the first unfinished message. After a rebalance, unfinished messages go to the new owner of their
    partition; settling them here does nothing.

    A subclass opens the consumer, fetches and closes.
    """

    def __init__(self, plan: SubscriptionPlan, servers: Sequence[str]) -> None:
        self._plan = plan
        self._servers = ",".join(servers)
        self._buffer = FetchBuffer(self)
        self._tend_at = 0.0
        self._closed = False

    @property
    def has_joined(self) -> bool:
        """Whether the group has told it its partitions, even if there are none; a rebalance changes nothing."""
        return self._buffer.was_assigned

    def receive(self, timeout: float) -> Delivery | None:
        """Wait at most `timeout` seconds for the next message; None if there is none."""
        deliveries = self.receive_many(1, timeout)
        return deliveries[0] if deliveries else None

    def receive_many(self, most: int, timeout: float) -> Sequence[Delivery]:
        """Wait at most `timeout` seconds for the next message; return it with those that are there by then."""
        now = time.monotonic()
        if now >= self._tend_at:
            self._tend(now, _ALONE)
        until = now + timeout
        while not (deliveries := self._buffer.poll(most)):
            self._fetch(self._buffer.idle_timeout(max(0.0, min(until - now, _LOOK))))
            now = time.monotonic()
            self._tend_at = now + _ALONE
            self._buffer.commit_if_due(now)
            if deliveries := self._buffer.poll(most):
                break
            self._check_connection(now)
            if now >= until:
                break
        return deliveries

    def keep_alive(self) -> None:
        """Do what keeps the subscription alive, and receive nothing."""
        self._tend(time.monotonic(), _KEEP_ALIVE)

    @abstractmethod
    def close(self) -> None:
        """Commit what is finished, and leave the rest to the next member of the group."""

    @abstractmethod
    def _fetch(self, timeout: float, limit: int | None = None) -> None:
        """Let the client work until something comes, for `timeout` seconds at most; buffer `limit` records at most."""

    @abstractmethod
    def _check_connection(self, now: float) -> None:
        """Raise BrokerUnavailable if all connections are lost, and have been for a while."""

    def _assign(self, partitions: Iterable[Partition]) -> None:
        self._buffer.assign(self._plan.partition(topic, number) for topic, number in partitions)

    def _tend(self, now: float, interval: float) -> None:
        """Let the client work for a moment, unless it did so a moment ago; buffer what comes, up to a limit."""
        self._tend_at = min(self._tend_at, now + interval)
        if now >= self._tend_at:
            self._tend_at = now + interval
            self._fetch(0.0, 1)
            self._buffer.commit_if_due(now)
            self._check_connection(now)


logger: logging.Logger = logging.getLogger(__name__)

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
        self.partitions: list[Partition] = self._find(plan.topics, creates_topics=creates_topics)
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
