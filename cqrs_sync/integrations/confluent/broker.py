"""Kafka as a message broker, through librdkafka."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from cqrs_sync.integrations.confluent.admin import topic_admin
from cqrs_sync.integrations.confluent.producer import ConfluentConnector
from cqrs_sync.integrations.confluent.settings import delivery_timeout_ms, librdkafka_settings
from cqrs_sync.integrations.confluent.subscription import ConfluentSubscription
from cqrs_sync.kafka.broker import BaseKafkaBroker
from cqrs_sync.kafka.client import TopicAdmin
from cqrs_sync.kafka.publisher import KafkaPublisher
from cqrs_sync.kafka.supervisor import ProducerSupervisor
from cqrs_sync.kafka.topology import SubscriptionPlan

#: No sequence numbers that a refusal breaks, no request of two records, one request at a time for the order: whatever
#: the user has configured.
_SINGLE = {"enable.idempotence": False, "batch.num.messages": 1, "max.in.flight.requests.per.connection": 1}


class ConfluentKafkaBroker(BaseKafkaBroker):
    """
    Publishes to Kafka topics, with the message's key as the record's key.

    `publish` returns when every in-sync replica has every message (`acks=all`, each report checked; idempotence
    on). One producer per process serves all threads; the first call makes it, and another one replaces it when it
    fails. Delivery is at least once, in order per key.

    - `url`: `"host:port,host:port"`, a list of `"host:port"`, or
      `kafka://user:password@host:port?option=value`, `kafkas://` for TLS.
    - `publish_timeout`: seconds that a call without a timeout may take, connecting included. A nearer deadline of
      the context counts. librdkafka sends nothing for longer than that, even if a call has a longer timeout.
    - `partitions`, `replication_factor`: of topics that are created for groups; -1 is the broker's default. With
      `declare=False` only `apply_topology` creates topics.
    - `client_config`: options of librdkafka by their names with dots, for producers and consumers alike
      (`{"sasl.mechanism": "PLAIN"}`); `producer_config` and `consumer_config` for one of them.
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
        settings = librdkafka_settings(
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

    def _subscribe(self, plan: SubscriptionPlan, timeout: float) -> ConfluentSubscription:
        self._check_open()
        return ConfluentSubscription(plan, self._settings, timeout)


def _supervisor(options: Mapping[str, Any]) -> ProducerSupervisor:
    return ProducerSupervisor(ConfluentConnector(options), grace=delivery_timeout_ms(options) / 1000 + 1.0)
