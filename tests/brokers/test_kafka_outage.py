"""Kafka stops, freezes, forgets, or the path to it is cut: nothing confirmed is lost, nobody waits for ever."""

from __future__ import annotations

import threading
import time

import pytest
from kafka import KafkaProducer
from kafka.errors import KafkaTimeoutError

from cqrs_sync.integrations.kafka import KafkaBroker
from cqrs_sync.integrations.kafka.client import KafkaConnections
from cqrs_sync.integrations.kafka.producer import KafkaPythonProducer
from cqrs_sync.testing.contracts import message
from tests.brokers.kafka_contract import BACK_IN, LATE, KafkaOutages, publish, seconds_until_it_works
from tests.waiting import eventually

pytestmark = pytest.mark.broker

#: kafka-python's own order of things in small: it tries again several times before it gives up.
IMPATIENT = {"request_timeout_ms": 300, "delivery_timeout_ms": 1000}


@pytest.fixture
def broker(own_kafka):
    broker = KafkaBroker(own_kafka.servers, producer_config=IMPATIENT)
    broker.publish([message("orders", b"first")], timeout=10)
    yield broker
    broker.close()


def what_it_owes_is_settled(broker):
    """Whether kafka-python has given up the record that a call left behind, with nobody looking."""
    owed = broker._publisher.batching._unanswered
    return owed is None or owed[0].is_answered(owed[1])


def test_a_producer_of_kafka_python_never_comes_back_from_an_outage(own_kafka):
    """
    The bug this is all about; where this fails, kafka-python has learnt to do without our care.
    """
    producer = KafkaProducer(bootstrap_servers=own_kafka.servers, max_block_ms=1000, **IMPATIENT)
    producer.send("orders", b"first").get(10)
    own_kafka.freeze()
    late = producer.send("orders", b"late")
    eventually(lambda: late.is_done, timeout=10)
    own_kafka.thaw()

    with pytest.raises(KafkaTimeoutError):
        producer.send("orders", b"after").get(BACK_IN * 2)
    producer._sender.force_close()
    producer._unregister_cleanup()
    producer._closed = True
    producer._sender.join(10)


def test_a_broker_that_was_away_while_nobody_published_is_not_noticed(own_kafka, broker):
    """
    An outage between two calls fails neither of them.
    """
    own_kafka.stop()
    own_kafka.start()

    assert None is publish(broker, timeout=BACK_IN + LATE)[0]


def test_a_connection_that_the_other_side_closes_costs_nothing(kafka_behind_proxy):
    """
    Whoever has been idle too long is disconnected by his broker or a firewall: the next call connects again.
    """
    server, proxy = kafka_behind_proxy
    broker = KafkaBroker(server.servers)
    for _ in range(5):
        assert None is publish(broker)[0]
        assert 0 < proxy.drop()
    broker.close()


def test_closing_waits_for_what_is_under_way(own_kafka, broker):
    """
    A call that waits for its confirmation while another thread closes the broker still gets it.
    """
    results: list[object] = []
    own_kafka.freeze()
    waiting = threading.Thread(target=lambda: results.append(publish(broker)[0]))
    waiting.start()
    eventually(lambda: broker._publisher.batching._producer._sender._in_flight_batches)
    thaw = threading.Timer(0.2, own_kafka.thaw)
    thaw.start()

    broker.close(timeout=3)
    waiting.join(10)
    thaw.join()

    assert [None] == results


def test_a_producer_can_be_closed_while_nobody_answers(own_kafka):
    """
    Closing waits as long as it may, then fails what is under way; kafka-python's own `close` raises and goes on.
    """
    producer = KafkaPythonProducer(KafkaConnections({"bootstrap_servers": own_kafka.servers}), lambda *_: None)
    assert [("orders", None)] == list(producer.find_topics(["orders"], 10))
    own_kafka.freeze()
    stuck = producer.send("orders", b"1")
    started = time.monotonic()

    producer.close(0.3)

    assert 0.3 + LATE > time.monotonic() - started
    eventually(stuck.failed, timeout=20)
    eventually(lambda: not producer._sender.is_alive(), timeout=20)


def test_a_process_keeps_no_thread_of_the_producers_it_gave_up(own_kafka):
    """
    After several outages there is one producer, and nothing of those before it.
    """
    before = set(threading.enumerate())
    broker = KafkaBroker(own_kafka.servers, producer_config=IMPATIENT)
    publish(broker)
    one = len(set(threading.enumerate()) - before)
    for _ in range(3):
        own_kafka.stop()
        publish(broker, timeout=1)
        own_kafka.start()
        seconds_until_it_works(broker)

    eventually(lambda: one >= len(set(threading.enumerate()) - before), timeout=10)
    broker.close()
    eventually(lambda: not set(threading.enumerate()) - before, timeout=10)


class TestOutages(KafkaOutages):
    broker_class = KafkaBroker
    many = 200
    owes_nothing = staticmethod(what_it_owes_is_settled)
