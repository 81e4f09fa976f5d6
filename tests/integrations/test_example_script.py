"""The script of docs/examples, in this process and through a broker."""

from __future__ import annotations

import pytest

from tests.integrations.processes import EXAMPLES, environment, run
from tests.servers.rabbitmq import opened

EXCHANGE = "meetings-example"
SAID = [
    "1 in the meeting",
    "2 in the meeting",
    "the report says: {'weekly': 2}",
    "welcome, ada",
    "welcome, bob",
]


@pytest.fixture
def clean_rabbitmq_url(rabbitmq_url):
    """RabbitMQ without anything an earlier run has left."""
    _remove(rabbitmq_url)
    yield rabbitmq_url
    _remove(rabbitmq_url)


def _remove(url):
    with opened(url) as channel:
        channel.queue_delete(f"{EXCHANGE}.report")
        channel.exchange_delete(EXCHANGE)


def said(*arguments):
    script = EXAMPLES / "script" / "meetings.py"
    return sorted(run(["-W", "error", str(script), *arguments], script.parent, environment()).splitlines())


def test_the_script_needs_nothing_but_python():
    """Without arguments, everything happens in one process."""
    assert said() == SAID


@pytest.mark.broker
def test_the_script_goes_through_rabbitmq(clean_rabbitmq_url):
    """With the URL of a RabbitMQ, the report is made from the messages that came through it."""
    assert said(clean_rabbitmq_url) == SAID


@pytest.mark.broker
def test_the_script_goes_through_kafka(own_kafka):
    """With the URL of a Kafka, the report is made from the messages that came through it."""
    # Of the URL, only because Tansu lets a group wait for half a session at first.
    assert said(f"kafka://{own_kafka.servers}?session_timeout_ms=2000&heartbeat_interval_ms=500") == SAID
