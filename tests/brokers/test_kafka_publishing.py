"""Publishing to Kafka with either client: bad messages, refusals, missing topics, wrong passwords, deadlines."""

from __future__ import annotations

import logging
import threading
import time

import attrs
import pytest

from cqrs_sync.broker import Group
from cqrs_sync.context import deadline
from cqrs_sync.errors import BrokerUnavailable, ClosedError, MessageRejected, PublishFailed
from cqrs_sync.testing.contracts.broker import message, receive
from tests.brokers.kafka_clients import CONFLUENT, KAFKA_PYTHON, LATE, failures_of
from tests.brokers.scripted_kafka import INVALID_RECORD, NO_ERROR
from tests.servers import free_port
from tests.servers.kafka import QUICK_GROUPS
from tests.waiting import eventually

pytestmark = pytest.mark.broker

NOT_ENOUGH_RIGHTS = 29
PASSWORD = "S3cr3t-d41d8cd9"  # noqa: S105 -- not a real one


@pytest.fixture
def broker(client, kafka_servers):
    broker = client.broker(kafka_servers)
    yield broker
    broker.close()


@pytest.fixture
def scripted_broker(client, scripted):
    broker = client.broker(scripted.servers, creates_topics=False)
    yield broker
    broker.close()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("topic", "no spaces, please"),
        ("topic", ""),
        ("topic", ".."),
        ("topic", "x" * 250),
        ("topic", None),
        ("topic", ["unhashable"]),
        ("key", "\ud800"),
        ("key", 7),
        ("attributes", {"id": None}),
        ("body", "text"),
        ("body", None),
    ],
)
def test_a_message_that_cannot_be_sent_fails_alone(client, broker, kafka_topic, field, value):
    """A bad topic, key, attribute or body is rejected with its reason, and its neighbours are confirmed."""
    bad = attrs.evolve(message(kafka_topic), **{field: value})

    failures = failures_of(broker, [message(kafka_topic), bad, message(kafka_topic)], timeout=10)

    assert [bad] == [failed for failed, _ in failures]
    assert isinstance(failures[0][1], MessageRejected)


def test_what_the_broker_refuses_fails_alone(client, scripted, scripted_broker):
    """
    One record the broker will not take is named; all others are confirmed, in order, and so is what comes after.

    A client fails everything that is under way, or in the same request, with the same error.
    """
    scripted.judge = lambda bodies: INVALID_RECORD if b"bad" in bodies else NO_ERROR
    batch = [message("known", body, key="k") for body in (b"1", b"2", b"bad", b"3")]

    failures = failures_of(scripted_broker, batch)
    scripted_broker.publish([message("known", b"4", key="k")])

    assert [batch[2]] == [failed for failed, _ in failures]
    assert isinstance(failures[0][1], MessageRejected)
    assert [b"1", b"2", b"3", b"4"] == scripted.written


def test_no_message_is_sent_again_after_its_successor(client, scripted):
    """Where a later message of its key has arrived, a refused one is reported instead of tried on its own."""
    refused_once = {b"1", b"2"}

    def judge(bodies):
        again = refused_once.isdisjoint(bodies)
        refused_once.difference_update(bodies)
        return NO_ERROR if again else INVALID_RECORD

    scripted.judge = judge
    broker = client.broker(scripted.servers, producer_config=client.one_by_one)
    batch = [message("known", b"1", key="k"), message("known", b"2"), message("known", b"3", key="k")]

    failures = failures_of(broker, batch)
    broker.close()

    assert [batch[0]] == [failed for failed, _ in failures]
    assert isinstance(failures[0][1], BrokerUnavailable)
    assert [b"3", b"2"] == scripted.written


def test_a_topic_that_is_made_meanwhile_is_used(client, scripted):
    """Where the broker may make topics, a new one is waited for as long as there is time."""
    broker = client.broker(scripted.servers)
    timer = threading.Timer(0.5, scripted.topics.add, args=["late"])
    timer.start()

    broker.publish([message("late", b"1"), message("late", b"2")], timeout=10)
    broker.close()

    assert [b"1", b"2"] == scripted.written


def test_an_unreachable_broker_fails_in_time(client):
    """Without a broker, the first call fails at its deadline with the reason, not after 30 or 60 seconds."""
    broker = client.broker(f"127.0.0.1:{free_port()}")
    started = time.monotonic()

    failures = failures_of(broker, [message("orders")], timeout=0.5)
    took = time.monotonic() - started
    broker.close(0.1)

    assert isinstance(failures[0][1], BrokerUnavailable)
    assert client.refused in str(failures[0][1])
    assert 0.5 + LATE > took


def test_the_nearest_deadline_counts(client):
    """A deadline of the request ends the call before its own timeout does."""
    broker = client.broker(f"127.0.0.1:{free_port()}")
    started = time.monotonic()

    with deadline(0.3):
        failures_of(broker, [message("orders")], timeout=20)
    took = time.monotonic() - started
    broker.close(0.1)

    assert 0.3 + LATE > took


def test_a_closed_broker_takes_nothing_more(client, kafka_servers, kafka_topic):
    """After `close`, publishing and subscribing are errors; a second `close` is none."""
    broker = client.broker(kafka_servers)
    broker.publish([message(kafka_topic)])
    broker.close()
    broker.close()

    with pytest.raises(ClosedError):
        broker.publish([])
    with pytest.raises(ClosedError):
        broker.subscribe(Group("late", [kafka_topic]))


def test_what_the_broker_refuses_fails_for_its_own_thread_only(client, scripted, scripted_broker):
    """A refused record of one thread costs no other thread a message."""
    scripted.judge = lambda bodies: INVALID_RECORD if b"bad" in bodies else NO_ERROR
    failed: list[object] = []

    def publish_good() -> None:
        try:
            for n in range(20):
                scripted_broker.publish([message("known", b"%d" % n)], timeout=20)
        except PublishFailed as error:
            failed.append(error)

    threads = [threading.Thread(target=publish_good) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        failures_of(scripted_broker, [message("known", b"bad")], timeout=20)
    for thread in threads:
        thread.join(60)

    assert [] == failed
    assert 80 <= len(scripted.written)


def test_a_connection_without_answers_is_given_up(client, scripted):
    """A path that died silently costs one call; the next one goes another way, long before any timeout."""
    broker = client.broker(scripted.servers, publish_timeout=30)
    broker.publish([message("known", b"1")])
    scripted.mute()

    failures_of(broker, [message("known", b"lost")], timeout=1.2)
    started = time.monotonic()
    broker.publish([message("known", b"2")])
    took = time.monotonic() - started
    broker.close(timeout=0.1)

    assert 1 + LATE > took


def test_after_the_deadline_nothing_is_sent(client, scripted, scripted_broker):
    """A call that has no time left fails without sending: what it reports as failed does not arrive later."""
    scripted_broker.publish([message("known", b"1")])

    failures = failures_of(scripted_broker, [message("known", b"late"), message("known", b"late")], timeout=0)
    scripted_broker.publish([message("known", b"2")])

    assert 2 == len(failures)
    assert [b"1", b"2"] == scripted.written


def test_both_clients_are_the_same_on_the_wire(kafka_servers, kafka_topic):
    """
    What librdkafka publishes, kafka-python receives as it was, and in the partition where it would put the key itself.
    """
    sent = [message(kafka_topic, b"%d" % n, key=f"k-{n}", correlationid="c") for n in range(8)]
    broker = CONFLUENT.broker(kafka_servers)
    other = KAFKA_PYTHON.broker(kafka_servers, consumer_config=QUICK_GROUPS)
    with other.subscribe(Group("wire", [kafka_topic])) as deliveries:
        broker.publish(sent, timeout=10)
        other.publish(sent, timeout=10)
        received = receive(deliveries, 16)
    broker.close()
    other.close()

    places: dict[str, set[int]] = {}
    for delivery in received:
        places.setdefault(delivery.message.key, set()).add(delivery.partition.key[1])
    assert {one.key for one in sent} == {key for key, partitions in places.items() if len(partitions) == 1}
    assert {(one.body, *sorted(one.attributes.items())) for one in sent} == {
        (one.message.body, *sorted(one.message.attributes.items())) for one in received
    }


def test_missing_rights_are_no_refusal(scripted, scripted_broker):
    """What an operator can mend is not held against the message."""
    scripted.judge = lambda bodies: NOT_ENOUGH_RIGHTS

    failures = failures_of(scripted_broker, [message("known")])

    assert isinstance(failures[0][1], BrokerUnavailable)


def test_a_topic_that_does_not_exist_is_refused_by_name(scripted, scripted_broker):
    """Where the broker creates no topics, an unknown one fails its messages and no others, within two seconds."""
    lost, good = message("unknown"), message("known", b"good")
    started = time.monotonic()

    failures = failures_of(scripted_broker, [lost, good], timeout=10)

    assert [lost] == [failed for failed, _ in failures]
    assert isinstance(failures[0][1], MessageRejected)
    assert "there is no topic 'unknown'" in str(failures[0][1])
    assert [b"good"] == scripted.written
    assert 2 + LATE > time.monotonic() - started


def test_a_topic_that_was_made_after_it_was_refused_is_used(scripted, scripted_broker):
    """Both clients remember that a topic is missing: librdkafka would refuse it for another five minutes."""
    failures_of(scripted_broker, [message("unknown")], timeout=10)
    failures_of(scripted_broker, [message("unknown")], timeout=10)
    scripted.topics.add("unknown")

    scripted_broker.publish([message("unknown", b"1"), message("unknown", b"2")], timeout=10)

    assert [b"1", b"2"] == scripted.written


def test_a_host_that_does_not_exist_is_an_error_that_names_it(client):
    """The error says which name cannot be found."""
    broker = client.broker("no-such-host.invalid:9092")

    failures = failures_of(broker, [message("orders")], timeout=1)
    broker.close(0.1)

    assert isinstance(failures[0][1], BrokerUnavailable)
    assert "no-such-host.invalid" in str(failures[0][1])


@pytest.mark.parametrize("security", ["url", "options"])
def test_a_wrong_password_fails_at_once_and_is_never_shown(client, scripted, caplog, capfd, security):
    """
    The reason is named without waiting for the deadline; the password is in no error, repr or log, at DEBUG neither.
    """
    caplog.set_level(logging.DEBUG)
    scripted.password_error = 58
    if security == "options":
        broker = client.broker(scripted.servers, **client.credentials("me", PASSWORD))
    else:
        broker = client.broker_class(f"kafka://me:{PASSWORD}@{scripted.servers}{client.debug}")
    started = time.monotonic()

    failures = failures_of(broker, [message("known")], timeout=10)
    broker.close()

    assert isinstance(failures[0][1], BrokerUnavailable)
    assert client.unauthenticated in str(failures[0][1])
    assert 2 + LATE > time.monotonic() - started
    assert client.authenticating in caplog.text
    cause = str(failures[0][1].__cause__)
    for shown in (caplog.text, capfd.readouterr().err, repr(broker), repr(failures), cause, repr(broker._settings)):
        assert PASSWORD not in shown


def test_nothing_is_left_of_a_closed_broker(broker, kafka_topic):
    """No thread survives `close`."""
    before = set(threading.enumerate())
    broker.publish([message(kafka_topic)], timeout=10)
    assert set(threading.enumerate()) - before
    broker.close()

    eventually(lambda: not set(threading.enumerate()) - before)


def test_nothing_is_left_of_a_broker_that_never_connected(client):
    """Closing ends the attempt to connect as well."""
    before = set(threading.enumerate())
    broker = client.broker(f"127.0.0.1:{free_port()}")
    failures_of(broker, [message("orders")], timeout=0.2)
    broker.close()

    eventually(lambda: not set(threading.enumerate()) - before, timeout=20)
