"""Publishing to Kafka: what it looks like on the wire, and what becomes of bad messages."""

from __future__ import annotations

import logging
import threading
import time

import attrs
import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event, from_structured_event
from kafka import KafkaConsumer, TopicPartition

from cqrs_sync import NotificationEvent
from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.context import annotate
from cqrs_sync.errors import (
    BrokerUnavailable,
    EventNotSerializable,
    MessageRejected,
)
from cqrs_sync.integrations.kafka import KafkaBroker
from cqrs_sync.serializer import JsonSerializer
from cqrs_sync.testing.contracts.broker import message
from tests.brokers.kafka_contract import LATE, KafkaPublishing, failures_of
from tests.servers import free_port
from tests.waiting import eventually

pytestmark = pytest.mark.broker

PASSWORD = "S3cr3t-d41d8cd9"  # noqa: S105 -- of nobody


@attrs.frozen
class OrderPlaced(NotificationEvent, topic="orders", name="order.placed", version="2", key="order_id"):
    order_id: str
    amount: object


@pytest.fixture
def broker(kafka_servers):
    broker = KafkaBroker(kafka_servers)
    yield broker
    broker.close()


@pytest.fixture
def scripted_broker(scripted):
    broker = KafkaBroker(scripted.servers, allow_auto_create_topics=False)
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
    """
    On the wire it is CloudEvents 1.0 in binary mode, with trace, correlation, key and version.
    """
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with annotate(correlationid="c-1", causationid="e-0", traceparent=trace):
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
    """
    Structured mode is one JSON object, with its content type as the only header.
    """
    sent = JsonSerializer(source="/shop", structured=True).dump(OrderPlaced("o-1", 3))
    broker.publish([attrs.evolve(sent, topic=kafka_topic)])

    record = only_record(kafka_servers, kafka_topic)

    assert [("content-type", b"application/cloudevents+json")] == record.headers
    event = from_structured_event(as_sdk_sees(record))
    assert {"order_id": "o-1", "amount": 3} == event.get_data()
    assert (sent.id, b"o-1") == (event.get_id(), record.key)


def test_an_event_that_is_no_json_never_reaches_the_broker():
    """
    What cannot be serialised is refused before it is a message.
    """
    with pytest.raises(EventNotSerializable, match="OrderPlaced"):
        JsonSerializer().dump(OrderPlaced("o-1", object()))


def test_a_topic_that_does_not_exist_is_refused_by_name(scripted, scripted_broker):
    """
    Where the broker makes no topics, an unknown one fails its messages and nobody else's, within two seconds.
    """
    lost, good = message("unknown"), message("known", b"good")
    started = time.monotonic()

    failures = failures_of(scripted_broker, [lost, good], timeout=10)

    assert [lost] == [failed for failed, _ in failures]
    assert isinstance(failures[0][1], MessageRejected)
    assert "'unknown'" in str(failures[0][1])
    assert [b"good"] == scripted.written
    assert scripted.may_make_topics is False
    assert 2 + LATE > time.monotonic() - started


def test_the_broker_is_not_asked_for_ever_about_a_topic_it_does_not_have(scripted, scripted_broker):
    """
    After the call has failed, metadata requests no longer name the topic.
    """
    failures_of(scripted_broker, [message("unknown")], timeout=10)
    asked = len(scripted.asked)

    for n in range(10):
        scripted_broker.publish([message("known", b"%d" % n)])
    failures_of(scripted_broker, [message("other")], timeout=1)

    assert asked + 1 >= len([topic for topic in scripted.asked if topic == "unknown"])


@pytest.mark.parametrize("security", ["url", "options"])
def test_a_wrong_password_fails_at_once_and_is_never_shown(scripted, caplog, security):
    """
    The reason is named without waiting for the deadline; the password is in no error, repr or log, at DEBUG neither.
    """
    caplog.set_level(logging.DEBUG)
    scripted.password_error = 58
    options = {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "me",
        "sasl_plain_password": PASSWORD,
    }
    broker = (
        KafkaBroker(scripted.servers, **options)
        if security == "options"
        else KafkaBroker.from_url(f"kafka://me:{PASSWORD}@{scripted.servers}")
    )
    started = time.monotonic()

    failures = failures_of(broker, [message("known")], timeout=10)
    broker.close()

    assert isinstance(failures[0][1], BrokerUnavailable)
    assert "SaslAuthenticationFailedError" in str(failures[0][1])
    assert 2 + LATE > time.monotonic() - started
    assert "SaslAuthenticateRequest" in caplog.text
    for shown in (caplog.text, repr(broker), repr(failures), str(failures[0][1].__cause__), repr(broker._settings)):
        assert PASSWORD not in shown


def test_a_host_that_does_not_exist_is_an_error_that_names_it():
    """
    A name nobody knows is told, with the way out.
    """
    broker = KafkaBroker("no-such-host.invalid:9092")

    failures = failures_of(broker, [message("orders")], timeout=1)
    broker.close()

    assert isinstance(failures[0][1], BrokerUnavailable)
    assert "no-such-host.invalid" in str(failures[0][1])


def test_nothing_is_left_of_a_closed_broker(kafka_servers, kafka_topic):
    """
    No thread survives `close`.
    """
    before = set(threading.enumerate())
    broker = KafkaBroker(kafka_servers)
    broker.publish([message(kafka_topic)])
    assert set(threading.enumerate()) - before
    broker.close()

    eventually(lambda: not set(threading.enumerate()) - before)


def test_nothing_is_left_of_a_broker_that_never_connected():
    """
    Closing ends the attempt to connect as well.
    """
    before = set(threading.enumerate())
    broker = KafkaBroker(f"127.0.0.1:{free_port()}")
    failures_of(broker, [message("orders")], timeout=0.2)
    broker.close()

    eventually(lambda: not set(threading.enumerate()) - before, timeout=20)


def test_an_empty_body_is_a_message(broker, kafka_servers, kafka_topic):
    """
    A message of no bytes is confirmed and is no tombstone.
    """
    broker.publish([OutgoingMessage(id="1", topic=kafka_topic, type="t", body=b"")])

    assert b"" == only_record(kafka_servers, kafka_topic).value


class TestPublishing(KafkaPublishing):
    broker_class = KafkaBroker
    one_by_one = {"enable_idempotence": False, "batch_size": 0}  # noqa: RUF012 -- nobody changes it
    refused = "ECONNREFUSED"
