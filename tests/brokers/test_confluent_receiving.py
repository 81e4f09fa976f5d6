"""Receiving from Kafka through librdkafka: a group's place, what is settled, and who gets what."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import uuid

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from cqrs_sync.errors import BrokerUnavailable, ConfigurationError
from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
from cqrs_sync.testing.contracts.broker import message, receive
from tests.brokers.kafka_contract import KafkaReceiving, bodies, is_unreachable, publish_texts
from tests.brokers.scripted_kafka import ScriptedKafka
from tests.servers import free_port
from tests.servers.kafka import CONFLUENT_QUICK_GROUPS
from tests.waiting import eventually

pytestmark = pytest.mark.broker


@pytest.fixture
def broker(kafka_servers):
    broker = ConfluentKafkaBroker(kafka_servers, consumer_config=CONFLUENT_QUICK_GROUPS)
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
    admin = AdminClient({"bootstrap.servers": servers})
    for future in admin.create_topics([NewTopic(topic, partitions, 1)]).values():
        future.result(10)


def test_messages_wait_for_a_group_from_its_first_subscription_on(group, broker, topic):
    """
    What was there before is not received; what comes while nobody is subscribed waits.
    """
    publish_texts(broker, topic, b"before")
    with broker.subscribe(topic, group=group) as deliveries:
        eventually(lambda: is_member(deliveries))
    publish_texts(broker, topic, b"1", b"2")

    with broker.subscribe(topic, group=group) as deliveries:
        assert [b"1", b"2"] == bodies(receive(deliveries, 2))


def test_a_finished_message_is_kept_by_the_broker_without_closing(group, broker, topic, kafka_servers):
    """
    An ack reaches the broker by itself: a process that is killed afterwards does not see the message again.
    """
    child = multiprocessing.get_context("spawn").Process(target=receive_one_and_die, args=(kafka_servers, topic, group))
    with broker.subscribe(topic, group=group) as deliveries:
        eventually(lambda: is_member(deliveries))
    publish_texts(broker, topic, b"1", b"2")
    child.start()
    child.join(40)

    assert 7 == child.exitcode
    # The broker has to miss the killed member first: its session ends.
    with broker.subscribe(topic, group=group) as deliveries:
        assert [b"2"] == bodies(receive(deliveries, 1))


def receive_one_and_die(servers, topic, group):
    deliveries = ConfluentKafkaBroker(servers, consumer_config=CONFLUENT_QUICK_GROUPS).subscribe(topic, group=group)
    receive(deliveries, 1)
    eventually(lambda: is_committed(deliveries))
    os._exit(7)


def is_member(deliveries):
    # Tansu keeps one who leaves while he joins, and waits for him to lead the group.
    assert deliveries.receive(timeout=0.1) is None
    return deliveries._buffer.partitions


def is_committed(deliveries):
    # It is told out of `poll`; what comes with it is not settled.
    deliveries.receive(timeout=0.1)
    return not deliveries._buffer.uncommitted


def test_what_came_from_a_lost_partition_is_not_delivered_again(group, broker, topic):
    """
    When partitions are shared out anew, what was given back is somebody else's, and settling does nothing.
    """
    with broker.subscribe(topic, group=group) as deliveries:
        publish_texts(broker, topic, b"1", b"2")
        first, second = receive(deliveries, 2, settle=False)
        second.nack()
        deliveries._revoked(None, deliveries._consumer.assignment())

        assert deliveries.receive(timeout=0.2) is None
        first.ack()
        first.nack()
        assert deliveries.receive(timeout=0.2) is None

    with broker.subscribe(topic, group=group) as deliveries:
        assert [b"1", b"2"] == bodies(receive(deliveries, 2))


@pytest.mark.parametrize("strategy", ["range", "cooperative-sticky"])
def test_members_of_a_group_share_its_messages(group, kafka_servers, kafka_topic, strategy):
    """
    Two members receive everything once, between them, however the group shares out its partitions.
    """
    broker = ConfluentKafkaBroker(
        kafka_servers, consumer_config={**CONFLUENT_QUICK_GROUPS, "partition.assignment.strategy": strategy}
    )
    make_topic(kafka_servers, kafka_topic, partitions=4)
    wanted = sorted(b"%d" % n for n in range(40))
    enough = threading.Event()
    with broker.subscribe(kafka_topic, group=group) as one, broker.subscribe(kafka_topic, group=group) as two:
        received = {one: [], two: []}
        threads = [threading.Thread(target=collect, args=(item[0], received, enough)) for item in received.items()]
        try:
            for thread in threads:
                thread.start()
            eventually(lambda: all(member._buffer.partitions for member in received), timeout=30)
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
            received[member].append(delivery.message.body)
            delivery.ack()


def test_partitions_that_come_later_are_read_from_their_first_message_on(group, broker, kafka_servers, kafka_topic):
    """
    Where a group has a place in some partitions of a topic, another one is new and loses nothing.
    """
    make_topic(kafka_servers, kafka_topic, partitions=2)
    consumer = Consumer({"bootstrap.servers": kafka_servers, "group.id": group})
    consumer.commit(offsets=[TopicPartition(kafka_topic, 0, 0)], asynchronous=False)
    consumer.close()
    producer = Producer({"bootstrap.servers": kafka_servers})
    producer.produce(kafka_topic, b"new", partition=1)
    assert 0 == producer.flush(10)

    with broker.subscribe(kafka_topic, group=group) as deliveries:
        assert [b"new"] == bodies(receive(deliveries, 1))


def test_a_group_with_members_begins_a_new_topic_at_its_end(group, broker, kafka_servers, topic):
    """
    A topic that a running group is subscribed to for the first time is not read from its beginning.
    """
    new_topic = f"{topic}-new"
    make_topic(kafka_servers, new_topic, partitions=1)
    publish_texts(broker, new_topic, b"old")
    enough = threading.Event()
    with broker.subscribe(topic, group=group) as member:
        publish_texts(broker, topic, b"1")
        receive(member, 1)
        others = threading.Thread(target=collect, args=(member, {member: []}, enough))
        with broker.subscribe(topic, new_topic, group=group) as newcomer:
            others.start()
            publish_texts(broker, new_topic, b"new")
            try:
                assert [b"new"] == bodies(receive(newcomer, 1))
            finally:
                enough.set()
                others.join(10)


def test_a_record_of_strangers_is_readable(group, broker, kafka_servers, topic):
    """
    Bytes that are no text, headers that are none of ours, no body at all: nothing raises.
    """
    producer = Producer({"bootstrap.servers": kafka_servers})
    headers = [("CE_Type", b"\xfe"), ("Content-Type", b"text/plain"), ("x", b""), ("y", None)]
    with broker.subscribe(topic, group=group) as deliveries:
        producer.produce(topic, None, b"\xff", headers=headers)
        assert 0 == producer.flush(10)
        received = receive(deliveries, 1)[0].message

    assert (b"", "�", "text/plain") == (received.body, received.key, received.content_type)
    assert {"type": "�"} == received.attributes


def test_subscribing_to_nobody_is_an_error_in_time(group):
    """
    Where no broker answers, `subscribe` says so.
    """
    broker = ConfluentKafkaBroker(f"127.0.0.1:{free_port()}")
    started = time.monotonic()

    with pytest.raises(BrokerUnavailable, match="Connection refused"):
        broker.subscribe("orders", group=group)

    assert 5 + 4 > time.monotonic() - started


def test_subscribing_to_a_topic_that_does_not_exist_is_an_error_that_names_it(group):
    """
    Where the broker makes no topics, `subscribe` names the one that is missing.
    """
    scripted = ScriptedKafka("known")
    broker = ConfluentKafkaBroker(scripted.servers, config={"allow.auto.create.topics": False}, publish_timeout=1)

    with pytest.raises(ConfigurationError, match="'unknown'"):
        broker.subscribe("unknown", group=group)
    scripted.close()


def test_receiving_from_a_broker_that_is_gone_is_an_error(group, own_kafka):
    """
    When all connections are lost, `receive` says so instead of returning nothing for ever; closing is in time.
    """
    broker = ConfluentKafkaBroker(own_kafka.servers, consumer_config=CONFLUENT_QUICK_GROUPS)
    deliveries = broker.subscribe("orders", group=group)
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


@pytest.mark.parametrize("partition_is_lost", [False, True], ids=["kept", "lost"])
def test_an_ack_that_does_not_reach_the_broker_is_made_up_for(group, kafka_behind_proxy, partition_is_lost):
    """
    A commit that failed is repeated as soon as the path is there again, and the partition with it.
    """
    server, proxy = kafka_behind_proxy
    make_topic(server.servers, "orders", partitions=1)
    broker = ConfluentKafkaBroker(
        server.servers, consumer_config={**CONFLUENT_QUICK_GROUPS, "session.timeout.ms": 3000}
    )
    deliveries = broker.subscribe("orders", group=group)
    publish_texts(broker, "orders", b"1")
    delivery = receive(deliveries, 1, settle=False)[0]

    proxy.cut()
    delivery.ack()
    eventually(lambda: is_unreachable(deliveries), timeout=30)
    if partition_is_lost:
        eventually(lambda: is_unreachable(deliveries) and not deliveries._buffer.partitions, timeout=30)
    proxy.restore()
    eventually(lambda: not is_unreachable(deliveries) and deliveries._buffer.partitions, timeout=30)
    deliveries.close()

    with broker.subscribe("orders", group=group) as deliveries:
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
    with broker.subscribe(topic, group=group) as deliveries:
        deliveries._initial_offsets.remember({(topic, 0): 1})
        deliveries.committed_offsets = fails_once(deliveries.committed_offsets)
        publish_texts(broker, topic, b"finished already", b"1")

        assert [b"1"] == bodies(receive(deliveries, 1))
    broker.close()
    assert "joined again" in caplog.text


def fails_once(committed_offsets):
    failed = []

    def asked(partitions, timeout):
        if not failed:
            failed.append(True)
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        return committed_offsets(partitions, timeout)

    return asked


class TestReceiving(KafkaReceiving):
    broker_class = ConfluentKafkaBroker
    quick_groups = CONFLUENT_QUICK_GROUPS
