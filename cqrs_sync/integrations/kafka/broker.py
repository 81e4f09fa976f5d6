"""Kafka as a message broker, through kafka-python."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import (
    InvalidPartitionsError,
    InvalidReplicationFactorError,
    InvalidTopicError,
    KafkaError,
    PolicyViolationError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
)

from cqrs_sync.errors import BrokerUnavailable, ConfigurationError
from cqrs_sync.integrations.kafka.client import KafkaConnections, connection_error
from cqrs_sync.integrations.kafka.producer import KafkaPythonConnector
from cqrs_sync.integrations.kafka.settings import kafka_python_settings
from cqrs_sync.integrations.kafka.subscription import KafkaSubscription
from cqrs_sync.kafka.broker import BaseKafkaBroker
from cqrs_sync.kafka.client import Partition, PartitionOffsets, TopicAdmin
from cqrs_sync.kafka.settings import KafkaSettings, Options, milliseconds
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

    _read_options = staticmethod(kafka_python_settings)

    def _producers(self, options: Options) -> tuple[ProducerSupervisor, ProducerSupervisor]:
        return _supervisor(options), _supervisor({**options, **_SINGLE})

    def _admin(self, timeout: float) -> AbstractContextManager[TopicAdmin]:
        self._check_open()
        return topic_admin(self._settings, timeout)

    def _subscribe(self, plan: SubscriptionPlan, timeout: float) -> KafkaSubscription:
        self._check_open()
        return KafkaSubscription(plan, self._settings, timeout)


def _supervisor(options: Options) -> ProducerSupervisor:
    return ProducerSupervisor(KafkaPythonConnector(options), grace=options["delivery_timeout_ms"] / 1000)


#: What a broker answers that will never create a topic as asked.
_REFUSALS = (
    InvalidPartitionsError,
    InvalidReplicationFactorError,
    InvalidTopicError,
    PolicyViolationError,
    TopicAuthorizationFailedError,
)


@contextmanager
def topic_admin(settings: KafkaSettings, timeout: float) -> Iterator[TopicAdmin]:
    """Connect for a few questions; raises BrokerUnavailable if the broker does not answer within `timeout` seconds."""
    servers = ",".join(settings.servers)
    left = max(1, milliseconds(timeout))
    connections = KafkaConnections(
        {
            **{name: value for name, value in settings.consumer.items() if name in KafkaAdminClient.DEFAULT_CONFIG},
            "bootstrap_timeout_ms": left,
            "request_timeout_ms": left,
        }
    )
    with connections.connecting(servers):
        client = KafkaAdminClient(**connections.options)
        connections.complete()
    try:
        yield _KafkaPythonAdmin(client)
    except KafkaError as error:
        raise connection_error(connections.explain(error), servers) from error
    finally:
        client.close()


class _KafkaPythonAdmin(TopicAdmin):
    def __init__(self, client: Any) -> None:
        self._client = client

    def partition_counts(self, topics: Iterable[str]) -> dict[str, int]:
        described = self._client.describe_topics(list(topics))
        return {one["name"]: len(one["partitions"]) for one in described if one["partitions"]}

    def create_topics(self, topics: Mapping[str, int], replication_factor: int) -> None:
        for topic, partitions in topics.items():
            wanted = {topic: {"num_partitions": partitions, "replication_factor": replication_factor}}
            try:
                self._client.create_topics(wanted)
            except TopicAlreadyExistsError:
                continue
            except _REFUSALS as error:
                raise ConfigurationError(f"the broker does not create the topic {topic!r}: {error}") from error
        try:
            self._client.wait_for_topics(list(topics), timeout_ms=self._client.config["request_timeout_ms"])
        except KafkaError as error:
            raise BrokerUnavailable(f"the topics {', '.join(topics)} were created and have no leaders yet") from error

    def offsets(self, topics: Mapping[str, int], group: str) -> dict[Partition, PartitionOffsets]:
        asked = [TopicPartition(topic, number) for topic, count in topics.items() for number in range(count)]
        firsts = self._client.list_partition_offsets(dict.fromkeys(asked, OffsetSpec.EARLIEST))
        ends = self._client.list_partition_offsets(dict.fromkeys(asked, OffsetSpec.LATEST))
        listed = self._client.list_group_offsets({group: asked})[group]
        committed = {one: kept.offset for one, kept in listed.items() if kept is not None and kept.offset >= 0}
        return {
            (one.topic, one.partition): PartitionOffsets(firsts[one].offset, ends[one].offset, committed.get(one))
            for one in asked
        }
