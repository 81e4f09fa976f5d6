"""What a ConfluentKafkaBroker is told: servers, credentials and options of librdkafka."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import attrs
from confluent_kafka import Consumer, KafkaException, Producer

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.integrations.confluent.failures import configuration_error
from cqrs_sync.integrations.confluent.lines import Lines
from cqrs_sync.integrations.confluent.options import CONSUMER_ONLY, PRODUCER_ONLY, SECRETS, SHARED
from cqrs_sync.kafka.address import KafkaAddress

_REPORTS = "every report is looked at, and PublishFailed tells of them"
_OFFSETS = "offsets are committed for finished messages only"
_LOG = "librdkafka's lines go to the logger of this package"
_SERVERS = "servers are the first argument"
#: Options that cannot be passed on, and why.
_OURS = {
    "auto.commit.enable": _OFFSETS,
    "auto.offset.reset": "a group starts where its first subscription found the end of the topic",
    "bootstrap.servers": _SERVERS,
    "delivery.report.only.error": _REPORTS,
    "enable.auto.commit": _OFFSETS,
    "enable.auto.offset.store": _OFFSETS,
    "error_cb": "errors come out of publish() and receive()",
    "group.id": "the group is an argument of subscribe()",
    "log.queue": _LOG,
    "logger": _LOG,
    "metadata.broker.list": _SERVERS,
    "on_commit": _OFFSETS,
    "on_delivery": _REPORTS,
    "transactional.id": "Kafka's transactions have no part in publishing",
}
#: librdkafka has it from 2.11 on.
_RECOVERY = "metadata.recovery.strategy"
#: librdkafka reads its options in their order and stops at the first one that is wrong: this one.
_END = "cqrs.sync.end.of.options"


@attrs.frozen
class Settings:
    """Where the brokers are, and the complete options for both kinds of client."""

    servers: tuple[str, ...]
    # They may hold passwords.
    producer: Mapping[str, Any] = attrs.field(repr=False)
    consumer: Mapping[str, Any] = attrs.field(repr=False)

    @classmethod
    def of(
        cls,
        servers_or_url: str | Sequence[str],
        publish_timeout: float,
        *,
        shared: Mapping[str, Any],
        producer: Mapping[str, Any],
        consumer: Mapping[str, Any],
    ) -> Self:
        """Raise ConfigurationError, without any value in it, for what librdkafka would not take."""
        address = KafkaAddress.of(servers_or_url)
        servers, both = address.servers, {**_options_of(address), **shared}
        for_producer = {**{name: value for name, value in both.items() if name not in CONSUMER_ONLY}, **producer}
        for_consumer = {**{name: value for name, value in both.items() if name not in PRODUCER_ONLY}, **consumer}
        _check(for_producer, Producer, CONSUMER_ONLY, "consumers")
        _check(for_consumer, Consumer, PRODUCER_ONLY, "producers")
        common = {
            "bootstrap.servers": ",".join(servers),
            "client.id": "cqrs-sync",
            "enable.metrics.push": False,
            "logger": Lines(
                str(value) for name, value in [*for_producer.items(), *for_consumer.items()] if name in SECRETS
            ),
            "reconnect.backoff.max.ms": 500,
            "reconnect.backoff.ms": 20,
            "socket.keepalive.enable": True,
        }
        if _has(Producer, _RECOVERY):
            # Starting from the first servers again, after one lost connection, takes up to two seconds;
            # where nobody answers, the doctor makes a producer that does just that.
            common[_RECOVERY] = "none"
        return cls(
            servers,
            producer={**common, **_producer_options(publish_timeout, for_producer)},
            consumer={**common, **_consumer_options(publish_timeout, for_consumer)},
        )

    @property
    def delivery_timeout(self) -> float:
        """Seconds after which librdkafka gives a message up."""
        return _delivery_timeout_ms(self.producer) / 1000


def _options_of(address: KafkaAddress) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if address.security_protocol is not None:
        options["security.protocol"] = address.security_protocol.lower()
    if address.credentials is not None:
        options["sasl.mechanism"] = "PLAIN"
        options["sasl.username"], options["sasl.password"] = address.credentials
    # librdkafka reads numbers and booleans from their text.
    options.update(address.options)
    return options


def _check(options: Mapping[str, Any], client: Any, foreign: frozenset[str], others: str) -> None:
    for name, value in options.items():
        if name in _OURS:
            raise ConfigurationError(f"the option {name!r} cannot be set: {_OURS[name]}")
        if name in foreign:
            raise ConfigurationError(f"the option {name!r} is for {others} only")
        if not _has(client, name):
            near = difflib.get_close_matches(name, [*CONSUMER_ONLY, *PRODUCER_ONLY, *SHARED], n=1)
            hint = f", did you mean {near[0]!r}" if near else ""
            raise ConfigurationError(f"librdkafka has no option {name!r}{hint}")
        if name.endswith(".location") and value != "probe" and not Path(value).exists():
            raise ConfigurationError(f"{name} names no file: {value!r}")
    error = _objection(client, options)
    if error is not None:
        raise configuration_error(error) from error


def _has(client: Any, name: str) -> bool:
    error = _objection(client, {name: ""})
    return error is None or "No such configuration property" not in str(error)


def _objection(client: Any, options: Mapping[str, Any]) -> BaseException | None:
    """Return what librdkafka has against these options. Nothing is made: the last one is always wrong."""
    try:
        client({"group.id": "none", **options, _END: ""} if client is Consumer else {**options, _END: ""})
    except KafkaException as error:
        return None if _END in error.args[0].str() else error
    except (TypeError, ValueError) as error:
        return error
    raise AssertionError(f"librdkafka knows {_END}")


def _producer_options(publish_timeout: float, given: Mapping[str, Any]) -> dict[str, Any]:
    # What was reported as failed must not be sent half a minute later.
    delivery = _delivery_timeout_ms({"message.timeout.ms": max(10, _ms(publish_timeout)), **given})
    makes_topics = str(given.get("allow.auto.create.topics", True)).lower() == "true"
    return {
        "acks": "all",
        "enable.idempotence": True,
        "linger.ms": 0,
        "message.max.bytes": 1_048_576,
        "message.timeout.ms": delivery,
        # As kafka-python and Java do it: a key has one partition, whoever publishes.
        "partitioner": "murmur2_random",
        "socket.connection.setup.timeout.ms": max(1000, delivery),
        "socket.timeout.ms": min(delivery, 300_000),
        # How long a topic that nobody knows may still be on its way.
        "topic.metadata.propagation.max.ms": delivery // 2 if makes_topics else min(1000, delivery // 2),
        **given,
    }


def _consumer_options(publish_timeout: float, given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "allow.auto.create.topics": True,
        "auto.commit.interval.ms": 100,
        "socket.timeout.ms": min(max(5000, _ms(publish_timeout)), 300_000),
        **given,
        # Partitions that come later are read from their first message on: see Start.
        "auto.offset.reset": "earliest",
        # What is stored is committed, and the subscription stores what is finished.
        "enable.auto.commit": True,
        "enable.auto.offset.store": False,
    }


def _delivery_timeout_ms(options: Mapping[str, Any]) -> int:
    return int(options.get("delivery.timeout.ms", options["message.timeout.ms"]))


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
