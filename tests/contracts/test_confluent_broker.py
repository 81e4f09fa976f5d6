"""The Kafka broker over librdkafka keeps the promises of its socket."""

from __future__ import annotations

import pytest

from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
from cqrs_sync.testing.contracts import BrokerFeatures
from cqrs_sync.testing.group_contract import GroupBrokerContract

pytestmark = pytest.mark.broker

#: As QUICK_GROUPS, in librdkafka's words.
QUICK_GROUPS = {"session.timeout.ms": 2000, "heartbeat.interval.ms": 500}

#: As SINGLY.
SINGLY = {"batch.num.messages": 1}


class TestConfluentKafkaBroker(GroupBrokerContract):
    # Tansu makes any topic; tests/brokers/test_confluent.py asks a broker that does not.
    features = BrokerFeatures(refuses_unknown_topics=False)

    @pytest.fixture
    def broker(self, kafka_servers):
        broker = ConfluentKafkaBroker(kafka_servers, consumer_config=QUICK_GROUPS, producer_config=SINGLY)
        yield broker
        broker.close()

    @pytest.fixture
    def topic(self, kafka_topic):
        return kafka_topic
