"""Groups on Kafka with kafka-python."""

from __future__ import annotations

import pytest

from cqrs_sync.integrations.kafka import KafkaBroker
from tests.brokers.kafka_groups import KafkaGroups
from tests.servers.kafka import QUICK_GROUPS, SINGLY

pytestmark = pytest.mark.broker


class TestKafkaGroups(KafkaGroups):
    broker_class = KafkaBroker
    quick_groups = QUICK_GROUPS
    impatient = {"max_poll_interval_ms": 3000}  # noqa: RUF012 -- nobody changes it
    singly = SINGLY

    def no_topics_made(self):
        return {"allow_auto_create_topics": False}
