"""Looking at topics and creating them with kafka-python."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
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
from cqrs_sync.integrations.kafka.client import KafkaConnections
from cqrs_sync.integrations.kafka.errors import connection_error
from cqrs_sync.kafka.client import Partition, PartitionOffsets, TopicAdmin
from cqrs_sync.kafka.settings import KafkaSettings, milliseconds

#: What a broker answers that will never create a topic as asked.
_REFUSALS = (
    InvalidPartitionsError,
    InvalidReplicationFactorError,
    InvalidTopicError,
    PolicyViolationError,
    TopicAuthorizationFailedError,
)


@contextlib.contextmanager
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
