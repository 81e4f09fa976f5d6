"""Kafka as a message broker, through librdkafka."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec  # type: ignore[attr-defined]

from cqrs_sync.errors import BrokerUnavailable, ConfigurationError
from cqrs_sync.integrations.confluent.producer import ConfluentConnector
from cqrs_sync.integrations.confluent.settings import (
    CONSUMER_ONLY,
    connection_error,
    delivery_timeout_ms,
    librdkafka_settings,
    new_client,
    seconds_left,
)
from cqrs_sync.integrations.confluent.subscription import ConfluentSubscription
from cqrs_sync.kafka.broker import BaseKafkaBroker
from cqrs_sync.kafka.client import Partition, PartitionOffsets, TopicAdmin
from cqrs_sync.kafka.settings import KafkaSettings, Options
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

    _read_options = staticmethod(librdkafka_settings)

    def _producers(self, options: Options) -> tuple[ProducerSupervisor, ProducerSupervisor]:
        return _supervisor(options), _supervisor({**options, **_SINGLE})

    def _admin(self, timeout: float) -> AbstractContextManager[TopicAdmin]:
        self._check_open()
        return topic_admin(self._settings, timeout)

    def _subscribe(self, plan: SubscriptionPlan, timeout: float) -> ConfluentSubscription:
        self._check_open()
        return ConfluentSubscription(plan, self._settings, timeout)


def _supervisor(options: Options) -> ProducerSupervisor:
    return ProducerSupervisor(ConfluentConnector(options), grace=delivery_timeout_ms(options) / 1000 + 1.0)


#: What a broker answers that will never create a topic as asked.
_REFUSALS = {
    KafkaError.INVALID_PARTITIONS,
    KafkaError.INVALID_REPLICATION_FACTOR,
    KafkaError.POLICY_VIOLATION,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.TOPIC_EXCEPTION,
}

#: Options that an admin client would warn of.
_CONSUMER = {*CONSUMER_ONLY, "auto.offset.reset", "enable.auto.commit", "enable.auto.offset.store"}


@contextmanager
def topic_admin(settings: KafkaSettings, timeout: float) -> Iterator[TopicAdmin]:
    """Connect for a few questions; raises BrokerUnavailable if the broker does not answer within `timeout` seconds."""
    servers = ",".join(settings.servers)
    heard: list[KafkaError] = []
    options: dict[str, Any] = {name: value for name, value in settings.consumer.items() if name not in _CONSUMER}
    options["error_cb"] = heard.append
    client = new_client(AdminClient, options)
    try:
        yield _ConfluentAdmin(client, timeout)
    except KafkaException as error:
        # It calls `error_cb` now: the requests above serve no callbacks.
        client.poll(0)
        raise connection_error(error, servers, heard[0] if heard else None) from error


class _ConfluentAdmin(TopicAdmin):
    def __init__(self, client: Any, timeout: float) -> None:
        self._client = client
        self._until = time.monotonic() + timeout

    def partition_counts(self, topics: Iterable[str]) -> dict[str, int]:
        listed = self._client.list_topics(timeout=seconds_left(self._until)).topics
        return {
            topic: len(listed[topic].partitions) for topic in topics if topic in listed and listed[topic].partitions
        }

    def create_topics(self, topics: Mapping[str, int], replication_factor: int) -> None:
        new = [NewTopic(topic, count, replication_factor) for topic, count in topics.items()]
        for topic, future in self._client.create_topics(new, request_timeout=seconds_left(self._until)).items():
            try:
                future.result()
            except KafkaException as error:
                code = error.args[0].code()
                if code in _REFUSALS:
                    raise ConfigurationError(f"the broker does not create the topic {topic!r}: {error}") from error
                if code != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
        while missing := set(topics) - set(self.partition_counts(topics)):
            if time.monotonic() >= self._until:
                raise BrokerUnavailable(f"the topics {', '.join(sorted(missing))} were created and are not there yet")

    def offsets(self, topics: Mapping[str, int], group: str) -> dict[Partition, PartitionOffsets]:
        asked = [TopicPartition(topic, number) for topic, count in topics.items() for number in range(count)]
        firsts = self._list(asked, OffsetSpec.earliest())  # type: ignore[no-untyped-call]
        ends = self._list(asked, OffsetSpec.latest())  # type: ignore[no-untyped-call]
        request = [ConsumerGroupTopicPartitions(group, asked)]
        listed = self._client.list_consumer_group_offsets(request, request_timeout=seconds_left(self._until))[
            group
        ].result()
        committed = {(one.topic, one.partition): one.offset for one in listed.topic_partitions if one.offset >= 0}
        return {key: PartitionOffsets(first, ends[key], committed.get(key)) for key, first in firsts.items()}

    def _list(self, asked: list[TopicPartition], which: OffsetSpec) -> dict[Partition, int]:
        listed = self._client.list_offsets(dict.fromkeys(asked, which), request_timeout=seconds_left(self._until))
        return {(one.topic, one.partition): future.result().offset for one, future in listed.items()}
