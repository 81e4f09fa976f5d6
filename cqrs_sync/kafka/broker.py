"""What a broker for Kafka is, whichever client it has: its producers, and their life."""

from __future__ import annotations

import time
import weakref
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, Protocol, Self, TypeVar

from cqrs_sync.broker import OutgoingMessage, Subscription
from cqrs_sync.context import within
from cqrs_sync.errors import Closed, ConfigurationError, DeliveryError, PublishFailed
from cqrs_sync.kafka.groups import RecordGroups
from cqrs_sync.kafka.places import Reading
from cqrs_sync.lifecycle import close_at_exit, reset_in_child

#: What a process that leaves without `close` waits for.
_AT_EXIT = 1.0


class Doctor(Protocol):
    """Looks after the one producer of a process."""

    def close(self, timeout: float, /) -> None:
        """Let go of connections and threads within `timeout` seconds."""

    def reset_in_child(self) -> None:
        """Leave the parent's producer alone; the next call makes a new one."""


AnyDoctor = TypeVar("AnyDoctor", bound=Doctor)


class RecordBroker(RecordGroups, Generic[AnyDoctor]):
    """
    Publishes through two producers: for batches, and for messages that have to be alone.

    A class that inherits from it takes a URL first, and says how to publish and receive, and who looks after topics.
    """

    def __init__(
        self,
        servers: Sequence[str],
        publish_timeout: float,
        doctors: tuple[AnyDoctor, AnyDoctor],
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
        return self._receiving(Reading.of(topics, group), self._until())

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


def _end(*doctors: Doctor) -> None:
    for doctor in doctors:
        doctor.close(0.0)
