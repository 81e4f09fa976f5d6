"""What a broker for Kafka can be told, and how it says that it was told something wrong, with either client."""

from __future__ import annotations

import pytest

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.integrations.confluent.settings import delivery_timeout_ms, librdkafka_settings
from cqrs_sync.integrations.kafka.settings import kafka_python_settings

PASSWORD = "p@ss:w/rd"  # noqa: S105 -- not a real one


def kafka(url="127.0.0.1:9092", publish_timeout=5.0, *, shared=(), producer=(), consumer=()):
    options = {"shared": dict(shared), "producer": dict(producer), "consumer": dict(consumer)}
    return kafka_python_settings(url, publish_timeout, **options)


def confluent(url="127.0.0.1:9092", publish_timeout=5.0, *, shared=(), producer=(), consumer=()):
    options = {"shared": dict(shared), "producer": dict(producer), "consumer": dict(consumer)}
    return librdkafka_settings(url, publish_timeout, **options)


both = pytest.mark.parametrize("settings", [kafka, confluent])


@both
@pytest.mark.parametrize(
    ("url", "servers"),
    [
        ("one:1", ("one:1",)),
        ("one:1, two:2", ("one:1", "two:2")),
        (["one:1", "two:2"], ("one:1", "two:2")),
        ("kafka://one:1,two:2", ("one:1", "two:2")),
        ("kafka://one:1/", ("one:1",)),
        ("kafkas://user:password@one:1?client%2Eid=x", ("one:1",)),
        ("kafka://[::1]:1", ("[::1]:1",)),
    ],
)
def test_servers_are_named_in_any_of_the_usual_ways(settings, url, servers):
    """A string, a list, or a URL."""
    if settings is kafka and isinstance(url, str):
        url = url.replace("client%2Eid", "client_id")
    made = settings(url)

    named = list(servers) if settings is kafka else ",".join(servers)
    assert servers == made.servers
    assert named == option(made.producer, "bootstrap.servers") == option(made.consumer, "bootstrap.servers")


def option(options, name):
    return options[name] if name in options else options[name.replace(".", "_")]


@both
@pytest.mark.parametrize(
    ("url", "protocol"),
    [
        ("kafka://one", "PLAINTEXT"),
        ("kafka://me:x@one", "SASL_PLAINTEXT"),
        ("kafkas://one", "SSL"),
        ("kafkas://me:x@one", "SASL_SSL"),
    ],
)
def test_the_scheme_and_the_credentials_say_how_to_connect(settings, url, protocol):
    """`kafkas` is TLS, a user is SASL."""
    made = settings(url)

    assert [protocol] * 2 == [option(one, "security.protocol").upper() for one in (made.producer, made.consumer)]


def test_a_url_carries_credentials_and_options():
    """Escapes are undone, numbers and booleans are what they look like, and go to the clients that know them."""
    made = kafka(
        "kafkas://me%40home:p%40ss%3Aw%2Frd@one:1?sasl_mechanism=SCRAM-SHA-512&session_timeout_ms=2000"
        "&ssl_check_hostname=false&linger_ms=3"
    )

    for client in (made.producer, made.consumer):
        assert "SCRAM-SHA-512" == client["sasl_mechanism"]
        assert ("me@home", PASSWORD) == (client["sasl_plain_username"], client["sasl_plain_password"])
        assert client["ssl_check_hostname"] is False
    assert (2000, 3) == (made.consumer["session_timeout_ms"], made.producer["linger_ms"])
    assert "session_timeout_ms" not in made.producer
    assert "linger_ms" not in made.consumer


def test_a_url_carries_credentials_and_options_of_librdkafka():
    """librdkafka itself reads numbers and booleans from their text."""
    made = confluent(
        "kafkas://me%40home:p%40ss%3Aw%2Frd@one:1?sasl.mechanism=SCRAM-SHA-512&session.timeout.ms=2000"
        "&enable.ssl.certificate.verification=false&linger.ms=3"
    )

    for client in (made.producer, made.consumer):
        assert "SCRAM-SHA-512" == client["sasl.mechanism"]
        assert ("me@home", PASSWORD) == (client["sasl.username"], client["sasl.password"])
        assert "false" == client["enable.ssl.certificate.verification"]
    assert ("2000", "3") == (made.consumer["session.timeout.ms"], made.producer["linger.ms"])
    assert "session.timeout.ms" not in made.producer
    assert "linger.ms" not in made.consumer


def test_what_was_not_confirmed_in_time_is_not_sent_later():
    """The client gives up when the caller does, and so do its requests, unless it is told otherwise."""
    assert (2000, 2000) == times(kafka(publish_timeout=2.0))
    assert (9000, 9000) == times(kafka(publish_timeout=2.0, producer={"request_timeout_ms": 9000}))
    assert (9000, 8990) == times(kafka(producer={"delivery_timeout_ms": 9000, "linger_ms": 10}))
    assert (9000, 300) == times(kafka(producer={"delivery_timeout_ms": 9000, "request_timeout_ms": 300}))
    assert 2000 == delivery_timeout_ms(confluent(publish_timeout=2.0).producer)
    assert 9000 == delivery_timeout_ms(confluent(publish_timeout=2.0, producer={"message.timeout.ms": 9000}).producer)
    assert 9000 == delivery_timeout_ms(
        confluent(publish_timeout=2.0, producer={"delivery.timeout.ms": "9000"}).producer
    )
    assert 2000 == confluent(publish_timeout=2.0).producer["message.timeout.ms"]


def times(made):
    return made.producer["delivery_timeout_ms"], made.producer["request_timeout_ms"]


def test_safety_is_on_unless_it_is_turned_off():
    """All replicas confirm, unless the user asks for less."""
    assert "all" == kafka().producer["acks"] == confluent().producer["acks"]
    assert "enable_idempotence" not in kafka().producer  # kafka-python's own default is to have it
    assert kafka(shared={"enable_idempotence": False}).producer["enable_idempotence"] is False
    assert confluent().producer["enable.idempotence"] is True
    assert confluent(shared={"enable.idempotence": False}).producer["enable.idempotence"] is False
    assert kafka().consumer["enable_auto_commit"] is False
    assert confluent().consumer["enable.auto.offset.store"] is False


@pytest.mark.parametrize(
    ("settings", "arguments", "words"),
    [
        (kafka, {"shared": {"sasl_plain_passwort": PASSWORD}}, "did you mean 'sasl_plain_password'"),
        (kafka, {"producer": {"session_timeout_ms": 1}}, "session_timeout_ms"),
        (kafka, {"consumer": {"linger_ms": 1}}, "linger_ms"),
        (kafka, {"shared": {"group_id": "g"}}, "argument of subscribe"),
        (kafka, {"shared": {"value_serializer": str}}, "as bytes"),
        (kafka, {"url": f"amqp://me:{PASSWORD}@one"}, "amqp:// is not Kafka"),
        (kafka, {"url": f"http://me:{PASSWORD}@one"}, "http:// is not Kafka"),
        (kafka, {"url": ""}, "each server"),
        (kafka, {"url": []}, "or a list of"),
        (kafka, {"url": None}, "or a list of"),
        (kafka, {"url": [f"kafka://me:{PASSWORD}@one"]}, "write a URL as one string"),
        (kafka, {"url": "kafka://"}, "names no host"),
        (kafka, {"shared": {"ssl_cafile": "/no/such/file.pem"}}, "ssl_cafile names no file"),
        (kafka, {"producer": {"delivery_timeout_ms": 1, "request_timeout_ms": 2}}, "delivery_timeout_ms must be"),
        (confluent, {"shared": {"sasl.passwort": PASSWORD}}, "did you mean 'sasl.password'"),
        (confluent, {"producer": {"linger_ms": 1}}, "did you mean 'linger.ms'"),
        (confluent, {"producer": {"session.timeout.ms": 1}}, "'session.timeout.ms' is for consumers only"),
        (confluent, {"consumer": {"linger.ms": 1}}, "'linger.ms' is for producers only"),
        (confluent, {"shared": {"group.id": "g"}}, "argument of subscribe"),
        (confluent, {"shared": {"enable.auto.commit": True}}, "finished messages only"),
        (confluent, {"producer": {"linger.ms": PASSWORD}}, "queue.buffering.max.ms"),
        (confluent, {"producer": {"compression.type": PASSWORD}}, "compression.codec"),
        (confluent, {"url": f"amqp://me:{PASSWORD}@one"}, "amqp:// is not Kafka"),
        (confluent, {"url": "kafka://"}, "names no host"),
        (confluent, {"shared": {"ssl.ca.location": "/no/such/file.pem"}}, "ssl.ca.location names no file"),
    ],
)
def test_a_wrong_option_is_refused_in_words_without_its_value(settings, arguments, words):
    """The error names the option and the way out, and no secret, before anything connects."""
    with pytest.raises(ConfigurationError, match=words) as caught:
        settings(**arguments)

    assert PASSWORD not in str(caught.value)


def test_a_broker_shows_where_it_connects_and_nothing_secret(client):
    """Its repr has the servers and not the password."""
    broker = client.broker_class("kafka://me:hidden@one:1,two:2", publish_timeout=3)

    assert f"{client}('one:1,two:2', publish_timeout=3)" == repr(broker)
