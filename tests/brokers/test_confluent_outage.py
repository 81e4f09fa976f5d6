"""Kafka stops, freezes, forgets, or the path to it is cut, with librdkafka as the client: nothing confirmed is lost."""

from __future__ import annotations

import contextlib
import logging
import threading
import time

import pytest
from confluent_kafka import KafkaException, Producer

from cqrs_sync.errors import BrokerUnavailable
from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
from tests.brokers.kafka_contract import BACK_IN, LATE, KafkaOutages, publish, seconds_until_it_works
from tests.servers.kafka import bodies_in
from tests.waiting import eventually

pytestmark = pytest.mark.broker


@pytest.fixture
def broker(own_kafka):
    broker = ConfluentKafkaBroker(own_kafka.servers, publish_timeout=1.0)
    # librdkafka takes half a second to get its producer id, now and then one.
    eventually(lambda: publish(broker, b"first")[0] is None)
    yield broker
    broker.close()


def what_it_owes_is_settled(broker):
    """Whether librdkafka has given up the message that a call left behind, with nobody looking."""
    owed = broker._publisher.batching._unanswered
    return owed is None or owed[0].is_answered(owed[1])


def test_a_bare_producer_never_comes_back_from_a_broker_that_forgets(own_kafka):
    """
    What the doctor is for; where this fails, librdkafka has learnt to do without our care.
    """
    reports = []
    options = {"bootstrap.servers": own_kafka.servers, "message.timeout.ms": 1000, "enable.idempotence": True}
    producer = Producer(options, logger=logging.getLogger("bare"))

    def send():
        known = len(reports)
        # What is fatal is raised, by either, and reported besides where the record was taken.
        try:
            producer.produce("orders", b"x", on_delivery=lambda error, _: reports.append(error))
        except KafkaException as error:
            reports.append(error)
        eventually(lambda: heard() > known, timeout=10)

    def heard():
        with contextlib.suppress(KafkaException):
            producer.poll(0.1)
        return len(reports)

    send()
    own_kafka.stop()
    own_kafka.start()
    send()
    send()

    assert [True, False, False] == [error is None for error in reports]


def test_a_broker_that_was_away_while_nobody_published_costs_little(own_kafka, broker):
    """
    After an outage between two calls, the broker having forgotten everything, publishing works again in time.
    """
    own_kafka.stop()
    own_kafka.start()

    assert BACK_IN > seconds_until_it_works(broker)


def test_a_connection_that_the_other_side_closes_costs_little(kafka_behind_proxy):
    """
    Whoever has been idle too long is disconnected by his broker or a firewall: the next call connects at once.
    """
    server, proxy = kafka_behind_proxy
    broker = ConfluentKafkaBroker(server.servers)
    publish(broker)
    seconds = []
    for _ in range(5):
        assert 0 < proxy.drop()
        error, took = publish(broker)
        assert error is None
        seconds.append(took)
    broker.close()

    assert LATE > max(seconds)


def test_what_was_reported_as_failed_is_not_sent_later_than_the_publish_timeout(kafka_behind_proxy):
    """
    A message that could not leave is dropped: when the path is there again, it does not arrive any more.
    """
    server, proxy = kafka_behind_proxy
    broker = ConfluentKafkaBroker(server.servers, publish_timeout=1.0)
    seconds_until_it_works(broker)
    proxy.cut()
    error, _ = publish(broker, b"failed", timeout=0.3)
    eventually(lambda: what_it_owes_is_settled(broker))
    proxy.restore()
    seconds_until_it_works(broker)
    broker.close()

    assert isinstance(error, BrokerUnavailable)
    assert b"failed" not in bodies_in(server.servers, "orders")


def test_an_outage_is_a_few_lines_in_the_log(own_kafka, broker, caplog, capfd):
    """
    librdkafka tries to connect ten times a second; that is said once, to `logging`, and nothing to stderr.
    """
    caplog.set_level(logging.INFO)
    own_kafka.stop()
    for _ in range(6):
        publish(broker, timeout=0.5)

    lines = [record for record in caplog.records if record.name.endswith("confluent.librdkafka")]
    assert 0 < len(lines) <= 6
    assert "" == capfd.readouterr().err


def test_closing_waits_for_what_is_under_way(own_kafka):
    """
    A call that waits for its confirmation while another thread closes the broker still gets it.
    """
    broker = ConfluentKafkaBroker(own_kafka.servers)
    publish(broker)
    results: list[object] = []
    own_kafka.freeze()
    waiting = threading.Thread(target=lambda: results.append(publish(broker)[0]))
    waiting.start()
    eventually(lambda: len(broker._publisher.batching._producer._producer))
    thaw = threading.Timer(0.2, own_kafka.thaw)
    thaw.start()

    broker.close(timeout=3)
    waiting.join(10)
    thaw.join()

    assert [None] == results


def test_a_broker_can_be_closed_while_nobody_answers(own_kafka, broker):
    """
    Closing waits as long as it may, then fails what is under way and ends all threads.
    """
    before = threading.active_count()
    own_kafka.freeze()
    results: list[object] = []
    waiting = threading.Thread(target=lambda: results.append(publish(broker, timeout=20)[0]))
    waiting.start()
    producer = broker._publisher.batching._producer
    eventually(lambda: len(producer._producer))
    started = time.monotonic()

    broker.close(0.3)

    assert 0.3 + LATE > time.monotonic() - started
    waiting.join(20)
    assert [True] == [isinstance(error, BrokerUnavailable) for error in results]
    eventually(lambda: threading.active_count() < before, timeout=20)
    own_kafka.thaw()


def test_a_process_keeps_no_thread_of_the_producers_it_gave_up(own_kafka):
    """
    After several outages there is one producer, and nothing of those before it.
    """
    before = set(threading.enumerate())
    broker = ConfluentKafkaBroker(own_kafka.servers, publish_timeout=1.0)
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


class TestOutages(KafkaOutages):
    broker_class = ConfluentKafkaBroker
    many = 2500
    owes_nothing = staticmethod(what_it_owes_is_settled)
