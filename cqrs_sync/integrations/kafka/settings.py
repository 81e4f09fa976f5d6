"""The settings of a KafkaBroker: servers, credentials and options of kafka-python."""

from __future__ import annotations

import socket
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, KafkaProducer

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.kafka.settings import KafkaAddress, KafkaSettings, Options, milliseconds, refuse_reserved, unknown_option

_BYTES = "messages are published and received as bytes"
#: Options that users cannot set, and why.
_RESERVED = {
    "auto_offset_reset": "a new group starts at the end that a topic has at its first subscription",
    "bootstrap_servers": "servers are the first argument",
    "enable_auto_commit": "offsets are committed for finished messages only",
    "group_id": "the group is an argument of subscribe()",
    "key_deserializer": _BYTES,
    "key_serializer": _BYTES,
    "transactional_id": "publishing does not use the transactions of Kafka",
    "value_deserializer": _BYTES,
    "value_serializer": _BYTES,
}
#: Joining a group may take minutes with nothing to send: the system checks whether the other side is there.
_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (
            ("TCP_KEEPIDLE", 10),
            ("TCP_KEEPINTVL", 3),
            ("TCP_KEEPCNT", 3),
            ("TCP_USER_TIMEOUT", 20_000),
        )
        if hasattr(socket, name)
    ),
]
_FILES = ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_crlfile")


def kafka_python_settings(
    url: str | Sequence[str], publish_timeout: float, shared: Options, producer: Options, consumer: Options
) -> KafkaSettings:
    """Raise ConfigurationError, without any value in it, for options that kafka-python does not accept."""
    address = KafkaAddress.of(url)
    servers, both = address.servers, {**_options_of(address), **shared}
    _check(both, {*KafkaProducer.DEFAULT_CONFIG, *KafkaConsumer.DEFAULT_CONFIG}, "kafka-python")
    _check(producer, KafkaProducer.DEFAULT_CONFIG, "the producer of kafka-python")
    _check(consumer, KafkaConsumer.DEFAULT_CONFIG, "the consumer of kafka-python")
    common = {
        "bootstrap_servers": list(servers),
        "bootstrap_timeout_ms": max(milliseconds(publish_timeout), 5000),
        "client_id": "cqrs-sync",
        # They cost a tenth of a send.
        "metrics_enabled": False,
        "reconnect_backoff_max_ms": 500,
    }
    for_producer = {**common, **_producer_options(publish_timeout, _merged(both, producer, KafkaProducer))}
    for_consumer = {**common, **_consumer_options(_merged(both, consumer, KafkaConsumer))}
    largest_record = for_producer.get("max_request_size", KafkaProducer.DEFAULT_CONFIG["max_request_size"])
    return KafkaSettings(servers, for_producer, for_consumer, largest_record)


def _options_of(address: KafkaAddress) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if address.security_protocol is not None:
        options["security_protocol"] = address.security_protocol
    if address.credentials is not None:
        options["sasl_mechanism"] = "PLAIN"
        options["sasl_plain_username"], options["sasl_plain_password"] = address.credentials
    options.update((name, _typed(name, value)) for name, value in address.options)
    return options


def _typed(name: str, text: str) -> Any:
    default = KafkaProducer.DEFAULT_CONFIG.get(name, KafkaConsumer.DEFAULT_CONFIG.get(name))
    if isinstance(default, bool):
        return text.lower() in {"1", "on", "true", "yes"}
    is_number = isinstance(default, (int, float)) or name.endswith(("_bytes", "_ms"))
    return int(text) if is_number and text.lstrip("-").isdigit() else text


def _check(options: Options, known: Collection[str], client: str) -> None:
    for name in options:
        refuse_reserved(name, _RESERVED)
        if name not in known:
            raise unknown_option(client, name, known)
    for name in _FILES:
        if options.get(name) and not Path(options[name]).is_file():
            raise ConfigurationError(f"{name} names no file: {options[name]!r}")


def _merged(both: Options, own: Options, client: Any) -> dict[str, Any]:
    return {**{name: value for name, value in both.items() if name in client.DEFAULT_CONFIG}, **own}


def _producer_options(publish_timeout: float, given: dict[str, Any]) -> dict[str, Any]:
    linger = given.get("linger_ms", 0)
    # A message that was reported as failed must not be sent half a minute later.
    delivery = given.get(
        "delivery_timeout_ms", max(milliseconds(publish_timeout), given.get("request_timeout_ms", 0) + linger)
    )
    options = {
        "acks": "all",
        "delivery_timeout_ms": delivery,
        "max_block_ms": milliseconds(publish_timeout),
        "request_timeout_ms": delivery - linger,
        **given,
    }
    if options["delivery_timeout_ms"] < options["request_timeout_ms"] + linger:
        raise ConfigurationError("delivery_timeout_ms must be at least request_timeout_ms + linger_ms")
    return options


def _consumer_options(given: dict[str, Any]) -> dict[str, Any]:
    return {
        # A connection that died silently is given up in time to be back within half a minute.
        "request_timeout_ms": 10_000 + given.get("fetch_max_wait_ms", 0),
        "socket_options": [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), *_KEEPALIVE],
        **given,
        # Partitions that are added later are read from their first message on: see InitialOffsets.
        "auto_offset_reset": "earliest",
        "enable_auto_commit": False,
    }
