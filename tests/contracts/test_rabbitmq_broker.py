"""RabbitMQBroker keeps the promises of its socket on a real server."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest

from cqrs_sync.broker import Group
from cqrs_sync.integrations.rabbitmq import RabbitMQBroker
from cqrs_sync.testing.contracts.broker import BrokerFeatures, ReceivingBrokerContract
from tests.servers.rabbitmq import bound_queue, forget

pytestmark = pytest.mark.broker


class TestRabbitMQBroker(ReceivingBrokerContract):
    features = BrokerFeatures(max_bytes=1_048_576)

    @pytest.fixture
    def topic(self, rabbitmq_url: str, exchange: str) -> Iterator[str]:
        with bound_queue(rabbitmq_url, exchange, "meetings"):
            yield "meetings"

    @pytest.fixture
    def group(self, topic: str, rabbitmq_url: str, exchange: str) -> Iterator[Group]:
        group = self.new_group(topic)
        yield group
        forget(rabbitmq_url, exchange, group, attrs.evolve(group, name=f"{group.name}-other"))

    @pytest.fixture
    def broker(self, rabbitmq_url: str, exchange: str) -> Iterator[RabbitMQBroker]:
        assert self.features.max_bytes is not None
        broker = RabbitMQBroker(rabbitmq_url, exchange=exchange, max_bytes=self.features.max_bytes)
        yield broker
        broker.close()
