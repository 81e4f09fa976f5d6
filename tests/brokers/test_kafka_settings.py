"""What a KafkaBroker can be told, and how it says that it was told something wrong."""

from __future__ import annotations

import pytest

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.integrations.kafka import KafkaBroker
from cqrs_sync.integrations.kafka.settings import KafkaSettings

PASSWORD = "p@ss:w/rd"  # noqa: S105 -- of nobody


def settings(servers_or_url="127.0.0.1:9092", publish_timeout=5.0, *, producer=(), consumer=(), **shared):
    return KafkaSettings.of(
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
        ("kafkas://user:password@one:1?session_timeout_ms=1", ("one:1",)),
        ("kafka://[::1]:1", ("[::1]:1",)),
    ],
)
def test_servers_are_named_in_any_of_the_usual_ways(servers_or_url, servers):
    """
    A string, a list, or a URL.
    """
    made = settings(servers_or_url)

    assert servers == made.servers
    assert list(servers) == made.producer["bootstrap_servers"] == made.consumer["bootstrap_servers"]


@pytest.mark.parametrize(
    ("url", "protocol"),
    [
        ("kafka://one", "PLAINTEXT"),
        ("kafka://me:x@one", "SASL_PLAINTEXT"),
        ("kafkas://one", "SSL"),
        ("kafkas://me:x@one", "SASL_SSL"),
    ],
)
def test_the_scheme_and_the_credentials_say_how_to_connect(url, protocol):
    """
    `kafkas` is TLS, a user is SASL.
    """
    assert protocol == settings(url).producer["security_protocol"] == settings(url).consumer["security_protocol"]


def test_a_url_carries_credentials_and_options():
    """
    Escapes are undone, numbers and booleans are what they look like, and go to the clients that know them.
    """
    made = settings(
        "kafkas://me%40home:p%40ss%3Aw%2Frd@one:1?sasl_mechanism=SCRAM-SHA-512&session_timeout_ms=2000"
        "&ssl_check_hostname=false&linger_ms=3"
    )

    for client in (made.producer, made.consumer):
        assert "SCRAM-SHA-512" == client["sasl_mechanism"]
        assert ("me@home", PASSWORD) == (client["sasl_plain_username"], client["sasl_plain_password"])
        assert client["ssl_check_hostname"] is False
    assert (2000, 3) == (made.consumer["session_timeout_ms"], made.producer["linger_ms"])
    assert not {"session_timeout_ms"} & made.producer.keys()
    assert not {"linger_ms"} & made.consumer.keys()


def test_what_was_not_confirmed_in_time_is_not_sent_later():
    """
    kafka-python gives up when the caller does, and so do its requests, unless it is told otherwise.
    """
    assert (2000, 2000) == times(settings(publish_timeout=2.0))
    assert (9000, 9000) == times(settings(publish_timeout=2.0, producer={"request_timeout_ms": 9000}))
    assert (9000, 8990) == times(settings(producer={"delivery_timeout_ms": 9000, "linger_ms": 10}))
    assert (9000, 300) == times(settings(producer={"delivery_timeout_ms": 9000, "request_timeout_ms": 300}))


def times(made):
    return made.producer["delivery_timeout_ms"], made.producer["request_timeout_ms"]


def test_safety_is_on_unless_it_is_turned_off():
    """
    All replicas confirm; whoever wants less says so.
    """
    assert "all" == settings().producer["acks"]
    assert "enable_idempotence" not in settings().producer  # kafka-python's own default is to have it
    assert settings(enable_idempotence=False).producer["enable_idempotence"] is False
    assert settings().consumer["enable_auto_commit"] is False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sasl_plain_passwort": PASSWORD}, "did you mean 'sasl_plain_password'"),
        ({"producer": {"session_timeout_ms": 1}}, "session_timeout_ms"),
        ({"consumer": {"linger_ms": 1}}, "linger_ms"),
        ({"group_id": "g"}, "argument of subscribe"),
        ({"value_serializer": str}, "as bytes"),
        ({"servers_or_url": f"amqp://me:{PASSWORD}@one"}, "amqp:// is not Kafka"),
        ({"servers_or_url": "kafka://"}, "names no host"),
        ({"ssl_cafile": "/no/such/file.pem"}, "ssl_cafile names no file"),
        ({"producer": {"delivery_timeout_ms": 1, "request_timeout_ms": 2}}, "delivery_timeout_ms must be"),
    ],
)
def test_a_wrong_option_is_refused_in_words_without_its_value(arguments, words):
    """
    The error names the option and the way out, and no secret.
    """
    with pytest.raises(ConfigurationError, match=words) as caught:
        settings(**arguments)

    assert PASSWORD not in str(caught.value)


def test_a_broker_shows_where_it_connects_and_nothing_secret():
    """
    Its repr has the servers and not the password.
    """
    broker = KafkaBroker.from_url("kafka://me:hidden@one:1,two:2", publish_timeout=3)

    assert "KafkaBroker('one:1,two:2', publish_timeout=3)" == repr(broker)
