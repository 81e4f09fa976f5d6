"""The Kafka broker keeps the promises of its socket."""

from __future__ import annotations

import pytest

from cqrs_sync.integrations.kafka import KafkaBroker
from cqrs_sync.testing.contracts.broker import BrokerFeatures, ReceivingBrokerContract
from tests.servers.kafka import QUICK_GROUPS, SINGLY

pytestmark = pytest.mark.broker


class TestKafkaBroker(ReceivingBrokerContract):
    # Tansu makes any topic; tests/brokers/test_kafka_publishing.py asks a broker that does not.
    features = BrokerFeatures(refuses_unknown_topics=False)

    @pytest.fixture
    def broker(self, kafka_servers):
        broker = KafkaBroker(kafka_servers, consumer_config=QUICK_GROUPS, producer_config=SINGLY)
        yield broker
        broker.close()

    @pytest.fixture
    def topic(self, kafka_topic):
        return kafka_topic
