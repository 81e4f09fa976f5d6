"""Receiving from Kafka with either client: a group's offsets, what is settled, and which member gets what."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time

import pytest
from confluent_kafka import Producer
from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition

from cqrs_sync.broker import Group
from cqrs_sync.errors import BrokerUnavailable, ConfigurationError
from cqrs_sync.testing.contracts.broker import message, receive
from tests.brokers.kafka_clients import (
    CONFLUENT,
    KAFKA_PYTHON,
    LATE,
    bodies,
    buffer_of,
    has_partitions,
    is_unreachable,
    make_topic,
    publish_texts,
    ready_count,
)
from tests.servers import free_port
from tests.waiting import eventually

pytestmark = pytest.mark.broker

ASSIGNMENTS = {
    "kafka-python": (KAFKA_PYTHON, {}),
    "librdkafka": (CONFLUENT, {"partition.assignment.strategy": "range"}),
    "librdkafka-incrementally": (CONFLUENT, {"partition.assignment.strategy": "cooperative-sticky"}),
}


@pytest.fixture
def broker(client, kafka_servers):
    broker = client.broker(kafka_servers, consumer_config=client.quick_groups)
    yield broker
    broker.close()


def subscribe_once(client, broker, topic, group):
    with broker.subscribe(Group(group, [topic])) as deliveries:
        # Tansu keeps a member of librdkafka that leaves while it joins, and waits for it to lead the group.
        eventually(lambda: client is KAFKA_PYTHON or deliveries.receive(timeout=0.1) or has_partitions(deliveries))


def test_messages_wait_for_a_group_from_its_first_subscription_on(client, group, broker, topic):
    """What was there before is not received; what comes while no member is subscribed waits."""
    publish_texts(broker, topic, b"before")
    subscribe_once(client, broker, topic, group)
    publish_texts(broker, topic, b"1", b"2")

    with broker.subscribe(Group(group, [topic])) as deliveries:
        assert [b"1", b"2"] == bodies(receive(deliveries, 2))


def test_a_finished_message_is_kept_by_the_broker_without_closing(client, group, broker, topic, kafka_servers):
    """An ack reaches the broker by itself: a process that is killed afterwards does not see the message again."""
    arguments = (str(client), kafka_servers, topic, group)
    child = multiprocessing.get_context("spawn").Process(target=receive_one_and_die, args=arguments)
    subscribe_once(client, broker, topic, group)
    publish_texts(broker, topic, b"1", b"2")
    child.start()
    child.join(40)

    assert 7 == child.exitcode
    # The broker has to miss the killed member first: its session ends.
    with broker.subscribe(Group(group, [topic])) as deliveries:
        assert [b"2"] == bodies(receive(deliveries, 1))


def receive_one_and_die(name, servers, topic, group):
    client = next(client for client in (KAFKA_PYTHON, CONFLUENT) if name == str(client))
    deliveries = client.broker(servers, consumer_config=client.quick_groups).subscribe(Group(group, [topic]))
    receive(deliveries, 1)
    # The answer comes while the client works; what comes with it is not settled.
    eventually(lambda: deliveries.receive(timeout=0.1) is None and not buffer_of(deliveries).uncommitted)
    os._exit(7)


def test_what_came_from_a_revoked_partition_is_not_delivered(group, broker, topic):
    """After a rebalance, what was fetched or given back belongs to another member, and settling does nothing."""
    with broker.subscribe(Group(group, [topic])) as deliveries:
        publish_texts(broker, topic, b"1", b"2", b"3")
        first, second = receive(deliveries, 2, settle=False)
        second.nack()
        eventually(lambda: deliveries.keep_alive() or 1 == ready_count(deliveries))
        buffer_of(deliveries).revoke(list(buffer_of(deliveries).partitions))

        assert deliveries.receive(timeout=0.2) is None
        first.ack()
        first.nack()
        assert deliveries.receive(timeout=0.2) is None

    with broker.subscribe(Group(group, [topic])) as deliveries:
        assert [b"1", b"2", b"3"] == bodies(receive(deliveries, 3))


@pytest.mark.parametrize(("client", "options"), ASSIGNMENTS.values(), ids=ASSIGNMENTS)
def test_members_of_a_group_share_its_messages(client, options, group, kafka_servers, kafka_topic):
    """Two members receive everything once, between them, however the group shares out its partitions."""
    broker = client.broker(kafka_servers, consumer_config={**client.quick_groups, **options})
    make_topic(kafka_servers, kafka_topic, partitions=4)
    wanted = sorted(b"%d" % n for n in range(40))
    enough = threading.Event()
    with broker.subscribe(Group(group, [kafka_topic])) as one, broker.subscribe(Group(group, [kafka_topic])) as two:
        received = {one: [], two: []}
        threads = [threading.Thread(target=collect, args=(*item, enough)) for item in received.items()]
        try:
            for thread in threads:
                thread.start()
            eventually(lambda: all(map(has_partitions, received)), timeout=30)
            broker.publish([message(kafka_topic, body, key=body.decode()) for body in wanted], timeout=10)
            eventually(lambda: len(wanted) <= sum(map(len, received.values())), timeout=30)
        finally:
            enough.set()
            for thread in threads:
                thread.join(10)
    broker.close()

    assert all(received.values()), "each of them had some"
    assert wanted == sorted(body for bodies in received.values() for body in bodies)


def collect(member, received, enough):
    while not enough.is_set():
        delivery = member.receive(timeout=0.2)
        if delivery is not None:
            received.append(delivery.message.body)
            delivery.ack()


def test_partitions_that_come_later_are_read_from_their_first_message_on(group, broker, kafka_servers, kafka_topic):
    """Where a group has a place in some partitions of a topic, another one is new and loses nothing."""
    make_topic(kafka_servers, kafka_topic, partitions=2)
    consumer = KafkaConsumer(bootstrap_servers=kafka_servers, group_id=group, enable_auto_commit=False)
    known = TopicPartition(kafka_topic, 0)
    consumer.assign([known])
    consumer.commit({known: OffsetAndMetadata(0, "", -1)})
    consumer.close()
    producer = KafkaProducer(bootstrap_servers=kafka_servers)
    producer.send(kafka_topic, b"new", partition=1).get(10)
    producer.close()

    with broker.subscribe(Group(group, [kafka_topic])) as deliveries:
        assert [b"new"] == bodies(receive(deliveries, 1))


def test_a_group_with_members_begins_a_new_topic_at_its_end(group, broker, kafka_servers, topic):
    """A topic that a running group is subscribed to for the first time is not read from its beginning."""
    new_topic = f"{topic}-new"
    make_topic(kafka_servers, new_topic, partitions=1)
    publish_texts(broker, new_topic, b"old")
    member = broker.subscribe(Group(group, [topic]))
    publish_texts(broker, topic, b"1")
    receive(member, 1)
    with broker.subscribe(Group(group, [topic, new_topic])) as newcomer:
        member.close()
        publish_texts(broker, new_topic, b"new")

        assert [b"new"] == bodies(receive(newcomer, 1))


def test_a_record_of_strangers_is_readable(group, broker, kafka_servers, topic):
    """Bytes that are no text, headers that are none of ours, no body at all: nothing raises."""
    producer = Producer({"bootstrap.servers": kafka_servers})
    headers = [("CE_Type", b"\xfe"), ("Content-Type", b"text/plain"), ("x", b""), ("y", None)]
    with broker.subscribe(Group(group, [topic])) as deliveries:
        producer.produce(topic, None, b"\xff", headers=headers)
        assert 0 == producer.flush(10)
        received = receive(deliveries, 1)[0].message

    assert (b"", "�", "text/plain") == (received.body, received.key, received.content_type)
    assert {"type": "�"} == received.attributes


def test_subscribing_to_a_port_without_a_broker_is_an_error_in_time(client, group):
    """If no broker answers, `subscribe` says so."""
    broker = client.broker(f"127.0.0.1:{free_port()}")
    started = time.monotonic()

    with pytest.raises(BrokerUnavailable, match=client.refused):
        broker.subscribe(Group(group, ["orders"]))

    assert 5 + LATE > time.monotonic() - started
    broker.close()


def test_subscribing_to_a_topic_that_does_not_exist_is_an_error_that_names_it(client, group, scripted):
    """If the broker creates no topics, `subscribe` names the one that is missing."""
    broker = client.broker(scripted.servers, creates_topics=False, declare=False, publish_timeout=1)

    with pytest.raises(ConfigurationError, match="'unknown'"):
        broker.subscribe(Group(group, ["unknown"]))
    broker.close()


def test_receiving_from_a_broker_that_is_gone_is_an_error(client, group, own_kafka):
    """When all connections are lost, `receive` says so instead of returning nothing without end; closing is in time."""
    broker = client.broker(own_kafka.servers, consumer_config=client.quick_groups)
    deliveries = broker.subscribe(Group(group, ["orders"]))
    publish_texts(broker, "orders", b"1")
    receive(deliveries, 1)
    own_kafka.stop()

    def says_so():
        try:
            deliveries.receive(timeout=0.2)
        except BrokerUnavailable as error:
            return str(error)

    assert own_kafka.servers in eventually(says_so, timeout=30)
    started = time.monotonic()
    deliveries.close()
    assert 12 > time.monotonic() - started
    broker.close(0.1)


def test_what_is_unfinished_goes_to_the_next_member(group, broker, topic):
    """Whatever the order of finishing: the first unfinished message and all after it are delivered again."""
    with broker.subscribe(Group(group, [topic])) as deliveries:
        publish_texts(broker, topic, b"1", b"2", b"3", b"4")
        first, _, third, _ = receive(deliveries, 4, settle=False)
        third.ack()
        first.ack()

    with broker.subscribe(Group(group, [topic])) as deliveries:
        assert [b"2", b"3", b"4"] == bodies(receive(deliveries, 3))
    with broker.subscribe(Group(group, [topic])) as deliveries:
        publish_texts(broker, topic, b"5")
        assert [b"5"] == bodies(receive(deliveries, 1))


def test_a_message_that_is_given_back_comes_first(group, broker, topic):
    """A nack puts a message back at its place, as often as it takes; settling it twice does nothing."""
    with broker.subscribe(Group(group, [topic])) as deliveries:
        publish_texts(broker, topic, b"1", b"2")
        for _ in range(3):
            delivery = receive(deliveries, 1, settle=False)[0]
            assert b"1" == delivery.message.body
            delivery.nack()
            delivery.ack()
        assert [b"1", b"2"] == bodies(receive(deliveries, 2))


def test_subscribing_to_an_illegal_topic_is_an_error(broker):
    """What cannot be a topic is refused as a wrong configuration."""
    with pytest.raises(ConfigurationError, match="cannot be a topic"):
        broker.subscribe(Group("g", ["no spaces, please"]))


def test_a_subscription_outlives_an_outage(client, group, kafka_behind_proxy):
    """After the path was cut and is there again, what was published meanwhile is received."""
    server, proxy = kafka_behind_proxy
    broker = client.broker(server.servers, consumer_config=client.quick_groups)
    deliveries = broker.subscribe(Group(group, ["orders"]))
    publish_texts(broker, "orders", b"1")
    receive(deliveries, 1)

    proxy.cut()
    eventually(lambda: is_unreachable(deliveries), timeout=15)
    proxy.restore()
    eventually(lambda: not is_unreachable(deliveries), timeout=15)
    publish_texts(broker, "orders", b"2")

    assert [b"2"] == bodies(receive(deliveries, 1))
    deliveries.close()
    broker.close()
