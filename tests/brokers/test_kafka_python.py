"""What is kafka-python's own: CloudEvents on the wire, and what `integrations/kafka` mends or watches."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import attrs
import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event, from_structured_event
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaTimeoutError
from kafka.net.transport import KafkaTCPTransport

from cqrs_sync import NotificationEvent
from cqrs_sync.broker import Group, OutgoingMessage
from cqrs_sync.context import message_attributes
from cqrs_sync.errors import EventNotSerializable
from cqrs_sync.integrations.kafka import KafkaBroker
from cqrs_sync.integrations.kafka.client import KafkaConnections
from cqrs_sync.integrations.kafka.producer import KafkaPythonProducer
from cqrs_sync.serializer import JsonSerializer
from cqrs_sync.testing.contracts.broker import message, receive
from cqrs_sync.testing.waiting import in_forked_child
from tests.brokers.kafka_clients import (
    BACK_IN,
    KAFKA_PYTHON,
    LATE,
    ROOT,
    bodies,
    buffer_of,
    failures_of,
    initial_offsets_of,
    is_unreachable,
    make_topic,
    publish,
    publish_texts,
    run,
)
from tests.servers.kafka import QUICK_GROUPS
from tests.waiting import eventually

pytestmark = pytest.mark.broker

IMPATIENT = KAFKA_PYTHON.gives_up_soon["producer_config"]


@attrs.frozen
class OrderPlaced(NotificationEvent, topic="orders", name="order.placed", version="2", key="order_id"):
    order_id: str
    amount: object


@pytest.fixture
def broker(kafka_servers):
    broker = KafkaBroker(kafka_servers, consumer_config=QUICK_GROUPS)
    yield broker
    broker.close()


def only_record(servers: str, topic: str):
    consumer = KafkaConsumer(bootstrap_servers=servers, metrics_enabled=False)
    try:
        partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        fetched = eventually(lambda: consumer.poll(timeout_ms=100), timeout=10)
        return next(iter(fetched.values()))[0]
    finally:
        consumer.close()


def as_sdk_sees(record) -> KafkaMessage:
    return KafkaMessage(headers=dict(record.headers), key=record.key, value=record.value)


def test_the_official_sdk_reads_what_is_published(broker, kafka_servers, kafka_topic):
    """On the wire it is CloudEvents 1.0 in binary mode, with trace, correlation, key and version."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with message_attributes(correlationid="c-1", causationid="e-0", traceparent=trace):
        sent = JsonSerializer(source="/shop").dump(OrderPlaced("o-1", 3))
    broker.publish([attrs.evolve(sent, topic=kafka_topic)])

    event = from_binary_event(as_sdk_sees(only_record(kafka_servers, kafka_topic)))

    assert {"order_id": "o-1", "amount": 3} == event.get_data()
    assert (sent.id, "/shop", "order.placed") == (event.get_id(), event.get_source(), event.get_type())
    assert "1.0" == event.get_specversion()
    assert "application/json" == event.get_datacontenttype()
    extensions = {"correlationid": "c-1", "causationid": "e-0", "traceparent": trace, "eventversion": "2"}
    assert {**extensions, "partitionkey": "o-1"} == {
        name: event.get_extension(name) for name in [*extensions, "partitionkey"]
    }
    assert sent.attributes.keys() <= event.get_attributes().keys()


def test_the_official_sdk_reads_structured_events(broker, kafka_servers, kafka_topic):
    """Structured mode is one JSON object, with its content type as the only header."""
    sent = JsonSerializer(source="/shop", structured=True).dump(OrderPlaced("o-1", 3))
    broker.publish([attrs.evolve(sent, topic=kafka_topic)])

    record = only_record(kafka_servers, kafka_topic)

    assert [("content-type", b"application/cloudevents+json")] == record.headers
    event = from_structured_event(as_sdk_sees(record))
    assert {"order_id": "o-1", "amount": 3} == event.get_data()
    assert (sent.id, b"o-1") == (event.get_id(), record.key)


def test_an_event_that_is_no_json_never_reaches_the_broker():
    """What cannot be serialised is refused before it is a message."""
    with pytest.raises(EventNotSerializable, match="OrderPlaced"):
        JsonSerializer(source="tests").dump(OrderPlaced("o-1", object()))


def test_an_empty_body_is_a_message(broker, kafka_servers, kafka_topic):
    """A message of no bytes is confirmed and is no tombstone."""
    broker.publish([OutgoingMessage(id="1", topic=kafka_topic, type="t", body=b"")])

    assert b"" == only_record(kafka_servers, kafka_topic).value


def test_the_broker_is_not_asked_without_end_about_a_topic_it_does_not_have(scripted):
    """After the call has failed, metadata requests no longer name the topic."""
    broker = KAFKA_PYTHON.broker(scripted.servers, creates_topics=False)
    failures_of(broker, [message("unknown")], timeout=10)
    asked = len(scripted.asked)

    for n in range(10):
        broker.publish([message("known", b"%d" % n)])
    failures_of(broker, [message("other")], timeout=1)

    assert asked + 1 >= len([topic for topic in scripted.asked if topic == "unknown"])
    assert scripted.may_make_topics is False
    broker.close()


def test_a_producer_of_kafka_python_never_comes_back_from_an_outage(own_kafka):
    """The bug this is all about; where this fails, kafka-python has learnt to do without our care."""
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


def test_a_broker_that_was_away_while_no_call_published_is_not_noticed(own_kafka, broker):
    """An outage between two calls fails neither of them."""
    own_kafka.stop()
    own_kafka.start()

    assert None is publish(broker, timeout=BACK_IN + LATE)[0]


def test_a_producer_can_be_closed_while_kafka_does_not_answer(own_kafka):
    """Closing waits as long as it may, then fails what is in flight; kafka-python's own raises and continues."""
    before = set(threading.enumerate())
    producer = KafkaPythonProducer(KafkaConnections({"bootstrap_servers": own_kafka.servers}), lambda *_: None)
    assert [("orders", None)] == list(producer.find_topics(["orders"], 10))
    own_kafka.freeze()
    stuck = producer.send("orders", b"1")
    started = time.monotonic()

    producer.close(0.3)

    assert 0.3 + LATE > time.monotonic() - started
    eventually(stuck.failed, timeout=20)
    eventually(lambda: not set(threading.enumerate()) - before, timeout=20)


def test_an_ack_that_does_not_reach_the_broker_is_made_up_for(group, kafka_behind_proxy):
    """A commit that failed is repeated as soon as the path is there again, and the partition with it."""
    server, proxy = kafka_behind_proxy
    make_topic(server.servers, "orders", partitions=1)
    broker = KafkaBroker(server.servers, consumer_config={**QUICK_GROUPS, "session_timeout_ms": 6000})
    deliveries = broker.subscribe(Group(group, ["orders"]))
    publish_texts(broker, "orders", b"1")
    delivery = receive(deliveries, 1, settle=False)[0]

    proxy.cut()
    delivery.ack()
    commit = deliveries._commit_request
    eventually(lambda: commit.is_done)
    assert commit.failed()
    # What kafka-python does with most lost connections, and here with every one.
    partitions = list(buffer_of(deliveries).partitions)
    deliveries.on_partitions_revoked(partitions)
    deliveries.on_partitions_assigned(partitions)
    proxy.restore()
    eventually(
        lambda: not is_unreachable(deliveries) and not initial_offsets_of(deliveries).may_override_commit(partitions),
        timeout=15,
    )
    deliveries.close()

    with broker.subscribe(Group(group, ["orders"])) as deliveries:
        publish_texts(broker, "orders", b"2")
        assert [b"2"] == bodies(receive(deliveries, 1))
    broker.close()


def connected_sockets() -> list[socket.socket]:
    """Return the sockets that are connected to a server."""
    return [each for each in gc.get_objects() if type(each) is socket.socket and has_peer(each)]


def has_peer(each: socket.socket) -> bool:
    try:
        return each.family == socket.AF_INET and bool(each.getpeername())
    except OSError:
        return False


def test_a_connection_that_kafka_python_leaves_open_is_closed_with_its_subscription(group, broker, topic, monkeypatch):
    """One that has something to send is left to a thread, which may have ended by then."""
    before = connected_sockets()
    deliveries = broker.subscribe(Group(group, [topic]))
    deliveries.receive(timeout=0.5)
    sockets = [each for each in connected_sockets() if each not in before]
    monkeypatch.setattr(KafkaTCPTransport, "_close", lambda transport, error=None: None)
    deliveries.close()

    assert sockets
    assert {-1} == {each.fileno() for each in sockets}


def test_a_forked_child_does_not_disturb_a_subscription(group, broker, topic):
    """A child that comes and goes leaves its parent's connections alone."""
    with broker.subscribe(Group(group, [topic])) as deliveries:
        publish_texts(broker, topic, b"1")
        receive(deliveries, 1)
        for _ in range(5):
            child = multiprocessing.get_context("fork").Process(target=forget_everything)
            child.start()
            child.join(10)
            assert 0 == child.exitcode
        publish_texts(broker, topic, b"2")

        assert [b"2"] == bodies(receive(deliveries, 1, timeout=10))


def forget_everything():
    gc.collect()


def test_what_was_fetched_of_a_paused_partition_is_given_out_when_it_goes_on(group, kafka_servers, kafka_topic):
    """
    A rebalance pauses partitions while some of their messages are fetched: all of them are delivered.
    """
    make_topic(kafka_servers, kafka_topic, partitions=3)
    several = KafkaBroker(kafka_servers, consumer_config={**QUICK_GROUPS, "max_poll_records": 10})
    try:
        with several.subscribe(Group(group, [kafka_topic])) as deliveries:
            several.publish([message(kafka_topic, b"%d" % n, key="one partition") for n in range(90)], timeout=10)
            first = receive(deliveries, 10)
            consumer, paused = deliveries._consumer, first[0].partition.key
            consumer.pause(TopicPartition(*paused))
            # Long enough for the other partitions to answer that they have nothing.
            assert deliveries.receive(timeout=1.5) is None
            consumer.resume(TopicPartition(*paused))
            rest = receive(deliveries, 80, timeout=10)
    finally:
        several.close()

    assert [b"%d" % n for n in range(90)] == bodies(first + rest)


def test_importing_and_making_a_broker_starts_nothing():
    """No thread, no socket, until the first call."""
    completed, _ = run("""
        import socket, threading
        def refuse(*_, **__): raise AssertionError("a socket was made")
        socket.socket.__init__ = refuse
        from cqrs_sync.integrations.kafka import KafkaBroker
        KafkaBroker("127.0.0.1:9")
        assert threading.active_count() == 1, threading.enumerate()
    """)

    assert (0, "") == (completed.returncode, completed.stderr)


def test_a_child_does_not_hold_its_parent_s_connections_open(kafka_behind_proxy):
    """When the parent dies, the broker hears of it, however long its children live."""
    server, proxy = kafka_behind_proxy
    script = """
        import os, signal, sys
        from cqrs_sync.integrations.kafka import KafkaBroker
        from cqrs_sync.testing.contracts.broker import message
        broker = KafkaBroker(sys.argv[1])
        broker.publish([message("orders")], timeout=10)
        child = os.fork()
        if child:
            print(child, flush=True)
        signal.pause()
    """
    command = [sys.executable, "-c", textwrap.dedent(script), server.servers]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            assert proxy.connections
            parent.kill()
            eventually(lambda: not proxy.connections, timeout=20)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_child_leaves_the_connect_of_its_parent_alone(monkeypatch):
    """`close` in the child cancels nothing: a thread of the parent runs the loop of that client."""
    cancelled = []

    def close():
        broker.close(1)
        assert [] == cancelled

    with socket.create_server(("127.0.0.1", 0)) as silent:
        broker = KafkaBroker(f"127.0.0.1:{silent.getsockname()[1]}", publish_timeout=2)
        publishing = threading.Thread(target=failures_of, args=(broker, [message("orders")]))
        publishing.start()
        connection, _ = silent.accept()
        with connection, monkeypatch.context() as patch:
            patch.setattr(KafkaConnections, "cancel", cancelled.append)
            assert 0 == in_forked_child(close, timeout=10)
        broker.close(1)
        publishing.join()
