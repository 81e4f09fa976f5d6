"""When a consumer fetches and commits, whichever its client."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Sequence

from cqrs_sync.broker import Delivery, Subscription
from cqrs_sync.kafka.client import ConsumerClient, Partition
from cqrs_sync.kafka.partitions import FetchBuffer
from cqrs_sync.kafka.topology import SubscriptionPlan

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
