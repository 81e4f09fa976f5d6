"""Groups on Kafka with librdkafka."""

from __future__ import annotations

import pytest

from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
from tests.brokers.kafka_groups import KafkaGroups
from tests.servers.kafka import CONFLUENT_QUICK_GROUPS, CONFLUENT_SINGLY

pytestmark = pytest.mark.broker


class TestConfluentGroups(KafkaGroups):
    broker_class = ConfluentKafkaBroker
    quick_groups = CONFLUENT_QUICK_GROUPS
    impatient = {"max.poll.interval.ms": 3000}  # noqa: RUF012 -- nobody changes it
    singly = CONFLUENT_SINGLY

    def no_topics_made(self):
        return {"config": {"allow.auto.create.topics": False}}
