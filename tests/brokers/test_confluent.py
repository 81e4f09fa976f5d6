"""Publishing to Kafka through librdkafka: bad messages, wrong passwords, lost producers, full queues."""

from __future__ import annotations

import logging
import threading
import time

import attrs
import pytest

from cqrs_sync.context import deadline
from cqrs_sync.errors import BrokerUnavailable, Closed, ConfigurationError, MessageRejected
from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
from cqrs_sync.integrations.kafka import KafkaBroker
from cqrs_sync.testing.contracts import message, receive
from tests.brokers.kafka_contract import LATE, KafkaPublishing, failures_of
from tests.brokers.scripted_kafka import INVALID_RECORD, NO_ERROR, ScriptedKafka
from tests.servers import free_port
from tests.servers.kafka import QUICK_GROUPS
from tests.waiting import eventually

pytestmark = pytest.mark.broker

PASSWORD = "S3cr3t-d41d8cd9"  # noqa: S105 -- of nobody
OUT_OF_ORDER = 45
PRODUCER_FENCED = 90
NOT_ENOUGH_RIGHTS = 29


@pytest.fixture
def broker(kafka_servers):
    broker = ConfluentKafkaBroker(kafka_servers)
    yield broker
    broker.close()


@pytest.fixture
def scripted():
    scripted = ScriptedKafka("known")
    yield scripted
    scripted.close()


@pytest.fixture
def scripted_broker(scripted):
    broker = ConfluentKafkaBroker(scripted.servers, config={"allow.auto.create.topics": False})
    yield broker
    broker.close()


def test_both_clients_are_the_same_on_the_wire(broker, kafka_servers, kafka_topic):
    """
    What librdkafka publishes, kafka-python receives as it was, and in the partition where it would put the key itself.
    """
    sent = [message(kafka_topic, b"%d" % n, key=f"k-{n}", correlationid="c") for n in range(8)]
    other = KafkaBroker(kafka_servers, consumer_config=QUICK_GROUPS)
    with other.subscribe(kafka_topic, group="wire") as deliveries:
        broker.publish(sent, timeout=10)
        other.publish(sent, timeout=10)
        received = receive(deliveries, 16)
    other.close()

    places: dict[str, set[int]] = {}
    for delivery in received:
        places.setdefault(delivery.message.key, set()).add(delivery.holding.place.partition)
    assert {one.key for one in sent} == {key for key, partitions in places.items() if len(partitions) == 1}
    assert {(one.body, *sorted(one.attributes.items())) for one in sent} == {
        (one.message.body, *sorted(one.message.attributes.items())) for one in received
    }


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
def test_a_message_that_cannot_be_sent_fails_alone(broker, kafka_topic, field, value):
    """
    A bad topic, key, attribute or body is rejected with its reason, and its neighbours are confirmed.
    """
    bad = attrs.evolve(message(kafka_topic), **{field: value})

    failures = failures_of(broker, [message(kafka_topic), bad, message(kafka_topic)], timeout=10)

    assert [bad] == [failed for failed, _ in failures]
    assert isinstance(failures[0][1], MessageRejected)


def test_an_illegal_topic_is_refused_without_asking_anybody():
    """
    It is the message's fault whether or not a broker is there to say so.
    """
    broker = ConfluentKafkaBroker(f"127.0.0.1:{free_port()}")
    started = time.monotonic()

    failures = failures_of(broker, [message("no spaces, please")])
    took = time.monotonic() - started
    broker.close()

    assert isinstance(failures[0][1], MessageRejected)
    assert LATE > took


def test_what_the_broker_refuses_fails_alone(scripted, scripted_broker):
    """
    One record the broker will not take is named; all others are confirmed, in order, and so is what comes after.

    librdkafka fails everything in the same request with the same error.
    """
    scripted.judge = lambda bodies: INVALID_RECORD if b"bad" in bodies else NO_ERROR
    batch = [message("known", body, key="k") for body in (b"1", b"2", b"bad", b"3")]

    failures = failures_of(scripted_broker, batch)
    scripted_broker.publish([message("known", b"4", key="k")])

    assert [batch[2]] == [failed for failed, _ in failures]
    assert isinstance(failures[0][1], MessageRejected)
    assert [b"1", b"2", b"3", b"4"] == scripted.written


def test_no_message_is_sent_again_after_its_successor(scripted):
    """
    Where a later message of its key has arrived, a refused one is reported instead of tried on its own.
    """
    refused_once = {b"1", b"2"}

    def judge(bodies):
        again = refused_once.isdisjoint(bodies)
        refused_once.difference_update(bodies)
        return NO_ERROR if again else INVALID_RECORD

    scripted.judge = judge
    broker = ConfluentKafkaBroker(
        scripted.servers, producer_config={"enable.idempotence": False, "batch.num.messages": 1, "max.in.flight": 1}
    )
    batch = [message("known", b"1", key="k"), message("known", b"2"), message("known", b"3", key="k")]

    failures = failures_of(broker, batch)
    broker.close()

    assert [batch[0]] == [failed for failed, _ in failures]
    assert isinstance(failures[0][1], BrokerUnavailable)
    assert [b"3", b"2"] == scripted.written


def test_missing_rights_are_no_refusal(scripted, scripted_broker):
    """
    What an operator can mend is not held against the message.
    """
    scripted.judge = lambda bodies: NOT_ENOUGH_RIGHTS

    failures = failures_of(scripted_broker, [message("known")])

    assert isinstance(failures[0][1], BrokerUnavailable)
    assert "TOPIC_AUTHORIZATION_FAILED" in str(failures[0][1])


@pytest.mark.parametrize("code", [OUT_OF_ORDER, PRODUCER_FENCED], ids=["fatal", "fenced"])
def test_a_producer_that_has_lost_its_place_is_replaced_within_the_call(scripted, scripted_broker, code):
    """
    A gap in the sequence, fatal for librdkafka, or a broker that fences the producer, costs no message and no order.
    """
    scripted_broker.publish([message("known", b"0", key="k")])
    lost = scripted_broker._together._producer
    # As a broker does it: from now on it takes nothing more from this producer.
    scripted.judge = lambda bodies: code if scripted._producer_ids == 1 else NO_ERROR

    scripted_broker.publish([message("known", b"%d" % n, key="k") for n in (1, 2, 3)], timeout=5)

    assert [b"0", b"1", b"2", b"3"] == scripted.written
    assert scripted_broker._together._producer is not lost
    eventually(lambda: not lost._thread.is_alive())


def test_a_producer_that_is_lost_all_the_time_is_an_error_in_time(scripted, scripted_broker):
    """
    Replacing it goes on until the deadline, and not beyond.
    """
    scripted.judge = lambda bodies: PRODUCER_FENCED
    started = time.monotonic()

    failures = failures_of(scripted_broker, [message("known")], timeout=1.5)

    assert isinstance(failures[0][1], BrokerUnavailable)
    assert 1.5 + LATE > time.monotonic() - started


def test_a_topic_that_does_not_exist_is_refused_by_name(scripted, scripted_broker):
    """
    Where the broker makes no topics, an unknown one fails its messages and nobody else's, within two seconds.
    """
    lost, good = message("unknown"), message("known", b"good")
    started = time.monotonic()

    failures = failures_of(scripted_broker, [lost, good], timeout=10)

    assert [lost] == [failed for failed, _ in failures]
    assert isinstance(failures[0][1], MessageRejected)
    assert "there is no topic 'unknown'" in str(failures[0][1])
    assert [b"good"] == scripted.written
    assert 2 + LATE > time.monotonic() - started


def test_a_topic_that_was_made_after_it_was_refused_is_used(scripted, scripted_broker):
    """
    librdkafka would refuse it for another five minutes.
    """
    failures_of(scripted_broker, [message("unknown")], timeout=10)
    failures_of(scripted_broker, [message("unknown")], timeout=10)
    scripted.topics.add("unknown")

    scripted_broker.publish([message("unknown", b"1"), message("unknown", b"2")], timeout=10)

    assert [b"1", b"2"] == scripted.written


def test_a_topic_that_is_made_meanwhile_is_used(scripted):
    """
    Where the broker may make topics, a new one is waited for.
    """
    broker = ConfluentKafkaBroker(scripted.servers)
    timer = threading.Timer(0.5, scripted.topics.add, args=["late"])
    timer.start()

    broker.publish([message("late", b"1"), message("late", b"2")], timeout=10)
    broker.close()

    assert [b"1", b"2"] == scripted.written


def test_a_full_queue_slows_the_caller_down(scripted):
    """
    More messages than librdkafka holds are sent all the same, in order, and the queue never holds more.
    """
    broker = ConfluentKafkaBroker(scripted.servers, producer_config={"queue.buffering.max.messages": 10})
    batch = [message("known", b"%d" % n, key="k") for n in range(300)]

    broker.publish(batch, timeout=20)
    broker.close()

    assert [one.body for one in batch] == scripted.written


def test_a_queue_that_stays_full_fails_in_time(scripted):
    """
    Where nothing leaves the queue, what finds no room is reported at the deadline.
    """
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


@pytest.mark.parametrize("security", ["url", "options"])
def test_a_wrong_password_fails_at_once_and_is_never_shown(scripted, caplog, capfd, security):
    """
    The reason is named without waiting for the deadline; the password is in no error, repr or log, at DEBUG neither.
    """
    caplog.set_level(logging.DEBUG)
    scripted.password_error = 58
    options = {
        "security.protocol": "sasl_plaintext",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "me",
        "sasl.password": PASSWORD,
    }
    broker = (
        ConfluentKafkaBroker(scripted.servers, config={**options, "debug": "all"})
        if security == "options"
        else ConfluentKafkaBroker.from_url(f"kafka://me:{PASSWORD}@{scripted.servers}?debug=all")
    )
    started = time.monotonic()

    failures = failures_of(broker, [message("known")], timeout=10)
    broker.close()

    assert isinstance(failures[0][1], BrokerUnavailable)
    assert "SASL authentication error" in str(failures[0][1])
    assert 2 + LATE > time.monotonic() - started
    assert "sasl.password" in caplog.text
    cause = str(failures[0][1].__cause__)
    for shown in (caplog.text, capfd.readouterr().err, repr(broker), repr(failures), cause, repr(broker._settings)):
        assert PASSWORD not in shown


def test_an_unreachable_broker_fails_in_time():
    """
    With nobody there, the first call fails at its deadline with the reason.
    """
    broker = ConfluentKafkaBroker(f"127.0.0.1:{free_port()}")
    started = time.monotonic()

    failures = failures_of(broker, [message("orders")], timeout=0.5)
    took = time.monotonic() - started
    broker.close(0.1)

    assert isinstance(failures[0][1], BrokerUnavailable)
    assert "Connection refused" in str(failures[0][1])
    assert 0.5 + LATE > took


def test_a_host_that_does_not_exist_is_an_error_that_names_it():
    """
    A name nobody knows is told, with the way out.
    """
    broker = ConfluentKafkaBroker("no-such-host.invalid:9092")

    failures = failures_of(broker, [message("orders")], timeout=1)
    broker.close(0.1)

    assert isinstance(failures[0][1], BrokerUnavailable)
    assert "no-such-host.invalid" in str(failures[0][1])


def test_the_nearest_deadline_counts():
    """
    A deadline of the request ends the call before its own timeout does.
    """
    broker = ConfluentKafkaBroker(f"127.0.0.1:{free_port()}")
    started = time.monotonic()

    with deadline(0.3):
        failures_of(broker, [message("orders")], timeout=20)
    took = time.monotonic() - started
    broker.close(0.1)

    assert 0.3 + LATE > took


def test_options_that_contradict_each_other_are_an_error_with_the_first_call(kafka_servers, kafka_topic):
    """
    librdkafka compares its options when a producer is made: what it says is a wrong configuration.
    """
    broker = ConfluentKafkaBroker(kafka_servers, producer_config={"acks": 1})

    with pytest.raises(ConfigurationError, match=r"acks.*all"):
        broker.publish([message(kafka_topic)])
    broker.close()


def test_a_closed_broker_takes_nothing_more(kafka_servers, kafka_topic):
    """
    After `close`, publishing and subscribing are errors; a second `close` is none.
    """
    broker = ConfluentKafkaBroker(kafka_servers)
    broker.publish([message(kafka_topic)])
    broker.close()
    broker.close()

    with pytest.raises(Closed):
        broker.publish([])
    with pytest.raises(Closed):
        broker.subscribe(kafka_topic, group="g")


class TestPublishing(KafkaPublishing):
    broker_class = ConfluentKafkaBroker
