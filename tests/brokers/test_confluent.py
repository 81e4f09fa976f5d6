"""What is librdkafka's own: lost producers, full queues, its log, its threads in children, and its offsets."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

from cqrs_sync.broker import Group
from cqrs_sync.errors import BrokerUnavailable, ConfigurationError, MessageRejected
from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
from cqrs_sync.integrations.confluent.settings import (
    CONSUMER_ONLY,
    PRODUCER_ONLY,
    SHARED,
    LibrdkafkaLog,
    _has,
)
from cqrs_sync.testing.contracts.broker import message, receive
from cqrs_sync.testing.waiting import in_forked_child
from tests.brokers.kafka_clients import (
    BACK_IN,
    CONFLUENT,
    LATE,
    bodies,
    failures_of,
    has_partitions,
    initial_offsets_of,
    is_unreachable,
    make_topic,
    producer_of,
    publish,
    publish_texts,
    run,
)
from tests.brokers.scripted_kafka import NO_ERROR
from tests.servers import free_port
from tests.servers.kafka import CONFLUENT_QUICK_GROUPS
from tests.waiting import eventually

pytestmark = pytest.mark.broker

OUT_OF_ORDER = 45
PRODUCER_FENCED = 90
SECRET = "p@ss:w/rd"  # noqa: S105 -- not a real one


@pytest.fixture
def broker(own_kafka):
    broker = ConfluentKafkaBroker(own_kafka.servers, **CONFLUENT.gives_up_soon)
    eventually(lambda: publish(broker, b"first")[0] is None)
    yield broker
    broker.close()


@pytest.fixture
def scripted_broker(scripted):
    broker = CONFLUENT.broker(scripted.servers, creates_topics=False)
    yield broker
    broker.close()


def test_an_illegal_topic_is_refused_without_asking_a_broker():
    """It is the message's fault whether or not a broker is there to say so; librdkafka would ask about any name."""
    broker = ConfluentKafkaBroker(f"127.0.0.1:{free_port()}")
    started = time.monotonic()

    failures = failures_of(broker, [message("no spaces, please")])
    took = time.monotonic() - started
    broker.close(0.1)

    assert isinstance(failures[0][1], MessageRejected)
    assert LATE > took


@pytest.mark.parametrize("code", [OUT_OF_ORDER, PRODUCER_FENCED], ids=["fatal", "fenced"])
def test_a_producer_that_has_lost_its_place_is_replaced_within_the_call(scripted, scripted_broker, code):
    """
    A gap in the sequence, fatal for librdkafka, or a broker that fences the producer, costs no message and no order.
    """
    scripted_broker.publish([message("known", b"0", key="k")])
    lost = producer_of(scripted_broker)
    # As a broker does it: from now on it takes nothing more from this producer.
    scripted.judge = lambda bodies: code if scripted._producer_ids == 1 else NO_ERROR

    scripted_broker.publish([message("known", b"%d" % n, key="k") for n in (1, 2, 3)], timeout=5)

    assert [b"0", b"1", b"2", b"3"] == scripted.written
    assert producer_of(scripted_broker) is not lost
    eventually(lambda: not lost._thread.is_alive())


def test_a_producer_that_is_lost_all_the_time_is_an_error_in_time(scripted, scripted_broker):
    """It is replaced until the deadline, and not beyond."""
    scripted.judge = lambda bodies: PRODUCER_FENCED
    started = time.monotonic()

    failures = failures_of(scripted_broker, [message("known")], timeout=1.5)

    assert isinstance(failures[0][1], BrokerUnavailable)
    assert 1.5 + LATE > time.monotonic() - started


def test_a_full_queue_slows_the_caller_down(scripted):
    """More messages than librdkafka holds are sent all the same, in order, and the queue never holds more."""
    broker = ConfluentKafkaBroker(scripted.servers, producer_config={"queue.buffering.max.messages": 10})
    batch = [message("known", b"%d" % n, key="k") for n in range(300)]

    broker.publish(batch, timeout=20)
    broker.close()

    assert [one.body for one in batch] == scripted.written


def test_a_queue_that_stays_full_fails_in_time(scripted):
    """Where nothing leaves the queue, what finds no room is reported at the deadline."""
    broker = ConfluentKafkaBroker(scripted.servers, producer_config={"queue.buffering.max.messages": 10})
    broker.publish([message("known")])
    scripted.mute()
    started = time.monotonic()

    failures = failures_of(broker, [message("known", b"%d" % n) for n in range(50)], timeout=0.7)
    took = time.monotonic() - started
    broker.close(0.1)

    assert {BrokerUnavailable} == {type(error) for _, error in failures}
    assert any("queue was full" in str(error) for _, error in failures)
    assert 0.7 + LATE > took


def test_options_that_contradict_each_other_are_an_error_with_the_first_call(kafka_servers, kafka_topic):
    """librdkafka compares its options when a producer is made: what it says is a wrong configuration."""
    broker = ConfluentKafkaBroker(kafka_servers, producer_config={"acks": 1})

    with pytest.raises(ConfigurationError, match=r"acks.*all"):
        broker.publish([message(kafka_topic)])
    broker.close()


def test_a_bare_producer_never_comes_back_from_a_broker_that_forgets(own_kafka):
    """What the supervisor is for; where this fails, librdkafka has learnt to do without it."""
    options = {"bootstrap.servers": own_kafka.servers, "message.timeout.ms": 1000, "enable.idempotence": True}
    producer = Producer(options, logger=logging.getLogger("bare"))

    def is_confirmed():
        reports = []
        # A fatal error is raised, by either.
        with contextlib.suppress(KafkaException):
            producer.produce("orders", b"x", on_delivery=lambda error, _: reports.append(error))
            eventually(lambda: producer.poll(0.1) or reports, timeout=10)
        # Not `reports == [None]`: comparing a KafkaError with None leaves a TypeError set in C (2.16.1).
        return bool(reports) and reports[0] is None

    eventually(is_confirmed, timeout=20)
    own_kafka.stop()
    own_kafka.start()

    until = time.monotonic() + BACK_IN
    while time.monotonic() < until:
        assert not is_confirmed()
        threading.Event().wait(0.1)


def test_an_outage_is_a_few_lines_in_the_log(own_kafka, broker, caplog, capfd):
    """librdkafka tries to connect ten times a second; that is said once, to `logging`, and nothing to stderr."""
    caplog.set_level(logging.INFO)
    own_kafka.stop()
    for _ in range(6):
        publish(broker, timeout=0.5)

    lines = [record for record in caplog.records if record.name.endswith("confluent.librdkafka")]
    assert 0 < len(lines) <= 6
    assert "" == capfd.readouterr().err


@pytest.mark.parametrize("partition_is_lost", [False, True], ids=["kept", "lost"])
def test_an_ack_that_does_not_reach_the_broker_is_made_up_for(group, kafka_behind_proxy, partition_is_lost):
    """A commit that failed is repeated as soon as the path is there again, and the partition with it."""
    server, proxy = kafka_behind_proxy
    make_topic(server.servers, "orders", partitions=1)
    broker = ConfluentKafkaBroker(
        server.servers, consumer_config={**CONFLUENT_QUICK_GROUPS, "session.timeout.ms": 3000}
    )
    deliveries = broker.subscribe(Group(group, ["orders"]))
    publish_texts(broker, "orders", b"1")
    delivery = receive(deliveries, 1, settle=False)[0]

    proxy.cut()
    delivery.ack()
    eventually(lambda: is_unreachable(deliveries), timeout=30)
    if partition_is_lost:
        eventually(lambda: is_unreachable(deliveries) and not has_partitions(deliveries), timeout=30)
    proxy.restore()
    eventually(lambda: not is_unreachable(deliveries) and has_partitions(deliveries), timeout=30)
    deliveries.close()

    with broker.subscribe(Group(group, ["orders"])) as deliveries:
        publish_texts(broker, "orders", b"2")
        assert [b"2"] == bodies(receive(deliveries, 1))
    broker.close()


@pytest.mark.parametrize("strategy", ["range", "cooperative-sticky"])
def test_a_group_whose_place_is_not_told_reads_nothing_and_joins_again(group, kafka_servers, topic, caplog, strategy):
    """
    Where the broker does not tell the place of a partition that we were further in, nothing is read from a wrong one.
    """
    broker = ConfluentKafkaBroker(
        kafka_servers, consumer_config={**CONFLUENT_QUICK_GROUPS, "partition.assignment.strategy": strategy}
    )
    with broker.subscribe(Group(group, [topic])) as deliveries:
        initial_offsets_of(deliveries).remember({(topic, 0): 1})
        deliveries.committed_offsets = fails_once(deliveries.committed_offsets)
        publish_texts(broker, topic, b"finished already", b"1")

        assert [b"1"] == bodies(receive(deliveries, 1))
    broker.close()
    assert "joining the group again" in caplog.text


def fails_once(committed_offsets):
    failed = []

    def asked(partitions, timeout):
        if not failed:
            failed.append(True)
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        return committed_offsets(partitions, timeout)

    return asked


def test_importing_and_making_a_broker_starts_nothing():
    """No thread, those of librdkafka included, and no file or socket, until the first call."""
    completed, _ = run("""
        import os
        from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
        before = [os.listdir(f"/proc/self/{kind}") for kind in ("task", "fd")]
        ConfluentKafkaBroker("127.0.0.1:9", client_config={"client.id": "shop"})
        assert [os.listdir(f"/proc/self/{kind}") for kind in ("task", "fd")] == before
        assert len(before[0]) == 1
    """)

    assert (0, "") == (completed.returncode, completed.stderr)


def test_a_producer_of_the_parent_is_never_destroyed_in_a_child(kafka_servers, kafka_topic):
    """
    Its threads are not in the child: to destroy it would wait without end, so that must not happen to any reference.
    """
    broker = ConfluentKafkaBroker(kafka_servers)
    broker.publish([message(kafka_topic)], timeout=10)
    inherited = producer_of(broker)._producer
    references = sys.getrefcount(inherited)

    def compare():
        # One reference that is never given back.
        assert references < sys.getrefcount(inherited)

    assert 0 == in_forked_child(compare, timeout=20)
    assert references == sys.getrefcount(inherited)
    broker.close()


def test_a_child_leaves_its_parent_s_consumer_alone(kafka_servers, kafka_topic):
    """
    A child that inherits a subscription, even inside its `with` block, leaves without touching it; the parent receives.
    """
    completed, took = run(
        """
        import os, sys
        from cqrs_sync.broker import Group
        from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
        from cqrs_sync.testing.contracts.broker import message, receive
        servers, topic = sys.argv[1:]
        quick = {"session.timeout.ms": 2000, "heartbeat.interval.ms": 500}
        broker = ConfluentKafkaBroker(servers, consumer_config=quick)
        with broker.subscribe(Group(topic, [topic])) as deliveries:
            broker.publish([message(topic, b"1")], timeout=10)
            receive(deliveries, 1)
            for _ in range(5):
                child = os.fork()
                if not child:
                    sys.exit()
                assert os.waitpid(child, 0)[1] == 0
            broker.publish([message(topic, b"2")], timeout=10)
            assert receive(deliveries, 1)[0].message.body == b"2"
        """,
        kafka_servers,
        kafka_topic,
    )

    assert (0, "") == (completed.returncode, completed.stderr)
    assert 40 > took


def test_a_process_leaves_in_time_with_an_open_subscription(own_kafka):
    """Even where the broker has stopped to answer, the interpreter does not wait for it."""
    completed, took = run(
        """
        import logging, os, signal, sys
        from cqrs_sync.broker import Group
        from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
        from cqrs_sync.testing.contracts.broker import message, receive
        logging.getLogger("cqrs_sync.integrations.confluent").setLevel(logging.CRITICAL)
        quick = {"session.timeout.ms": 2000, "heartbeat.interval.ms": 500}
        broker = ConfluentKafkaBroker(sys.argv[1], consumer_config=quick)
        deliveries = broker.subscribe(Group("g", ["orders"]))
        broker.publish([message("orders")], timeout=10)
        receive(deliveries, 1)
        os.kill(int(sys.argv[2]), signal.SIGSTOP)
        """,
        own_kafka.servers,
        str(own_kafka.pid),
    )

    assert (0, "") == (completed.returncode, completed.stderr)
    assert 30 > took


@pytest.mark.parametrize("name", sorted(CONSUMER_ONLY | PRODUCER_ONLY | SHARED))
def test_hints_name_options_that_exist(name):
    """What we would suggest, librdkafka knows."""
    client = Consumer if name in CONSUMER_ONLY else Producer

    assert _has(client, name)


def test_lines_that_say_the_same_are_said_once(caplog):
    """
    Lines that differ in their numbers only are one line, what is asked for by `debug` is not touched, secrets are.
    """
    caplog.set_level(logging.DEBUG)
    lines = LibrdkafkaLog([SECRET])
    for port in range(20):
        lines.log(logging.ERROR, "%s [%s] %s", "FAIL", "rdkafka#1", f"connect to port {port} refused")
        lines.log(logging.DEBUG, "%s [%s] %s", "AUTH", "rdkafka#1", f"with {SECRET}")

    assert [1, 20] == [sum(one.levelno == level for one in caplog.records) for level in (logging.ERROR, logging.DEBUG)]
    assert SECRET not in caplog.text


def test_lines_held_back_are_counted(caplog, monkeypatch):
    """The next line of a kind tells how many there were in between."""
    monkeypatch.setattr("cqrs_sync.retry._QUIET", 60.0)
    lines = LibrdkafkaLog([])
    for _ in range(3):
        lines.log(logging.ERROR, "%s", "refused")
    monkeypatch.setattr("cqrs_sync.retry._QUIET", 0.0)
    lines.log(logging.ERROR, "%s", "refused")

    assert ["refused", "refused (and 2 more like it)"] == [record.getMessage() for record in caplog.records]
