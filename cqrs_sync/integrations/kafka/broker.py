"""Kafka as a message broker."""

from __future__ import annotations

import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Self

from kafka import KafkaProducer

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.context import within
from cqrs_sync.errors import Closed, ConfigurationError, PublishFailed
from cqrs_sync.integrations.kafka.admin import administration
from cqrs_sync.integrations.kafka.doctor import Doctor
from cqrs_sync.integrations.kafka.publishing import Publishing
from cqrs_sync.integrations.kafka.settings import Settings
from cqrs_sync.integrations.kafka.subscription import KafkaSubscription
from cqrs_sync.lifecycle import close_at_exit, reset_in_child
from cqrs_sync.records import Admin, Reading, RecordGroups

#: What a process that leaves without `close` waits for.
_AT_EXIT = 1.0


class KafkaBroker(RecordGroups):
    """
    Publishes to Kafka topics, with the message's key as the record's key.

    `publish` returns when every in-sync replica has every message (`acks=all`, each
    future checked; idempotence on). One producer per process serves all threads; it is
    made with the first call and replaced whenever it is not well. Delivery is at least
    once, in order per key.

    - `servers_or_url`: `"host:port,host:port"`, a list of `"host:port"`, or
      `kafka://user:password@host:port?option=value`, `kafkas://` for TLS.
    - `publish_timeout`: seconds a call may take at most where nobody says otherwise,
      connecting included. A nearer deadline of the context counts. Nothing is tried for
      longer than that, not even where a call brings a longer timeout of its own.
    - `partitions`, `replication_factor`: of topics that are made for groups; -1 is what
      the broker is told. With `declare=False` none is made but by `build`.
    - `options`: of kafka-python, for producers and consumers alike (`sasl_mechanism`,
      `ssl_cafile`, ...); `producer_config` and `consumer_config` for one of them.

    kafka-python itself logs much while no broker answers:
    `logging.getLogger("kafka").setLevel(logging.CRITICAL)` is up to the application.
    """

    def __init__(
        self,
        servers_or_url: str | Sequence[str],
        *,
        publish_timeout: float = 5.0,
        partitions: int = -1,
        replication_factor: int = -1,
        declare: bool = True,
        producer_config: Mapping[str, Any] | None = None,
        consumer_config: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(partitions=partitions, replicas=replication_factor, declare=declare)
        self._settings = Settings.of(
            servers_or_url,
            publish_timeout,
            shared=options,
            producer=producer_config or {},
            consumer=consumer_config or {},
        )
        self._publish_timeout = publish_timeout
        self._together = self._doctor()
        # No sequence numbers that a refusal breaks, no batch that shares one, one request at a time for the order.
        self._alone = self._doctor(enable_idempotence=False, batch_size=0, max_in_flight_requests_per_connection=1)
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
        until = within(self._publish_timeout if timeout is None else timeout)
        failures = Publishing(messages, until).run(self._together, self._alone)
        if failures:
            raise PublishFailed(failures)

    def subscribe(self, *topics: str, group: str) -> KafkaSubscription:
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
        return f"KafkaBroker({','.join(self._settings.servers)!r}, publish_timeout={self._publish_timeout})"

    def _admin(self, until: float) -> AbstractContextManager[Admin]:
        self._check_open()
        return administration(self._settings, until)

    def _receiving(self, reading: Reading, until: float) -> KafkaSubscription:
        self._check_open()
        return KafkaSubscription(reading, self._settings, until)

    def _limit(self) -> int:
        limit: int = self._settings.producer.get("max_request_size", KafkaProducer.DEFAULT_CONFIG["max_request_size"])
        return limit

    def _patience(self) -> float:
        return self._publish_timeout

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("this KafkaBroker is closed")

    def _doctor(self, **changes: Any) -> Doctor:
        return Doctor(
            {**self._settings.producer, **changes},
            ",".join(self._settings.servers),
            grace=self._settings.producer["delivery_timeout_ms"] / 1000,
        )


def _end(*doctors: Doctor) -> None:
    for doctor in doctors:
        doctor.close(0.0)
