"""Looking after topics with librdkafka."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec  # type: ignore[attr-defined]

from cqrs_sync.errors import BrokerUnavailable, ConfigurationError
from cqrs_sync.integrations.confluent.errors import configuration_error, connection_error
from cqrs_sync.integrations.confluent.settings import CONSUMER_ONLY, Settings
from cqrs_sync.kafka import PartitionOffsets

#: What a broker says about a topic that it will never make as it was asked to.
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
def administration(settings: Settings, until: float) -> Iterator[TopicAdmin]:
    """Make a client for a few questions; raises BrokerUnavailable where nobody answers until `until`."""
    servers = ",".join(settings.servers)
    heard: list[KafkaError] = []
    options: dict[str, Any] = {name: value for name, value in settings.consumer.items() if name not in _CONSUMER}
    options["error_cb"] = heard.append
    try:
        client = AdminClient(options)
    except (KafkaException, TypeError, ValueError) as error:
        raise configuration_error(error) from error
    try:
        yield TopicAdmin(client, until)
    except KafkaException as error:
        raise connection_error(error, servers, heard[0] if heard else None) from error


class TopicAdmin:
    """What is asked of a client, until a moment."""

    def __init__(self, client: Any, until: float) -> None:
        self._client = client
        self._until = until

    def partitions(self, topics: Iterable[str]) -> dict[str, int]:
        """Return how many partitions each of these has, of those that are there."""
        told = self._client.list_topics(timeout=self._left()).topics
        return {topic: len(told[topic].partitions) for topic in topics if topic in told and told[topic].partitions}

    def make(self, topics: Mapping[str, int], replicas: int) -> None:
        """Make topics; somebody else may be making them at the same time."""
        new = [NewTopic(topic, num_partitions=count, replication_factor=replicas) for topic, count in topics.items()]
        for topic, future in self._client.create_topics(new, request_timeout=self._left()).items():
            try:
                future.result()
            except KafkaException as error:
                code = error.args[0].code()
                if code in _REFUSALS:
                    raise ConfigurationError(f"the broker does not make the topic {topic!r}: {error}") from error
                if code != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
        while missing := set(topics) - set(self.partitions(topics)):
            if time.monotonic() >= self._until:
                raise BrokerUnavailable(f"the topics {', '.join(sorted(missing))} were made and are not there yet")

    def offsets(self, there: Mapping[str, int], group: str) -> dict[tuple[str, int], PartitionOffsets]:
        """Return how far partitions go and how far the group has come."""
        asked = [TopicPartition(topic, number) for topic, count in there.items() for number in range(count)]
        firsts = self._list(asked, OffsetSpec.earliest())  # type: ignore[no-untyped-call]
        ends = self._list(asked, OffsetSpec.latest())  # type: ignore[no-untyped-call]
        request = [ConsumerGroupTopicPartitions(group, asked)]
        told = self._client.list_consumer_group_offsets(request, request_timeout=self._left())[group].result()
        kept = {(one.topic, one.partition): one.offset for one in told.topic_partitions if one.offset >= 0}
        return {place: PartitionOffsets(firsts[place], ends[place], kept.get(place)) for place in firsts}

    def _list(self, asked: list[TopicPartition], which: OffsetSpec) -> dict[tuple[str, int], int]:
        told = self._client.list_offsets(dict.fromkeys(asked, which), request_timeout=self._left())
        return {(one.topic, one.partition): future.result().offset for one, future in told.items()}

    def _left(self) -> float:
        left = self._until - time.monotonic()
        if left <= 0:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "the broker did not answer in time"))  # noqa: SLF001
        return left
