"""Kafka stops, freezes, forgets, or the path is cut: nothing confirmed is lost, and every call returns in time."""

from __future__ import annotations

import threading
import time

import pytest

from cqrs_sync.errors import BrokerUnavailable
from tests.brokers.kafka_clients import (
    BACK_IN,
    LATE,
    Publishers,
    owes_nothing,
    producer_of,
    publish,
    seconds_until_it_works,
)
from tests.servers.kafka import bodies_in
from tests.waiting import eventually

pytestmark = pytest.mark.broker

#: What is done to a broker or to the path to it, and how that is mended.
HARMS = {
    "path-cut": (lambda server, proxy: proxy.cut(), lambda server, proxy: proxy.restore()),
    "path-frozen": (lambda server, proxy: proxy.freeze(), lambda server, proxy: proxy.restore()),
    "broker-frozen": (lambda server, proxy: server.freeze(), lambda server, proxy: server.thaw()),
}


@pytest.fixture
def broker(client, own_kafka):
    broker = client.broker(own_kafka.servers, **client.gives_up_soon)
    # librdkafka takes half a second to get its producer id, now and then one.
    eventually(lambda: publish(broker, b"first", timeout=10)[0] is None)
    yield broker
    broker.close()


@pytest.mark.parametrize("calls", [1, 4], ids=["one-call", "calls-all-the-time"])
def test_publishing_works_again_after_a_freeze_longer_than_any_patience(client, own_kafka, broker, calls):
    """The broker answers nothing until the client has given up; two seconds after its return it confirms."""
    own_kafka.freeze()
    failures = [publish(broker, timeout=1.2) for _ in range(calls)]
    eventually(lambda: owes_nothing(broker))
    own_kafka.thaw()

    assert BACK_IN > seconds_until_it_works(broker)
    assert all(isinstance(error, BrokerUnavailable) and took < 1.2 + LATE for error, took in failures)


def test_publishing_works_again_after_calls_that_had_little_time(client, own_kafka, broker):
    """Deadlines shorter than any timeout of the client leave nothing wedged behind."""
    own_kafka.freeze()
    failures = [publish(broker, timeout=0.1) for _ in range(5)]
    eventually(lambda: owes_nothing(broker))
    own_kafka.thaw()

    assert BACK_IN > seconds_until_it_works(broker)
    assert all(isinstance(error, BrokerUnavailable) and took < 0.1 + LATE for error, took in failures)


@pytest.mark.parametrize(("harm", "mend"), HARMS.values(), ids=HARMS)
def test_under_sixteen_threads_no_confirmed_message_is_missing(client, kafka_behind_proxy, harm, mend):
    """
    While the broker or the path to it comes and goes under thousands of messages: what was confirmed is there,
    everything else was reported as failed, and no call returns later than its deadline.
    """
    server, proxy = kafka_behind_proxy
    broker = client.broker(server.servers)
    publish(broker, timeout=10)

    with Publishers(broker, timeout=1.0) as told:
        for _ in range(3):
            confirmed = len(told.confirmed) + client.many
            eventually(lambda: len(told.confirmed) > confirmed, timeout=20)  # noqa: B023
            failed = len(told.failed)
            harm(server, proxy)
            eventually(lambda: len(told.failed) > failed, timeout=20)  # noqa: B023
            mend(server, proxy)
        eventually(lambda: len(told.confirmed) > 4 * client.many, timeout=20)
    broker.close()

    assert set() == set(told.confirmed) - set(bodies_in(server.servers, "orders"))
    assert set() == set(told.confirmed) & set(told.failed)
    assert LATE > told.latest


def test_a_moment_without_answers_costs_no_producer(client, own_kafka, broker):
    """A freeze shorter than the deadline delays a call, and the same producer confirms it."""
    producer = producer_of(broker)
    own_kafka.freeze()
    thaw = threading.Timer(0.15, own_kafka.thaw)
    thaw.start()

    assert (None, True) == (publish(broker)[0], producer_of(broker) is producer)
    thaw.join()


def test_publishing_works_again_after_the_broker_has_forgotten_everything(client, own_kafka, broker):
    """Killed and started empty, the broker knows no topic and no producer; two seconds later it confirms."""
    own_kafka.stop()
    error, took = publish(broker, timeout=1)
    own_kafka.start()

    assert BACK_IN > seconds_until_it_works(broker)
    assert isinstance(error, BrokerUnavailable)
    assert 1 + LATE > took


def test_the_way_back_is_found_however_long_the_outage(client, own_kafka, broker):
    """Attempts to connect do not become rare: a broker that was away for long is found as soon as it is back."""
    own_kafka.stop()
    until = time.monotonic() + 8
    while time.monotonic() < until:
        publish(broker, timeout=0.5)
    own_kafka.start()

    assert BACK_IN > seconds_until_it_works(broker)


def test_a_broker_that_was_away_while_no_call_published_costs_little(own_kafka, broker):
    """After an outage between two calls, the broker having forgotten everything, publishing works again in time."""
    own_kafka.stop()
    own_kafka.start()

    assert BACK_IN > seconds_until_it_works(broker)


def test_a_connection_that_the_other_side_closes_costs_little(client, kafka_behind_proxy):
    """Brokers and firewalls close idle connections: the next call connects at once."""
    server, proxy = kafka_behind_proxy
    broker = client.broker(server.servers)
    publish(broker)
    seconds = []
    for _ in range(5):
        assert 0 < proxy.drop()
        error, took = publish(broker)
        assert error is None
        seconds.append(took)
    broker.close()

    assert LATE > max(seconds)


def test_what_was_reported_as_failed_is_not_sent_later_than_the_publish_timeout(client, kafka_behind_proxy):
    """A message that could not leave is dropped: when the path is there again, it does not arrive any more."""
    server, proxy = kafka_behind_proxy
    broker = client.broker(server.servers, publish_timeout=1.0)
    seconds_until_it_works(broker)
    proxy.cut()
    error, _ = publish(broker, b"failed", timeout=0.3)
    eventually(lambda: owes_nothing(broker))
    proxy.restore()
    seconds_until_it_works(broker)
    broker.close()

    assert isinstance(error, BrokerUnavailable)
    assert b"failed" not in bodies_in(server.servers, "orders")


def test_closing_waits_for_what_is_in_flight(client, own_kafka):
    """A call that waits for its confirmation while another thread closes the broker still gets it."""
    broker = client.broker(own_kafka.servers)
    publish(broker)
    results: list[object] = []
    own_kafka.freeze()
    waiting = threading.Thread(target=lambda: results.append(publish(broker)[0]))
    waiting.start()
    eventually(lambda: client.in_flight(producer_of(broker)))
    thaw = threading.Timer(0.2, own_kafka.thaw)
    thaw.start()

    broker.close(timeout=3)
    waiting.join(10)
    thaw.join()

    assert [None] == results


def test_a_broker_can_be_closed_while_kafka_does_not_answer(client, own_kafka, broker):
    """Closing waits as long as it may, then fails what is in flight and ends all threads."""
    before = threading.active_count()
    own_kafka.freeze()
    results: list[object] = []
    waiting = threading.Thread(target=lambda: results.append(publish(broker, timeout=20)[0]))
    waiting.start()
    producer = producer_of(broker)
    eventually(lambda: client.in_flight(producer))
    started = time.monotonic()

    broker.close(0.3)

    assert 0.3 + LATE > time.monotonic() - started
    waiting.join(20)
    assert [True] == [isinstance(error, BrokerUnavailable) for error in results]
    eventually(lambda: threading.active_count() < before, timeout=20)
    own_kafka.thaw()


def test_a_process_keeps_no_thread_of_the_producers_it_gave_up(client, own_kafka):
    """After several outages there is one producer, and nothing of those before it."""
    before = set(threading.enumerate())
    broker = client.broker(own_kafka.servers, **client.gives_up_soon)
    seconds_until_it_works(broker)
    one = len(set(threading.enumerate()) - before)
    for _ in range(3):
        own_kafka.stop()
        publish(broker, timeout=1)
        own_kafka.start()
        seconds_until_it_works(broker)

    eventually(lambda: one >= len(set(threading.enumerate()) - before), timeout=10)
    broker.close()
    eventually(lambda: not set(threading.enumerate()) - before, timeout=10)
