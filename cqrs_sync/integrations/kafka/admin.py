"""Looking after topics with kafka-python."""

from __future__ import annotations

import contextlib
import time
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
from cqrs_sync.integrations.kafka.client import Network
from cqrs_sync.integrations.kafka.errors import connection_error
from cqrs_sync.integrations.kafka.settings import Settings
from cqrs_sync.kafka import PartitionOffsets

#: What a broker says about a topic that it will never make as it was asked to.
_REFUSALS = (
    InvalidPartitionsError,
    InvalidReplicationFactorError,
    InvalidTopicError,
    PolicyViolationError,
    TopicAuthorizationFailedError,
)


@contextlib.contextmanager
def administration(settings: Settings, until: float) -> Iterator[TopicAdmin]:
    """Connect for a few questions; raises BrokerUnavailable where nobody answers until `until`."""
    servers = ",".join(settings.servers)
    left = max(1, round((until - time.monotonic()) * 1000))
    network = Network(
        {
            **{name: value for name, value in settings.consumer.items() if name in KafkaAdminClient.DEFAULT_CONFIG},
            "bootstrap_timeout_ms": left,
            "request_timeout_ms": left,
        }
    )
    try:
        client = KafkaAdminClient(**network.options)
        network.completed()
    except BaseException as error:
        network.hang_up()
        if isinstance(error, (KafkaError, TypeError, ValueError)):
            raise connection_error(network.explain(error), servers) from error
        raise
    try:
        yield TopicAdmin(client)
    except KafkaError as error:
        raise connection_error(network.explain(error), servers) from error
    finally:
        client.close()


class TopicAdmin:
    """What is asked of a connection."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def partitions(self, topics: Iterable[str]) -> dict[str, int]:
        """Return how many partitions each of these has, of those that are there."""
        told = self._client.describe_topics(list(topics))
        return {one["name"]: len(one["partitions"]) for one in told if one["partitions"]}

    def make(self, topics: Mapping[str, int], replicas: int) -> None:
        """Make topics; somebody else may be making them at the same time."""
        for topic, partitions in topics.items():
            wanted = {topic: {"num_partitions": partitions, "replication_factor": replicas}}
            try:
                self._client.create_topics(wanted)
            except TopicAlreadyExistsError:
                continue
            except _REFUSALS as error:
                raise ConfigurationError(f"the broker does not make the topic {topic!r}: {error}") from error
        try:
            self._client.wait_for_topics(list(topics), timeout_ms=self._client.config["request_timeout_ms"])
        except KafkaError as error:
            raise BrokerUnavailable(f"the topics {', '.join(topics)} were made and have no leaders yet") from error

    def offsets(self, there: Mapping[str, int], group: str) -> dict[tuple[str, int], PartitionOffsets]:
        """Return how far partitions go and how far the group has come."""
        asked = [TopicPartition(topic, number) for topic, count in there.items() for number in range(count)]
        firsts = self._client.list_partition_offsets(dict.fromkeys(asked, OffsetSpec.EARLIEST))
        ends = self._client.list_partition_offsets(dict.fromkeys(asked, OffsetSpec.LATEST))
        kept = self._client.list_group_offsets({group: asked})[group]
        return {
            (one.topic, one.partition): PartitionOffsets(firsts[one].offset, ends[one].offset, _place(kept.get(one)))
            for one in asked
        }


def _place(kept: Any) -> int | None:
    return None if kept is None or kept.offset < 0 else int(kept.offset)
