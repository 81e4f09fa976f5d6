"""Kafka as a message broker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from kafka import KafkaProducer

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.errors import DeliveryError
from cqrs_sync.integrations.kafka.admin import administration
from cqrs_sync.integrations.kafka.doctor import ProducerSupervisor
from cqrs_sync.integrations.kafka.publishing import Publishing
from cqrs_sync.integrations.kafka.settings import Settings
from cqrs_sync.integrations.kafka.subscription import KafkaSubscription
from cqrs_sync.kafka import BaseKafkaBroker, SubscriptionPlan, TopicAdmin


class KafkaBroker(BaseKafkaBroker[ProducerSupervisor]):
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
        self._settings = Settings.of(
            servers_or_url,
            publish_timeout,
            shared=options,
            producer=producer_config or {},
            consumer=consumer_config or {},
        )
        together = self._doctor()
        # No sequence numbers that a refusal breaks, no batch that shares one, one request at a time for the order.
        alone = self._doctor(enable_idempotence=False, batch_size=0, max_in_flight_requests_per_connection=1)
        super().__init__(
            self._settings.servers,
            publish_timeout,
            (together, alone),
            partitions=partitions,
            replicas=replication_factor,
            declare=declare,
        )

    def _admin(self, until: float) -> AbstractContextManager[TopicAdmin]:
        self._check_open()
        return administration(self._settings, until)

    def _receiving(self, reading: SubscriptionPlan, until: float) -> KafkaSubscription:
        self._check_open()
        return KafkaSubscription(reading, self._settings, until)

    def _limit(self) -> int:
        limit: int = self._settings.producer.get("max_request_size", KafkaProducer.DEFAULT_CONFIG["max_request_size"])
        return limit

    def _failures(
        self, messages: Sequence[OutgoingMessage], until: float
    ) -> Sequence[tuple[OutgoingMessage, DeliveryError]]:
        return Publishing(messages, until).run(self._together, self._alone)

    def _doctor(self, **changes: Any) -> ProducerSupervisor:
        return ProducerSupervisor(
            {**self._settings.producer, **changes},
            ",".join(self._settings.servers),
            grace=self._settings.producer["delivery_timeout_ms"] / 1000,
        )
