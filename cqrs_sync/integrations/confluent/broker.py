"""Kafka as a message broker, through librdkafka."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.errors import DeliveryError
from cqrs_sync.integrations.confluent.admin import administration
from cqrs_sync.integrations.confluent.doctor import ProducerSupervisor
from cqrs_sync.integrations.confluent.publishing import Publishing
from cqrs_sync.integrations.confluent.settings import Settings
from cqrs_sync.integrations.confluent.subscription import ConfluentSubscription
from cqrs_sync.kafka import BaseKafkaBroker, SubscriptionPlan, TopicAdmin

#: Beyond every limit of the user: no sequence numbers that a refusal breaks, no request
#: that two records share, one request at a time for the order.
_ALONE = {"enable.idempotence": False, "batch.num.messages": 1, "max.in.flight.requests.per.connection": 1}


class ConfluentKafkaBroker(BaseKafkaBroker[ProducerSupervisor]):
    """
    Publishes to Kafka topics, with the message's key as the record's key.

    `publish` returns when every in-sync replica has every message (`acks=all`, each
    report checked; idempotence on). One producer per process serves all threads; it is
    made with the first call and replaced whenever it is not well. Delivery is at least
    once, in order per key.

    - `servers_or_url`: `"host:port,host:port"`, a list of `"host:port"`, or
      `kafka://user:password@host:port?option=value`, `kafkas://` for TLS.
    - `publish_timeout`: seconds a call may take at most where nobody says otherwise,
      connecting included. A nearer deadline of the context counts. Nothing is tried for
      longer than that, not even where a call brings a longer timeout of its own.
    - `partitions`, `replication_factor`: of topics that are made for groups; -1 is what
      the broker is told. With `declare=False` none is made but by `build`.
    - `config`: options of librdkafka by their names with dots, for producers and
      consumers alike (`{"sasl.mechanism": "PLAIN"}`); `producer_config` and
      `consumer_config` for one of them.
    """

    def __init__(
        self,
        servers_or_url: str | Sequence[str],
        *,
        publish_timeout: float = 5.0,
        partitions: int = -1,
        replication_factor: int = -1,
        declare: bool = True,
        config: Mapping[str, Any] | None = None,
        producer_config: Mapping[str, Any] | None = None,
        consumer_config: Mapping[str, Any] | None = None,
    ) -> None:
        self._settings = Settings.of(
            servers_or_url,
            publish_timeout,
            shared=config or {},
            producer=producer_config or {},
            consumer=consumer_config or {},
        )
        grace = self._settings.delivery_timeout + 1.0
        together = ProducerSupervisor(self._settings.producer, grace=grace)
        alone = ProducerSupervisor({**self._settings.producer, **_ALONE}, grace=grace)
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

    def _receiving(self, reading: SubscriptionPlan, until: float) -> ConfluentSubscription:
        self._check_open()
        return ConfluentSubscription(reading, self._settings, until)

    def _limit(self) -> int:
        return int(self._settings.producer["message.max.bytes"])

    def _failures(
        self, messages: Sequence[OutgoingMessage], until: float
    ) -> Sequence[tuple[OutgoingMessage, DeliveryError]]:
        return Publishing(messages, until, self._servers).run(self._together, self._alone)
