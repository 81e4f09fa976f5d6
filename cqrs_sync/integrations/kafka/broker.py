"""Kafka as a message broker, through kafka-python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from cqrs_sync.integrations.kafka.admin import topic_admin
from cqrs_sync.integrations.kafka.producer import KafkaPythonConnector
from cqrs_sync.integrations.kafka.settings import kafka_python_settings
from cqrs_sync.integrations.kafka.subscription import KafkaSubscription
from cqrs_sync.kafka.broker import BaseKafkaBroker
from cqrs_sync.kafka.client import TopicAdmin
from cqrs_sync.kafka.publisher import KafkaPublisher
from cqrs_sync.kafka.supervisor import ProducerSupervisor
from cqrs_sync.kafka.topology import SubscriptionPlan

#: No sequence numbers that a refusal breaks, no batch of two records, one request at a time for the order.
_SINGLE = {"enable_idempotence": False, "batch_size": 0, "max_in_flight_requests_per_connection": 1}


class KafkaBroker(BaseKafkaBroker):
    """
    Publishes to Kafka topics, with the message's key as the record's key.

    `publish` returns when every in-sync replica has every message (`acks=all`, each future checked; idempotence
    on). One producer per process serves all threads; the first call makes it, and another one replaces it when it
    fails. Delivery is at least once, in order per key.

    - `url`: `"host:port,host:port"`, a list of `"host:port"`, or
      `kafka://user:password@host:port?option=value`, `kafkas://` for TLS.
    - `publish_timeout`: seconds that a call without a timeout may take, connecting included. A nearer deadline of
      the context counts. kafka-python sends nothing for longer than that, even if a call has a longer timeout.
    - `partitions`, `replication_factor`: of topics that are created for groups; -1 is the broker's default. With
      `declare=False` only `apply_topology` creates topics.
    - `client_config`: options of kafka-python for producers and consumers alike (`{"sasl_mechanism": "PLAIN"}`);
      `producer_config` and `consumer_config` for one of them.

    kafka-python itself logs much while no broker answers. The application can turn that down:
    `logging.getLogger("kafka").setLevel(logging.CRITICAL)`.
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
        settings = kafka_python_settings(
            url, publish_timeout, client_config or {}, producer_config or {}, consumer_config or {}
        )
        super().__init__(
            settings,
            publish_timeout,
            KafkaPublisher(_supervisor(settings.producer), _supervisor({**settings.producer, **_SINGLE})),
            partitions=partitions,
            replication_factor=replication_factor,
            declare=declare,
        )

    def _admin(self, timeout: float) -> AbstractContextManager[TopicAdmin]:
        self._check_open()
        return topic_admin(self._settings, timeout)

    def _subscribe(self, plan: SubscriptionPlan, timeout: float) -> KafkaSubscription:
        self._check_open()
        return KafkaSubscription(plan, self._settings, timeout)


def _supervisor(options: Mapping[str, Any]) -> ProducerSupervisor:
    return ProducerSupervisor(KafkaPythonConnector(options), grace=options["delivery_timeout_ms"] / 1000)
