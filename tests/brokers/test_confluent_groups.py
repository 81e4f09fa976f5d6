"""Groups on Kafka with librdkafka."""

from __future__ import annotations

import pytest

from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
from tests.brokers.kafka_groups import KafkaGroups

pytestmark = pytest.mark.broker


class TestConfluentGroups(KafkaGroups):
    broker_class = ConfluentKafkaBroker
    quick_groups = {"session.timeout.ms": 2000, "heartbeat.interval.ms": 500}  # noqa: RUF012 -- nobody changes it
    impatient = {"max.poll.interval.ms": 3000}  # noqa: RUF012
    singly = {"batch.num.messages": 1}  # noqa: RUF012

    def no_topics_made(self):
        return {"config": {"allow.auto.create.topics": False}}
