"""What groups on Kafka promise beyond the contract, with either client."""

from __future__ import annotations

import threading
import time
from typing import Any

import attrs
import pytest

from cqrs_sync.broker import Group, IncomingMessage
from cqrs_sync.cli.dead_letter_scan import DeadLetterFilter, DeadLetterScan, browse, id_of
from cqrs_sync.errors import BrokerUnavailable, ConfigurationError
from cqrs_sync.serializer import uuid7
from cqrs_sync.testing.contracts.broker import message, receive
from tests.brokers.kafka_clients import bodies, buffer_of, has_partitions, is_unreachable, publish_texts, ready_count
from tests.servers import free_port
from tests.waiting import eventually

pytestmark = pytest.mark.broker


def owned(deliveries: Any) -> bool:
    """Whether it has any partition of the topic itself."""
    return any(".retry." not in key[0] for key in buffer_of(deliveries).partitions)


def letter(topic: str, body: bytes, **what: Any) -> IncomingMessage:
    return IncomingMessage(topic, body, **what)


@pytest.fixture
def group(kafka_topic: str) -> Group:
    return Group(f"group-{uuid7()[-12:]}", (kafka_topic,), delays=(1.0, 8.0), prefetch=20)


@pytest.fixture
def broker(client, kafka_servers):
    broker = client.broker(
        kafka_servers,
        partitions=1,
        publish_timeout=30,
        consumer_config=client.quick_groups,
        producer_config=client.singly,
    )
    yield broker
    broker.close()


@pytest.fixture
def topic(broker, group, kafka_topic):
    broker.apply_topology(group)
    return kafka_topic


def test_deferred_messages_come_in_the_order_they_are_due_and_hold_up_nothing_else(broker, group, topic):
    """A later one in another place does not wait for an earlier one, nor do new messages."""
    with broker.subscribe(group) as deliveries:
        broker.defer([letter(topic, b"late")], group, after=8, timeout=10)
        broker.defer([letter(topic, b"%d" % n, key="k") for n in range(3)], group, after=1, timeout=10)
        publish_texts(broker, topic, b"new")
        received = bodies(receive(deliveries, 5))

    assert [b"new", b"0", b"1", b"2", b"late"] == received


def test_what_waits_for_its_time_is_counted_and_outlives_its_subscription(broker, group, topic):
    """A later subscription waits only for what is left of the delay."""
    with broker.subscribe(group) as deliveries:
        begun = time.monotonic()
        broker.defer([letter(topic, b"1")], group, after=8, timeout=10)
        assert deliveries.receive(timeout=6) is None
        assert 1 == broker.backlog(group).delayed
    with broker.subscribe(group) as deliveries:
        assert [b"1"] == bodies(receive(deliveries, 1))

    assert 7.5 < time.monotonic() - begun < 13


def test_dead_letters_are_replayed_and_the_others_stay(broker, group, topic):
    """Although what is settled has no holes: those in between go to the end."""
    dead = [letter(topic, b"%d" % n, attributes={"id": f"{n}"}, notes={"reason": "ab"[n % 2]}) for n in range(8)]
    broker.add_dead_letters(dead, group, timeout=10)
    scan = DeadLetterScan(
        broker, group, DeadLetterFilter(reason="a"), lambda messages: broker.defer(messages, group, after=0),
        is_cancelled=lambda _: False,
    )  # fmt: skip
    assert 8 == sum(scan)
    assert 4 == scan.handled
    with broker.subscribe(group) as deliveries:
        assert {b"0", b"2", b"4", b"6"} == set(bodies(receive(deliveries, 4)))

    assert {"1", "3", "5", "7"} == {id_of(message) for message in browse(broker, group)}


def test_resting_keeps_a_place_in_the_group(client, kafka_servers, group, broker, topic):
    """A handler may take longer than a member may stay away from polling, if `keep_alive` is called meanwhile."""
    impatient = client.broker(kafka_servers, consumer_config={**client.quick_groups, **client.impatient})
    with impatient.subscribe(group) as deliveries:
        publish_texts(broker, topic, b"1", b"2")
        held = receive(deliveries, 1, settle=False)[0]
        resting = threading.Event()
        until = time.monotonic() + 9
        while time.monotonic() < until:
            deliveries.keep_alive()
            resting.wait(0.2)
        assert not held.is_stale
        held.ack()
        second = receive(deliveries, 1, timeout=5)[0]
        assert b"2" == second.message.body
        # It has been the same partition all the time.
        assert second.partition is held.partition
    with broker.subscribe(group) as deliveries:
        assert deliveries.receive(timeout=6) is None
    impatient.close()


def test_who_only_rests_becomes_a_member(broker, group, topic):
    """Joining takes longer than any moment in which the client is polled."""
    with broker.subscribe(group) as deliveries:
        eventually(lambda: deliveries.keep_alive() or has_partitions(deliveries), timeout=20)


def test_a_member_has_joined_once_it_knows_its_partitions_be_they_none(broker, group, topic):
    """Not before: a deploy that waits until it is ready would end the members that still receive."""
    with broker.subscribe(group) as first, broker.subscribe(group) as second:
        assert not first.has_joined
        eventually(lambda: first.keep_alive() or first.has_joined)
        assert not second.has_joined
        eventually(lambda: first.keep_alive() or second.keep_alive() or second.has_joined)
        eventually(lambda: [first.keep_alive(), second.keep_alive()] and owned(first) ^ owned(second))
        assert first.has_joined


def test_who_rests_for_long_fetches_little(broker, group, topic):
    """A subscription that is only kept alive does not fill up the memory, and continues where it was."""
    with broker.subscribe(group) as deliveries:
        broker.publish([message(topic, b"%d" % n, key="k") for n in range(1500)], timeout=30)
        first = receive(deliveries, 1)
        until = time.monotonic() + 2
        while time.monotonic() < until:
            deliveries.keep_alive()
        assert 700 > ready_count(deliveries)
        rest = receive(deliveries, 1499)

    assert [b"%d" % n for n in range(1500)] == bodies(first + rest)


def test_one_unfinished_message_stops_its_partition_within_a_bound(broker, group, topic):
    """Others of the same partition are handed out up to a distance, and go on once it is finished."""
    with broker.subscribe(group) as deliveries:
        broker.publish([message(topic, b"%d" % n, key="k") for n in range(1200)], timeout=30)
        first = receive(deliveries, 1, settle=False)[0]
        receive(deliveries, 999)
        assert deliveries.receive(timeout=1) is None
        first.ack()
        receive(deliveries, 200)


def test_only_what_may_have_been_in_hand_before_says_so(broker, group, topic):
    """Beyond the distance that anybody may have reached, a message is certainly new."""
    with broker.subscribe(group) as deliveries:
        broker.publish([message(topic, b"%d" % n, key="k") for n in range(1100)], timeout=30)
        received = receive(deliveries, 1100)

    assert [1] * 1000 + [0] * 100 == [delivery.redeliveries for delivery in received]
    assert [f"{topic}[0]@{n}" for n in range(1100)] == [delivery.origin for delivery in received]


def test_who_comes_and_goes_costs_no_message(client, kafka_servers, group, kafka_topic):
    """One member, then two, then one: what is unfinished when partitions move is received again, nothing is skipped."""
    group = attrs.evolve(group, name=f"{group.name}-moves")
    wide = client.broker(kafka_servers, partitions=4, consumer_config=client.quick_groups)
    wide.apply_topology(group)
    wanted = [b"%d" % n for n in range(400)]
    finished: set[bytes] = set()
    one = Worker(wide.subscribe(group), finished)
    eventually(one.has_partitions, timeout=30)
    wide.publish([message(kafka_topic, body, key=body.decode()) for body in wanted[:200]], timeout=10)
    two = Worker(wide.subscribe(group), finished)
    try:
        eventually(lambda: two.has_partitions() and one.has_partitions(), timeout=30)
        wide.publish([message(kafka_topic, body, key=body.decode()) for body in wanted[200:]], timeout=10)
        one.leave()
        eventually(lambda: set(wanted) == finished, timeout=40)
    finally:
        one.leave()
        two.leave()
        wide.close()


def test_what_is_in_hand_when_a_group_is_shared_out_anew_comes_again(client, kafka_servers, group, kafka_topic):
    """To the next owner of its partition, even the same member: a client that reads on after it would lose it."""
    group = attrs.evolve(group, name=f"{group.name}-held")
    wide = client.broker(kafka_servers, partitions=4, consumer_config=client.quick_groups)
    wide.apply_topology(group)
    wanted = {b"%d" % n for n in range(40)}
    finished: set[bytes] = set()
    one = wide.subscribe(group)
    eventually(lambda: one.keep_alive() or one.has_joined)
    wide.publish([message(kafka_topic, body, key=body.decode()) for body in sorted(wanted)], timeout=10)
    held = receive(one, 40, settle=False)
    workers = [Worker(wide.subscribe(group), finished)]
    try:
        eventually(lambda: one.keep_alive() or (workers[0].has_partitions() and all(each.is_stale for each in held)))
        eventually(lambda: one.keep_alive() or has_partitions(one))
        workers.append(Worker(one, finished))
        eventually(lambda: wanted == finished)
    finally:
        for worker in workers:
            worker.leave()
        wide.close()


def test_only_dead_letters_up_to_the_first_one_that_is_left_are_removed(broker, group, topic):
    """Who settles a later one first sees it again next time."""
    broker.subscribe(group).close()
    broker.add_dead_letters([letter(topic, b"%d" % n) for n in range(3)], group, timeout=10)
    with broker.read_dead_letters(group) as dead:
        receive(dead, 3, settle=False)[1].ack()
    with broker.read_dead_letters(group) as dead:
        first, second, third = receive(dead, 3, settle=False)
        assert [b"0", b"1", b"2"] == bodies([first, second, third])
        second.ack()
        first.ack()
    with broker.read_dead_letters(group) as dead:
        assert [b"2"] == bodies(receive(dead, 1, settle=False))

    assert 1 == broker.backlog(group).dead


def test_a_group_that_never_was_waits_for_nothing(broker, group, topic):
    """It will begin at the end; what it has deferred is there from the beginning."""
    group = attrs.evolve(group, name=f"{group.name}-new")
    publish_texts(broker, topic, b"1", b"2")
    broker.defer([letter(topic, b"3")], group, after=1, timeout=10)
    backlog = broker.backlog(group)

    assert (0, 1, 0) == (sum(backlog.waiting.values()), backlog.delayed, backlog.dead)
    assert [f"{topic}[0]"] == list(backlog.waiting)


def test_a_place_with_too_few_partitions_is_different(client, kafka_servers, broker, group, topic):
    """It says what to do, and no subscription joins before that."""
    wide = client.broker(kafka_servers, partitions=3)

    item = next(item for item in wide.inspect_topology(group) if item.name.endswith(".retry.1"))
    assert "different" == item.state
    assert "--partitions 3" in item.trouble
    with pytest.raises(ConfigurationError, match="--partitions 3"):
        wide.subscribe(group)
    wide.close()


def test_who_is_to_declare_nothing_makes_no_topic(client, kafka_servers, group):
    """Joining a group whose places are missing fails and says which."""
    broker = client.broker(kafka_servers, creates_topics=False, declare=False, publish_timeout=1)

    with pytest.raises(ConfigurationError, match="there is no topic"):
        broker.subscribe(group)
    assert {"missing"} == {item.state for item in broker.inspect_topology(group)}
    broker.close()


def test_looking_after_a_broker_that_is_gone_is_an_error_in_time(client, group):
    """If no broker answers, each question is given up."""
    broker = client.broker(f"127.0.0.1:{free_port()}", publish_timeout=1)
    for ask in (broker.subscribe, broker.backlog):
        started = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            ask(group)
        assert 20 > time.monotonic() - started
    broker.close()


@pytest.mark.parametrize("fault", ["cut", "freeze"])
def test_a_member_finds_its_way_back(client, kafka_behind_proxy, group, fault):
    """After the path was closed or died silently, receiving says so or continues within thirty seconds."""
    server, proxy = kafka_behind_proxy
    broker = client.broker(server.servers, partitions=1, consumer_config=client.quick_groups)
    broker.apply_topology(group)
    with broker.subscribe(group) as deliveries:
        publish_texts(broker, group.topics[0], b"1")
        receive(deliveries, 1)
        getattr(proxy, fault)()
        eventually(lambda: is_unreachable(deliveries), timeout=30)
        proxy.restore()
        publish_texts(broker, group.topics[0], b"2")
        again = eventually(lambda: receive_or_none(deliveries), timeout=30)
    broker.close()

    assert again.message.body in {b"1", b"2"}


def receive_or_none(deliveries):
    try:
        return deliveries.receive(timeout=0.2)
    except BrokerUnavailable:
        return None


class Worker:
    """Receives a few messages at a time, finishes the latest first, and leaves with those that are unfinished."""

    def __init__(self, subscription: Any, finished: set[bytes]) -> None:
        self._subscription = subscription
        self._finished = finished
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def has_partitions(self) -> bool:
        return has_partitions(self._subscription)

    def leave(self) -> None:
        self._end.set()
        self._thread.join(20)

    def _work(self) -> None:
        hand: list[Any] = []
        while not self._end.is_set():
            delivery = self._subscription.receive(timeout=0.1)
            if delivery is not None:
                hand.append(delivery)
            if delivery is None or len(hand) > 10:
                for each in reversed(hand):
                    if not each.is_stale:
                        self._finished.add(each.message.body)
                        each.ack()
                hand.clear()
        self._subscription.close()
