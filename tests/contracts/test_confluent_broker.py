"""The Kafka broker over librdkafka keeps the promises of its socket."""

from __future__ import annotations

import pytest

from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
from cqrs_sync.testing.contracts.broker import BrokerFeatures, ReceivingBrokerContract
from tests.servers.kafka import CONFLUENT_QUICK_GROUPS, CONFLUENT_SINGLY

pytestmark = pytest.mark.broker


class TestConfluentKafkaBroker(ReceivingBrokerContract):
    # Tansu makes any topic; tests/brokers/test_kafka_publishing.py asks a broker that does not.
    features = BrokerFeatures(refuses_unknown_topics=False)

    @pytest.fixture
    def broker(self, kafka_servers):
        broker = ConfluentKafkaBroker(
            kafka_servers, consumer_config=CONFLUENT_QUICK_GROUPS, producer_config=CONFLUENT_SINGLY
        )
        yield broker
        broker.close()

    @pytest.fixture
    def topic(self, kafka_topic):
        return kafka_topic
