"""What tests of several clients share."""

from __future__ import annotations

import uuid

import pytest

from tests.brokers.kafka_clients import CONFLUENT, KAFKA_PYTHON, make_topic
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


@pytest.fixture
def topic(kafka_servers, kafka_topic):
    """A topic of Kafka with one partition, so that there is one order."""
    make_topic(kafka_servers, kafka_topic, partitions=1)
    return kafka_topic


@pytest.fixture
def group():
    """The name of a group of Kafka that no other test uses."""
    return f"group-{uuid.uuid4().hex}"
