"""Publishing to Kafka through librdkafka: bad messages, wrong passwords, lost producers, full queues."""

from __future__ import annotations

import logging
import time

import pytest

from cqrs_sync.errors import BrokerUnavailable, ConfigurationError, MessageRejected
from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
from cqrs_sync.integrations.kafka import KafkaBroker
from cqrs_sync.testing.contracts.broker import message, receive
from tests.brokers.kafka_contract import LATE, KafkaPublishing, failures_of
from tests.brokers.scripted_kafka import NO_ERROR
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
        places.setdefault(delivery.message.key, set()).add(delivery.partition.key[1])
    assert {one.key for one in sent} == {key for key, partitions in places.items() if len(partitions) == 1}
    assert {(one.body, *sorted(one.attributes.items())) for one in sent} == {
        (one.message.body, *sorted(one.message.attributes.items())) for one in received
    }


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
    lost = scripted_broker._publisher.batching._producer
    # As a broker does it: from now on it takes nothing more from this producer.
    scripted.judge = lambda bodies: code if scripted._producer_ids == 1 else NO_ERROR

    scripted_broker.publish([message("known", b"%d" % n, key="k") for n in (1, 2, 3)], timeout=5)

    assert [b"0", b"1", b"2", b"3"] == scripted.written
    assert scripted_broker._publisher.batching._producer is not lost
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


def test_a_host_that_does_not_exist_is_an_error_that_names_it():
    """
    A name nobody knows is told, with the way out.
    """
    broker = ConfluentKafkaBroker("no-such-host.invalid:9092")

    failures = failures_of(broker, [message("orders")], timeout=1)
    broker.close(0.1)

    assert isinstance(failures[0][1], BrokerUnavailable)
    assert "no-such-host.invalid" in str(failures[0][1])


def test_options_that_contradict_each_other_are_an_error_with_the_first_call(kafka_servers, kafka_topic):
    """
    librdkafka compares its options when a producer is made: what it says is a wrong configuration.
    """
    broker = ConfluentKafkaBroker(kafka_servers, producer_config={"acks": 1})

    with pytest.raises(ConfigurationError, match=r"acks.*all"):
        broker.publish([message(kafka_topic)])
    broker.close()


class TestPublishing(KafkaPublishing):
    broker_class = ConfluentKafkaBroker
    one_by_one = {"enable.idempotence": False, "batch.num.messages": 1, "max.in.flight": 1}  # noqa: RUF012 -- nobody changes it
    refused = "Connection refused"
