"""Kafka stops, freezes, forgets, or the path to it is cut, with librdkafka as the client: nothing confirmed is lost."""

from __future__ import annotations

import itertools
import logging
import threading
import time

import pytest
from confluent_kafka import Producer

from cqrs_sync.errors import BrokerUnavailable, PublishFailed
from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
from cqrs_sync.testing.contracts import message
from tests.servers.kafka import bodies_in
from tests.waiting import eventually

pytestmark = pytest.mark.broker

#: How much later than its deadline a call may return on a busy machine.
LATE = 1.0
#: Seconds after the broker's return in which publishing has to work again.
BACK_IN = 2.0


@pytest.fixture
def broker(own_kafka):
    broker = ConfluentKafkaBroker(own_kafka.servers, publish_timeout=1.0)
    # librdkafka takes half a second to get its producer id, now and then one.
    eventually(lambda: publish(broker, b"first")[0] is None)
    yield broker
    broker.close()


def publish(broker, body=b"x", *, timeout=5.0, topic="orders"):
    """Publish one message; return why it failed, None where it did not, and the seconds it took."""
    started = time.monotonic()
    try:
        broker.publish([message(topic, body, key="k")], timeout=timeout)
    except PublishFailed as failed:
        return failed.failures[0][1], time.monotonic() - started
    return None, time.monotonic() - started


def what_it_owes_is_settled(broker):
    """Whether librdkafka has given up the message that a call left behind, with nobody looking."""
    owed = broker._together._owed
    return owed is None or owed[1] in owed[0].known


def seconds_until_it_works(broker):
    started = time.monotonic()
    eventually(lambda: publish(broker)[0] is None, timeout=30)
    return time.monotonic() - started


def test_a_bare_producer_never_comes_back_from_a_broker_that_forgets(own_kafka):
    """
    What the doctor is for; where this fails, librdkafka has learnt to do without our care.
    """
    reports = []
    options = {"bootstrap.servers": own_kafka.servers, "message.timeout.ms": 1000, "enable.idempotence": True}
    producer = Producer(options, logger=logging.getLogger("bare"))

    def send():
        producer.produce("orders", b"x", on_delivery=lambda error, _: reports.append(error))
        eventually(lambda: producer.poll(0.1) or not len(producer), timeout=10)

    send()
    own_kafka.stop()
    own_kafka.start()
    send()
    send()

    assert [True, False, False] == [error is None for error in reports]


@pytest.mark.parametrize("calls", [1, 4], ids=["one-call", "calls-all-the-time"])
def test_publishing_works_again_after_a_freeze_longer_than_any_patience(own_kafka, broker, calls):
    """
    The broker answers nothing until librdkafka has given up; two seconds after its return it confirms.
    """
    own_kafka.freeze()
    failures = [publish(broker, timeout=1.2) for _ in range(calls)]
    eventually(lambda: what_it_owes_is_settled(broker))
    own_kafka.thaw()

    assert BACK_IN > seconds_until_it_works(broker)
    assert all(isinstance(error, BrokerUnavailable) and took < 1.2 + LATE for error, took in failures)


def test_publishing_works_again_after_calls_that_had_little_time(own_kafka, broker):
    """
    Deadlines shorter than any timeout of librdkafka leave nothing wedged behind.
    """
    own_kafka.freeze()
    failures = [publish(broker, timeout=0.1) for _ in range(5)]
    eventually(lambda: what_it_owes_is_settled(broker))
    own_kafka.thaw()

    assert BACK_IN > seconds_until_it_works(broker)
    assert all(isinstance(error, BrokerUnavailable) and took < 0.1 + LATE for error, took in failures)


def test_a_moment_without_answers_costs_no_producer(own_kafka, broker):
    """
    A freeze shorter than the deadline delays a call, and the same producer confirms it.
    """
    producer = broker._together._producer
    own_kafka.freeze()
    thaw = threading.Timer(0.15, own_kafka.thaw)
    thaw.start()

    assert (None, True) == (publish(broker)[0], broker._together._producer is producer)
    thaw.join()


def test_publishing_works_again_after_the_broker_has_forgotten_everything(own_kafka, broker):
    """
    Killed and started empty, the broker knows no topic and no producer; two seconds later it confirms.
    """
    own_kafka.stop()
    error, took = publish(broker, timeout=1)
    own_kafka.start()

    assert BACK_IN > seconds_until_it_works(broker)
    assert isinstance(error, BrokerUnavailable)
    assert 1 + LATE > took


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


def test_the_way_back_is_found_however_long_the_outage(own_kafka, broker):
    """
    Attempts to connect do not become rare: a broker that was away for long is found as soon as it is back.
    """
    own_kafka.stop()
    until = time.monotonic() + 8
    while time.monotonic() < until:
        publish(broker, timeout=0.5)
    own_kafka.start()

    assert BACK_IN > seconds_until_it_works(broker)


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


class Ledger:
    """What sixteen threads were told about the messages they published."""

    def __init__(self, broker: ConfluentKafkaBroker, timeout: float) -> None:
        self.confirmed: list[bytes] = []
        self.failed: list[bytes] = []
        self.latest = 0.0
        self._broker = broker
        self._timeout = timeout
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._publish_on, args=(name,)) for name in range(16)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._enough.set()
        for thread in self._threads:
            thread.join(20)

    def _publish_on(self, name: int) -> None:
        numbers = itertools.count()
        while not self._enough.is_set():
            batch = [message("orders", b"%d-%d" % (name, next(numbers)), key=str(name)) for _ in range(5)]
            started = time.monotonic()
            failed = self._publish(batch)
            self.latest = max(self.latest, time.monotonic() - started - self._timeout)
            self.failed += failed
            self.confirmed += [sent.body for sent in batch if sent.body not in failed]

    def _publish(self, batch):
        try:
            self._broker.publish(batch, timeout=self._timeout)
        except PublishFailed as error:
            return [sent.body for sent, _ in error.failures]
        return []


HARMS = {
    "path-cut": (lambda server, proxy: proxy.cut(), lambda server, proxy: proxy.restore()),
    "path-frozen": (lambda server, proxy: proxy.freeze(), lambda server, proxy: proxy.restore()),
    "broker-frozen": (lambda server, proxy: server.freeze(), lambda server, proxy: server.thaw()),
}


@pytest.mark.parametrize(("harm", "mend"), HARMS.values(), ids=HARMS)
def test_under_sixteen_threads_no_confirmed_message_is_missing(kafka_behind_proxy, harm, mend):
    """
    While the broker or the path to it comes and goes under 10,000 messages: what was confirmed is there,
    everything else was reported as failed, and no call returns later than its deadline.
    """
    server, proxy = kafka_behind_proxy
    broker = ConfluentKafkaBroker(server.servers)
    publish(broker, timeout=10)

    with Ledger(broker, timeout=1.0) as ledger:
        for _ in range(3):
            confirmed = len(ledger.confirmed) + 2500
            eventually(lambda: len(ledger.confirmed) > confirmed, timeout=20)  # noqa: B023
            failed = len(ledger.failed)
            harm(server, proxy)
            eventually(lambda: len(ledger.failed) > failed, timeout=20)  # noqa: B023
            mend(server, proxy)
        eventually(lambda: len(ledger.confirmed) > 10_000, timeout=20)
    broker.close()

    assert set() == set(ledger.confirmed) - set(bodies_in(server.servers, "orders"))
    assert set() == set(ledger.confirmed) & set(ledger.failed)
    assert LATE > ledger.latest


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
    eventually(lambda: len(broker._together._producer._producer))
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
    producer = broker._together._producer
    eventually(lambda: len(producer._producer))
    started = time.monotonic()

    broker.close(0.3)

    assert 0.3 + LATE > time.monotonic() - started
    waiting.join(5)
    assert [True] == [isinstance(error, BrokerUnavailable) for error in results]
    eventually(lambda: threading.active_count() < before, timeout=5)
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
