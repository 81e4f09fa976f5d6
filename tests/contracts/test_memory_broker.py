"""MemoryBroker keeps the promises of its socket: it is the reference."""

import pytest

from cqrs_sync.memory import MemoryBroker
from cqrs_sync.testing.contracts.broker import BrokerFeatures, ReceivingBrokerContract


class TestMemoryBroker(ReceivingBrokerContract):
    features = BrokerFeatures(reaches_the_same_place_after_fork=False)

    @pytest.fixture
    def topic(self):
        return "meetings"

    @pytest.fixture
    def broker(self, topic):
        return MemoryBroker(topics=[topic])
