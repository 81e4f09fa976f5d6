"""What tests of several clients share."""

from __future__ import annotations

import pytest

from tests.brokers.kafka_clients import CONFLUENT, KAFKA_PYTHON
from tests.brokers.scripted_kafka import ScriptedKafka


@pytest.fixture(params=[KAFKA_PYTHON, CONFLUENT], ids=str)
def client(request):
    """Each of the two clients for Kafka in turn."""
    return request.param


@pytest.fixture
def scripted():
    """A broker that knows one topic, and does what it is told."""
    scripted = ScriptedKafka("known")
    yield scripted
    scripted.close()
