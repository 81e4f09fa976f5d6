"""A relay tells what is wrong with a message from what is wrong with the way, on real brokers."""

from __future__ import annotations

import json

import pytest

import cqrs_sync as cqrs
from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
from cqrs_sync.integrations.kafka import KafkaBroker
from cqrs_sync.integrations.rabbitmq import RabbitMQBroker
from cqrs_sync.memory import MemoryOutbox
from cqrs_sync.outbox import DeadLetterSelection, OutboxEntry
from cqrs_sync.testing.contracts.broker import message
from tests.servers.kafka import bodies_in
from tests.servers.rabbitmq import bound_queue, drained
from tests.waiting import eventually

pytestmark = pytest.mark.broker

QUICK = cqrs.RetryPolicy(attempts=2, first=0.05, ceiling=0.1)


@pytest.fixture
def outbox():
    return MemoryOutbox(on_no_transaction=cqrs.OnNoTransaction.OPEN, max_bytes=8_000_000)


@pytest.fixture
def relaying(outbox):
    """Relay to a broker until the end of the test."""
    mediators = []

    def start(broker):
        mediator = cqrs.bootstrap(source="tests", broker=broker, outbox=outbox, retry=QUICK, fast_path=False)
        mediators.append(mediator)
        mediator.relay.start(poll=(0.02, 0.1))

    yield start
    for mediator in mediators:
        mediator.close(5)


def numbers_in(messages):
    return sorted(json.loads(body)["n"] for _, body in messages)


def test_a_topic_without_a_queue_is_dead_until_somebody_makes_one(outbox, relaying, rabbitmq_url, exchange):
    """
    Others go on; a replay delivers it then.
    """
    with bound_queue(rabbitmq_url, exchange, "here") as queue:
        relaying(RabbitMQBroker(rabbitmq_url, exchange=exchange))
        outbox.add(
            [
                OutboxEntry(message(topic, b'{"n": %d}' % n), publish=True)
                for n, topic in enumerate(["here", "lost"] * 5)
            ]
        )
        eventually(lambda: outbox.backlog().waiting == 0, timeout=30)
        dead = outbox.dead_letters(DeadLetterSelection())

        assert {("lost", 2)} == {(each.target, each.attempts) for each in dead}
        assert {"MessageRejected"} == {each.error.partition(":")[0] for each in dead}
        assert 1 == len(outbox.backlog().dead_by_reason)
        assert [0, 2, 4, 6, 8] == numbers_in(drained(rabbitmq_url, queue))
        with bound_queue(rabbitmq_url, exchange, "lost") as made:
            assert 5 == outbox.replay(DeadLetterSelection(target="lost"))
            eventually(lambda: outbox.backlog().waiting == 0, timeout=30)
            assert [1, 3, 5, 7, 9] == numbers_in(drained(rabbitmq_url, made))


@pytest.mark.parametrize("make", [KafkaBroker, ConfluentKafkaBroker])
def test_a_message_that_is_too_large_for_kafka_is_dead_and_its_neighbours_are_not(
    outbox, relaying, kafka_servers, kafka_topic, make
):
    """
    Whichever client publishes.
    """
    relaying(make(kafka_servers))
    large = b'{"n": 99, "x": "' + b"x" * 4_000_000 + b'"}'
    bodies = [b'{"n": 0}', large, b'{"n": 1}', b'{"n": 2}']
    outbox.add([OutboxEntry(message(kafka_topic, body), publish=True) for body in bodies])
    eventually(lambda: outbox.backlog().waiting == 0, timeout=60)

    (dead,) = outbox.dead_letters(DeadLetterSelection())
    assert large == dead.message.body
    assert [0, 1, 2] == sorted(json.loads(body)["n"] for body in bodies_in(kafka_servers, kafka_topic))


@pytest.mark.parametrize("make", [KafkaBroker, ConfluentKafkaBroker])
def test_keys_keep_their_order_on_kafka(outbox, relaying, kafka_servers, kafka_topic, make):
    """
    In their partitions.
    """
    entries = [OutboxEntry(message(kafka_topic, b'{"n": %d}' % n, key=f"k{n % 3}"), publish=True) for n in range(90)]
    outbox.add(entries)
    relaying(make(kafka_servers))
    eventually(lambda: outbox.backlog().waiting == 0, timeout=60)

    numbers = [json.loads(body)["n"] for body in bodies_in(kafka_servers, kafka_topic)]
    for key in range(3):
        assert list(range(key, 90, 3)) == [n for n in numbers if n % 3 == key]
