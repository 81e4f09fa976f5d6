"""What a ConfluentKafkaBroker can be told, and how it says that it was told something wrong."""

from __future__ import annotations

import logging

import pytest
from confluent_kafka import Consumer, Producer

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
from cqrs_sync.integrations.confluent.settings import (
    CONSUMER_ONLY,
    PRODUCER_ONLY,
    SHARED,
    ConfluentSettings,
    LibrdkafkaLog,
    _has,
)

PASSWORD = "p@ss:w/rd"  # noqa: S105 -- of nobody


def settings(servers_or_url="127.0.0.1:9092", publish_timeout=5.0, *, producer=(), consumer=(), **shared):
    shared = {name.replace("_", "."): value for name, value in shared.items()}
    return ConfluentSettings.of(
        servers_or_url, publish_timeout, shared=shared, producer=dict(producer), consumer=dict(consumer)
    )


@pytest.mark.parametrize(
    ("servers_or_url", "servers"),
    [
        ("one:1", ("one:1",)),
        ("one:1, two:2", ("one:1", "two:2")),
        (["one:1", "two:2"], ("one:1", "two:2")),
        ("kafka://one:1,two:2", ("one:1", "two:2")),
        ("kafka://one:1/", ("one:1",)),
        ("kafkas://user:password@one:1?session.timeout.ms=1", ("one:1",)),
        ("kafka://[::1]:1", ("[::1]:1",)),
    ],
)
def test_servers_are_named_in_any_of_the_usual_ways(servers_or_url, servers):
    """
    A string, a list, or a URL, as for KafkaBroker.
    """
    made = settings(servers_or_url)

    assert servers == made.servers
    assert ",".join(servers) == made.producer["bootstrap.servers"] == made.consumer["bootstrap.servers"]


@pytest.mark.parametrize(
    ("url", "protocol"),
    [
        ("kafka://one", "plaintext"),
        ("kafka://me:x@one", "sasl_plaintext"),
        ("kafkas://one", "ssl"),
        ("kafkas://me:x@one", "sasl_ssl"),
    ],
)
def test_the_scheme_and_the_credentials_say_how_to_connect(url, protocol):
    """
    `kafkas` is TLS, a user is SASL.
    """
    assert protocol == settings(url).producer["security.protocol"] == settings(url).consumer["security.protocol"]


def test_a_url_carries_credentials_and_options():
    """
    Escapes are undone, and options go to the clients that know them.
    """
    made = settings(
        "kafkas://me%40home:p%40ss%3Aw%2Frd@one:1?sasl.mechanism=SCRAM-SHA-512&session.timeout.ms=2000"
        "&enable.ssl.certificate.verification=false&linger.ms=3"
    )

    for client in (made.producer, made.consumer):
        assert "SCRAM-SHA-512" == client["sasl.mechanism"]
        assert ("me@home", PASSWORD) == (client["sasl.username"], client["sasl.password"])
        assert "false" == client["enable.ssl.certificate.verification"]
    assert ("2000", "3") == (made.consumer["session.timeout.ms"], made.producer["linger.ms"])
    assert not {"session.timeout.ms"} & made.producer.keys()
    assert not {"linger.ms"} & made.consumer.keys()


def test_what_was_not_confirmed_in_time_is_not_sent_later():
    """
    librdkafka gives up when the caller does, unless it is told otherwise.
    """
    assert 2.0 == settings(publish_timeout=2.0).delivery_timeout
    assert 9.0 == settings(publish_timeout=2.0, producer={"message.timeout.ms": 9000}).delivery_timeout
    assert 9.0 == settings(publish_timeout=2.0, producer={"delivery.timeout.ms": "9000"}).delivery_timeout
    assert 2000 == settings(publish_timeout=2.0).producer["message.timeout.ms"]


def test_safety_is_on_unless_it_is_turned_off():
    """
    All replicas confirm; whoever wants less says so.
    """
    assert ("all", True) == (settings().producer["acks"], settings().producer["enable.idempotence"])
    assert settings(enable_idempotence=False).producer["enable.idempotence"] is False
    assert settings().consumer["enable.auto.offset.store"] is False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sasl_passwort": PASSWORD}, "did you mean 'sasl.password'"),
        ({"producer": {"linger_ms": 1}}, "did you mean 'linger.ms'"),
        ({"producer": {"session.timeout.ms": 1}}, "'session.timeout.ms' is for consumers only"),
        ({"consumer": {"linger.ms": 1}}, "'linger.ms' is for producers only"),
        ({"group_id": "g"}, "argument of subscribe"),
        ({"enable_auto_commit": True}, "finished messages only"),
        ({"producer": {"linger.ms": PASSWORD}}, "queue.buffering.max.ms"),
        ({"producer": {"compression.type": PASSWORD}}, "compression.codec"),
        ({"servers_or_url": f"amqp://me:{PASSWORD}@one"}, "amqp:// is not Kafka"),
        ({"servers_or_url": "kafka://"}, "names no host"),
        ({"ssl_ca_location": "/no/such/file.pem"}, "ssl.ca.location names no file"),
    ],
)
def test_a_wrong_option_is_refused_in_words_without_its_value(arguments, words):
    """
    The error names the option and the way out, and no secret, before anything connects.
    """
    with pytest.raises(ConfigurationError, match=words) as caught:
        settings(**arguments)

    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("name", sorted(CONSUMER_ONLY | PRODUCER_ONLY | SHARED))
def test_hints_name_options_that_exist(name):
    """
    What we would suggest, librdkafka knows.
    """
    client = Consumer if name in CONSUMER_ONLY else Producer

    assert _has(client, name)


def test_a_broker_shows_where_it_connects_and_nothing_secret():
    """
    Its repr has the servers and not the password.
    """
    broker = ConfluentKafkaBroker.from_url("kafka://me:hidden@one:1,two:2", publish_timeout=3)

    assert "ConfluentKafkaBroker('one:1,two:2', publish_timeout=3)" == repr(broker)


def test_lines_that_say_the_same_are_said_once(caplog):
    """
    Lines that differ in their numbers only are one line, what is asked for by `debug` is not touched, secrets are.
    """
    caplog.set_level(logging.DEBUG)
    lines = LibrdkafkaLog([PASSWORD])
    for port in range(20):
        lines.log(logging.ERROR, "%s [%s] %s", "FAIL", "rdkafka#1", f"connect to port {port} refused")
        lines.log(logging.DEBUG, "%s [%s] %s", "AUTH", "rdkafka#1", f"with {PASSWORD}")

    assert [1, 20] == [sum(one.levelno == level for one in caplog.records) for level in (logging.ERROR, logging.DEBUG)]
    assert PASSWORD not in caplog.text


def test_lines_held_back_are_counted(caplog, monkeypatch):
    """
    The next line of a kind tells how many there were in between.
    """
    monkeypatch.setattr("cqrs_sync.retry._QUIET", 60.0)
    lines = LibrdkafkaLog([])
    for _ in range(3):
        lines.log(logging.ERROR, "%s", "refused")
    monkeypatch.setattr("cqrs_sync.retry._QUIET", 0.0)
    lines.log(logging.ERROR, "%s", "refused")

    assert ["refused", "refused (and 2 more like it)"] == [record.getMessage() for record in caplog.records]
