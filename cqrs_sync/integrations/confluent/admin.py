"""Looking at topics and creating them with librdkafka."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec  # type: ignore[attr-defined]

from cqrs_sync.errors import BrokerUnavailable, ConfigurationError
from cqrs_sync.integrations.confluent.errors import connection_error, seconds_left
from cqrs_sync.integrations.confluent.settings import CONSUMER_ONLY, new_client
from cqrs_sync.kafka.client import Partition, PartitionOffsets, TopicAdmin
from cqrs_sync.kafka.settings import KafkaSettings

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


@contextlib.contextmanager
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
