"""Receiving from Kafka: a group's place, what is settled, and who gets what."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
import uuid

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition

from cqrs_sync.errors import BrokerUnavailable, ConfigurationError
from cqrs_sync.integrations.kafka import KafkaBroker
from cqrs_sync.testing.contracts import message, receive
from tests.brokers.kafka_contract import KafkaReceiving, bodies, is_unreachable, publish_texts
from tests.brokers.scripted_kafka import ScriptedKafka
from tests.servers import free_port
from tests.servers.kafka import QUICK_GROUPS
from tests.waiting import eventually

pytestmark = pytest.mark.broker


@pytest.fixture
def broker(kafka_servers):
    broker = KafkaBroker(kafka_servers, consumer_config=QUICK_GROUPS)
    yield broker
    broker.close()


@pytest.fixture
def topic(kafka_servers, kafka_topic):
    """One partition, so that there is one order."""
    make_topic(kafka_servers, kafka_topic, partitions=1)
    return kafka_topic


@pytest.fixture
def group():
    return f"group-{uuid.uuid4().hex}"


def make_topic(servers, topic, *, partitions):
    admin = KafkaAdminClient(bootstrap_servers=servers)
    try:
        admin.create_topics({topic: {"num_partitions": partitions, "replication_factor": 1}})
    finally:
        admin.close()


def test_messages_wait_for_a_group_from_its_first_subscription_on(group, broker, topic):
    """
    What was there before is not received; what comes while nobody is subscribed waits.
    """
    publish_texts(broker, topic, b"before")
    broker.subscribe(topic, group=group).close()
    publish_texts(broker, topic, b"1", b"2")

    with broker.subscribe(topic, group=group) as deliveries:
        assert [b"1", b"2"] == bodies(receive(deliveries, 2))


def test_a_finished_message_is_kept_by_the_broker_without_closing(group, broker, topic, kafka_servers):
    """
    An ack reaches the broker by itself: a process that is killed afterwards does not see the message again.
    """
    child = multiprocessing.get_context("spawn").Process(target=receive_one_and_die, args=(kafka_servers, topic, group))
    with broker.subscribe(topic, group=group):
        publish_texts(broker, topic, b"1", b"2")
    child.start()
    child.join(40)

    assert 7 == child.exitcode
    # The broker has to miss the killed member first: its session ends.
    with broker.subscribe(topic, group=group) as deliveries:
        assert [b"2"] == bodies(receive(deliveries, 1))


def receive_one_and_die(servers, topic, group):
    deliveries = KafkaBroker(servers, consumer_config=QUICK_GROUPS).subscribe(topic, group=group)
    receive(deliveries, 1)
    eventually(lambda: deliveries._commit_request.is_done)
    os._exit(7)


def test_what_was_fetched_from_a_lost_partition_is_not_delivered(group, broker, topic):
    """
    When partitions are shared out anew, messages that wait here are somebody else's, and settling one does nothing.
    """
    with broker.subscribe(topic, group=group) as deliveries:
        publish_texts(broker, topic, b"1", b"2", b"3")
        first = receive(deliveries, 1, settle=False)[0]
        eventually(lambda: 2 == len(deliveries._buffer._ready))
        deliveries._revoked(deliveries._consumer.assignment())

        assert deliveries.receive(timeout=0.2) is None
        first.ack()
        first.nack()
        assert deliveries.receive(timeout=0.2) is None

    with broker.subscribe(topic, group=group) as deliveries:
        assert [b"1", b"2", b"3"] == bodies(receive(deliveries, 3))


def test_members_of_a_group_share_its_messages(group, broker, kafka_servers, kafka_topic):
    """
    Two members receive everything once, between them.
    """
    make_topic(kafka_servers, kafka_topic, partitions=4)
    wanted = sorted(b"%d" % n for n in range(40))
    enough = threading.Event()
    with broker.subscribe(kafka_topic, group=group) as one, broker.subscribe(kafka_topic, group=group) as two:
        received = {one: [], two: []}
        threads = [threading.Thread(target=collect, args=(*item, enough)) for item in received.items()]
        try:
            for thread in threads:
                thread.start()
            eventually(lambda: all(member._consumer.assignment() for member in received), timeout=30)
            broker.publish([message(kafka_topic, body, key=body.decode()) for body in wanted], timeout=10)
            eventually(lambda: len(wanted) <= sum(map(len, received.values())), timeout=30)
        finally:
            enough.set()
            for thread in threads:
                thread.join(10)

    assert all(received.values()), "each of them had some"
    assert wanted == sorted(body for bodies in received.values() for body in bodies)


def collect(member, received, enough):
    while not enough.is_set():
        delivery = member.receive(timeout=0.2)
        if delivery is not None:
            received.append(delivery.message.body)
            delivery.ack()


def test_partitions_that_come_later_are_read_from_their_first_message_on(group, broker, kafka_servers, kafka_topic):
    """
    Where a group has a place in some partitions of a topic, another one is new and loses nothing.
    """
    make_topic(kafka_servers, kafka_topic, partitions=2)
    consumer = KafkaConsumer(bootstrap_servers=kafka_servers, group_id=group, enable_auto_commit=False)
    known = TopicPartition(kafka_topic, 0)
    consumer.assign([known])
    consumer.commit({known: OffsetAndMetadata(0, "", -1)})
    consumer.close()
    producer = KafkaProducer(bootstrap_servers=kafka_servers)
    producer.send(kafka_topic, b"new", partition=1).get(10)
    producer.close()

    with broker.subscribe(kafka_topic, group=group) as deliveries:
        assert [b"new"] == bodies(receive(deliveries, 1))


def test_a_group_with_members_begins_a_new_topic_at_its_end(group, broker, kafka_servers, topic):
    """
    A topic that a running group is subscribed to for the first time is not read from its beginning.
    """
    new_topic = f"{topic}-new"
    make_topic(kafka_servers, new_topic, partitions=1)
    publish_texts(broker, new_topic, b"old")
    member = broker.subscribe(topic, group=group)
    publish_texts(broker, topic, b"1")
    receive(member, 1)
    with broker.subscribe(topic, new_topic, group=group) as newcomer:
        member.close()
        publish_texts(broker, new_topic, b"new")

        assert [b"new"] == bodies(receive(newcomer, 1))


def test_a_record_of_strangers_is_readable(group, broker, kafka_servers, topic):
    """
    Bytes that are no text, headers that are none of ours, no body at all: nothing raises.
    """
    producer = KafkaProducer(bootstrap_servers=kafka_servers)
    with broker.subscribe(topic, group=group) as deliveries:
        producer.send(topic, None, b"\xff", [("CE_Type", b"\xfe"), ("Content-Type", b"text/plain"), ("x", b"")]).get(10)
        received = receive(deliveries, 1)[0].message
    producer.close()

    assert (b"", "\ufffd", "text/plain") == (received.body, received.key, received.content_type)
    assert {"type": "\ufffd"} == received.attributes


def test_subscribing_to_nobody_is_an_error_in_time(group):
    """
    Where no broker answers, `subscribe` says so.
    """
    broker = KafkaBroker(f"127.0.0.1:{free_port()}", consumer_config={"bootstrap_timeout_ms": 500})

    with pytest.raises(BrokerUnavailable, match="ECONNREFUSED"):
        broker.subscribe("orders", group=group)
    broker.close()


def test_subscribing_to_a_topic_that_does_not_exist_is_an_error_that_names_it(group):
    """
    Where the broker makes no topics, `subscribe` names the one that is missing.
    """
    scripted = ScriptedKafka("known")
    broker = KafkaBroker(scripted.servers, allow_auto_create_topics=False, publish_timeout=1)

    with pytest.raises(ConfigurationError, match="'unknown'"):
        broker.subscribe("unknown", group=group)
    broker.close()
    scripted.close()


def test_receiving_from_a_broker_that_is_gone_is_an_error(group, own_kafka):
    """
    When all connections are lost, `receive` says so instead of returning nothing for ever.
    """
    broker = KafkaBroker(own_kafka.servers, consumer_config=QUICK_GROUPS)
    deliveries = broker.subscribe("orders", group=group)
    publish_texts(broker, "orders", b"1")
    receive(deliveries, 1)
    own_kafka.stop()

    def says_so():
        try:
            deliveries.receive(timeout=0.2)
        except BrokerUnavailable as error:
            return str(error)

    assert own_kafka.servers in eventually(says_so, timeout=15)
    deliveries.close()
    broker.close()


def test_an_ack_that_does_not_reach_the_broker_is_made_up_for(group, kafka_behind_proxy):
    """
    A commit that failed is repeated as soon as the path is there again, and the partition with it.
    """
    server, proxy = kafka_behind_proxy
    make_topic(server.servers, "orders", partitions=1)
    broker = KafkaBroker(server.servers, consumer_config={**QUICK_GROUPS, "session_timeout_ms": 6000})
    deliveries = broker.subscribe("orders", group=group)
    publish_texts(broker, "orders", b"1")
    delivery = receive(deliveries, 1, settle=False)[0]

    proxy.cut()
    delivery.ack()
    eventually(lambda: deliveries._commit_request.is_done)
    assert deliveries._commit_request.failed()
    # What kafka-python does with most lost connections, and here with every one.
    partitions = deliveries._consumer.assignment()
    deliveries._revoked(partitions)
    deliveries._assigned(partitions)
    proxy.restore()
    eventually(lambda: not is_unreachable(deliveries) and not deliveries._initial_offsets._finished, timeout=15)
    deliveries.close()

    with broker.subscribe("orders", group=group) as deliveries:
        publish_texts(broker, "orders", b"2")
        assert [b"2"] == bodies(receive(deliveries, 1))
    broker.close()


def test_a_connection_that_kafka_python_leaves_open_is_closed_with_its_subscription(group, broker, topic):
    """One that has something to send is left to a thread, which may have ended by then."""
    deliveries = broker.subscribe(topic, group=group)
    deliveries.receive(timeout=0.5)
    transports = [connection.transport for connection in deliveries._connections.client._manager._conns.values()]
    sockets = [transport._sock for transport in transports]
    for transport in transports:
        transport._close = lambda error=None: None
    deliveries.close()

    assert sockets
    assert {-1} == {each.fileno() for each in sockets}


def test_a_forked_child_does_not_disturb_a_subscription(group, broker, topic):
    """
    A child that comes and goes leaves its parent's connections alone.
    """
    with broker.subscribe(topic, group=group) as deliveries:
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
    A group that is shared out anew pauses partitions while some of their messages are fetched: none is held for ever.
    """
    make_topic(kafka_servers, kafka_topic, partitions=3)
    several = KafkaBroker(kafka_servers, consumer_config={**QUICK_GROUPS, "max_poll_records": 10})
    try:
        with several.subscribe(kafka_topic, group=group) as deliveries:
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


class TestReceiving(KafkaReceiving):
    broker_class = KafkaBroker
    quick_groups = QUICK_GROUPS
