"""The settings of a ConfluentKafkaBroker: servers, credentials, options of librdkafka, its log and errors."""

# librdkafka's own error codes begin with an underscore.
# ruff: noqa: SLF001

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

from cqrs_sync.errors import BrokerUnavailable, ConfigurationError, DeliveryError, MessageRejected
from cqrs_sync.kafka.settings import KafkaAddress, KafkaSettings, Options, milliseconds, refuse_reserved, unknown_option
from cqrs_sync.retry import LogThrottle

#: What a broker, or librdkafka in its place, answers that has looked at a message and will never accept it.
REFUSALS = frozenset(
    {
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_TIMESTAMP,
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.POLICY_VIOLATION,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
    }
)

#: The topic may not exist.
MISSING_TOPIC = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION})

#: The producer was fenced, has lost its sequence, or was ended: another one may send the same message.
LOST_PRODUCER = frozenset(
    {
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.INVALID_PRODUCER_ID_MAPPING,
        KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
        KafkaError.PRODUCER_FENCED,
        KafkaError.UNKNOWN_PRODUCER_ID,
        *(KafkaError._DESTROY, KafkaError._FATAL, KafkaError._FENCED, KafkaError._GAPLESS_GUARANTEE),
        *(KafkaError._INCONSISTENT, KafkaError._PURGE_INFLIGHT, KafkaError._PURGE_QUEUE),
    }
)

#: What no second attempt to connect will change.
REFUSED_CONNECTIONS = frozenset(
    {
        *(KafkaError.ILLEGAL_SASL_STATE, KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError.UNSUPPORTED_SASL_MECHANISM),
        KafkaError._AUTHENTICATION,
    }
)

#: What `Producer.produce` raises about its arguments; a UnicodeError is a ValueError.
_WRONG_ARGUMENTS = (OverflowError, TypeError, ValueError)

#: librdkafka quotes values, which may be secret.
_VALUE = re.compile(r'value "[^"]*"')


def delivery_error(error: BaseException | KafkaError, why: KafkaError | None = None) -> DeliveryError:
    """
    Return why a message was not confirmed; `why` is what the producer said last about its connections.

    Only a refusal is the fault of the message. An operator can mend all else, missing rights, a wrong configuration or
    an unknown error, and the message must not be given up meanwhile. librdkafka's error becomes the cause.
    """
    if isinstance(error, DeliveryError):
        return error
    code = code_of(error)
    kind = MessageRejected if code in REFUSALS or isinstance(error, _WRONG_ARGUMENTS) else BrokerUnavailable
    ours = kind(_describe(error, None if kind is MessageRejected else why))
    ours.__cause__ = error if isinstance(error, BaseException) else KafkaException(error)
    return ours


def connection_error(error: BaseException, servers: str, why: KafkaError | None = None) -> BrokerUnavailable:
    """Return why the broker cannot be reached; `error` becomes the cause."""
    ours = BrokerUnavailable(f"kafka at {servers} cannot be reached: {_describe(error, why)}")
    ours.__cause__ = error
    return ours


def configuration_error(error: BaseException) -> ConfigurationError:
    """Return what librdkafka says about its options, without the values that it quotes."""
    text = error.args[0].str() if isinstance(error, KafkaException) else str(error)
    return ConfigurationError(f"librdkafka does not accept its options: {_VALUE.sub('value', text)}")


def code_of(error: BaseException | KafkaError) -> int | None:
    """Return librdkafka's code of an error, None if it is another error."""
    if isinstance(error, KafkaException):
        error = error.args[0]
    return error.code() if isinstance(error, KafkaError) else None


def seconds_left(until: float) -> float:
    """Return how long a call of librdkafka may take; raises its own error for a broker that did not answer in time."""
    left = until - time.monotonic()
    if left <= 0:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "the broker did not answer in time"))
    return left


def _describe(error: BaseException | KafkaError, why: KafkaError | None) -> str:
    vendor = error.args[0] if isinstance(error, KafkaException) else error
    words = f"{vendor.name()}: {vendor.str()}" if isinstance(vendor, KafkaError) else f"{type(error).__name__}: {error}"
    return words if why is None else f"{words} ({why.str()})"


logger: logging.Logger = logging.getLogger("cqrs_sync.integrations.confluent.librdkafka")

_REPORTS = "every report is looked at, and PublishFailed tells of them"
_OFFSETS = "offsets are committed for finished messages only"
_LOG = "librdkafka's lines go to the logger of this package"
_SERVERS = "servers are the first argument"
#: Options that users cannot set, and why.
_RESERVED = {
    "auto.commit.enable": _OFFSETS,
    "auto.offset.reset": "a new group starts at the end that a topic has at its first subscription",
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
    "transactional.id": "publishing does not use the transactions of Kafka",
}
#: librdkafka has it from 2.11 on.
_RECOVERY = "metadata.recovery.strategy"
#: librdkafka reads its options in their order and stops at the first one that is wrong: this one.
_END = "cqrs.sync.end.of.options"
#: Kinds of log lines that are remembered.
_KINDS = 200
#: What differs between lines of one kind: numbers, and how often librdkafka itself has left a line out.
_VARYING = re.compile(r"\d+| \(after .*")

# The options that librdkafka 2.6 has, by the clients that understand them: for hints, and to give each client its own.
# librdkafka itself judges what it is given: a name that is missing here costs a hint.
CONSUMER_ONLY = frozenset(
    """
    auto.commit.interval.ms check.crcs coordinator.query.interval.ms enable.partition.eof fetch.error.backoff.ms
    fetch.max.bytes fetch.message.max.bytes fetch.min.bytes fetch.queue.backoff.ms fetch.wait.max.ms
    group.instance.id group.protocol group.protocol.type group.remote.assignor heartbeat.interval.ms isolation.level
    max.partition.fetch.bytes max.poll.interval.ms partition.assignment.strategy queued.max.messages.kbytes
    queued.min.messages session.timeout.ms
    """.split()  # noqa: SIM905
)
PRODUCER_ONLY = frozenset(
    """
    acks batch.num.messages batch.size compression.codec compression.level compression.type delivery.timeout.ms
    enable.gapless.guarantee enable.idempotence linger.ms message.send.max.retries message.timeout.ms partitioner
    queue.buffering.backpressure.threshold queue.buffering.max.kbytes queue.buffering.max.messages
    queue.buffering.max.ms queuing.strategy request.required.acks request.timeout.ms retries
    sticky.partitioning.linger.ms
    """.split()  # noqa: SIM905
)
SHARED = frozenset(
    """
    allow.auto.create.topics api.version.request api.version.request.timeout.ms broker.address.family
    broker.address.ttl broker.version.fallback client.dns.lookup client.id client.rack connections.max.idle.ms debug
    enable.metrics.push enable.sasl.oauthbearer.unsecure.jwt enable.ssl.certificate.verification
    internal.termination.signal log.connection.close log.thread.name log_level max.in.flight
    max.in.flight.requests.per.connection message.copy.max.bytes message.max.bytes metadata.max.age.ms oauth_cb
    plugin.library.paths receive.message.max.bytes reconnect.backoff.max.ms reconnect.backoff.ms retry.backoff.max.ms
    retry.backoff.ms sasl.kerberos.keytab sasl.kerberos.kinit.cmd sasl.kerberos.min.time.before.relogin
    sasl.kerberos.principal sasl.kerberos.service.name sasl.mechanism sasl.mechanisms sasl.oauthbearer.client.id
    sasl.oauthbearer.client.secret sasl.oauthbearer.config sasl.oauthbearer.extensions sasl.oauthbearer.method
    sasl.oauthbearer.scope sasl.oauthbearer.token.endpoint.url sasl.password sasl.username security.protocol
    socket.connection.setup.timeout.ms socket.keepalive.enable socket.max.fails socket.nagle.disable
    socket.receive.buffer.bytes socket.send.buffer.bytes socket.timeout.ms ssl.ca.certificate.stores ssl.ca.location
    ssl.ca.pem ssl.certificate.location ssl.certificate.pem ssl.cipher.suites ssl.crl.location ssl.curves.list
    ssl.endpoint.identification.algorithm ssl.key.location ssl.key.password ssl.key.pem ssl.keystore.location
    ssl.keystore.password ssl.providers ssl.sigalgs.list statistics.interval.ms stats_cb throttle_cb topic.blacklist
    topic.metadata.propagation.max.ms topic.metadata.refresh.fast.interval.ms topic.metadata.refresh.interval.ms
    topic.metadata.refresh.sparse
    """.split()  # noqa: SIM905
)
#: Options whose values are secret.
_SECRETS = ("sasl.password", "sasl.oauthbearer.client.secret", "ssl.key.password", "ssl.keystore.password")


def librdkafka_settings(
    url: str | Sequence[str], publish_timeout: float, shared: Options, producer: Options, consumer: Options
) -> KafkaSettings:
    """Raise ConfigurationError, without any value in it, for options that librdkafka does not accept."""
    address = KafkaAddress.of(url)
    servers, both = address.servers, {**_options_of(address), **shared}
    for_producer = {**{name: value for name, value in both.items() if name not in CONSUMER_ONLY}, **producer}
    for_consumer = {**{name: value for name, value in both.items() if name not in PRODUCER_ONLY}, **consumer}
    _check(for_producer, Producer, CONSUMER_ONLY, "consumers")
    _check(for_consumer, Consumer, PRODUCER_ONLY, "producers")
    common = {
        "bootstrap.servers": ",".join(servers),
        "client.id": "cqrs-sync",
        "enable.metrics.push": False,
        "logger": LibrdkafkaLog(
            str(value) for name, value in [*for_producer.items(), *for_consumer.items()] if name in _SECRETS
        ),
        "reconnect.backoff.max.ms": 500,
        "reconnect.backoff.ms": 20,
        "socket.keepalive.enable": True,
    }
    if _has(Producer, _RECOVERY):
        # Starting from the first servers again, after one lost connection, takes up to two seconds. If no broker
        # answers, the supervisor makes a producer that does just that.
        common[_RECOVERY] = "none"
    for_producer = {**common, **_producer_options(publish_timeout, for_producer)}
    for_consumer = {**common, **_consumer_options(publish_timeout, for_consumer)}
    return KafkaSettings(servers, for_producer, for_consumer, int(for_producer["message.max.bytes"]))


def new_client(kind: Any, options: Options) -> Any:
    """Make a client of librdkafka; raises ConfigurationError if librdkafka does not accept its options."""
    try:
        return kind(options)
    except (KafkaException, TypeError, ValueError) as error:
        raise configuration_error(error) from error


def delivery_timeout_ms(options: Options) -> int:
    """Return the milliseconds after which librdkafka gives up a message."""
    return int(options.get("delivery.timeout.ms", options["message.timeout.ms"]))


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


def _check(options: Options, client: Any, foreign: frozenset[str], others: str) -> None:
    for name, value in options.items():
        refuse_reserved(name, _RESERVED)
        if name in foreign:
            raise ConfigurationError(f"the option {name!r} is for {others} only")
        if not _has(client, name):
            raise unknown_option("librdkafka", name, [*CONSUMER_ONLY, *PRODUCER_ONLY, *SHARED])
        if name.endswith(".location") and value != "probe" and not Path(value).exists():
            raise ConfigurationError(f"{name} names no file: {value!r}")
    error = _objection(client, options)
    if error is not None:
        raise configuration_error(error) from error


def _has(client: Any, name: str) -> bool:
    error = _objection(client, {name: ""})
    return error is None or "No such configuration property" not in str(error)


def _objection(client: Any, options: Options) -> BaseException | None:
    """Return librdkafka's objection to these options. No client is made: the last option is always wrong."""
    try:
        client({"group.id": "none", **options, _END: ""} if client is Consumer else {**options, _END: ""})
    except KafkaException as error:
        return None if _END in error.args[0].str() else error
    except (TypeError, ValueError) as error:
        return error
    raise AssertionError(f"librdkafka knows {_END}")


def _producer_options(publish_timeout: float, given: Options) -> dict[str, Any]:
    # A message that was reported as failed must not be sent half a minute later.
    delivery = delivery_timeout_ms({"message.timeout.ms": max(10, milliseconds(publish_timeout)), **given})
    makes_topics = str(given.get("allow.auto.create.topics", True)).lower() == "true"
    return {
        "acks": "all",
        "enable.idempotence": True,
        "linger.ms": 0,
        "message.max.bytes": 1_048_576,
        "message.timeout.ms": delivery,
        # As kafka-python and Java do it: a key has one partition, whichever client publishes.
        "partitioner": "murmur2_random",
        "socket.connection.setup.timeout.ms": max(1000, delivery),
        "socket.timeout.ms": min(delivery, 300_000),
        # How long a topic that no broker knows may still be on its way.
        "topic.metadata.propagation.max.ms": delivery // 2 if makes_topics else min(1000, delivery // 2),
        **given,
    }


def _consumer_options(publish_timeout: float, given: Options) -> dict[str, Any]:
    return {
        "allow.auto.create.topics": True,
        "auto.commit.interval.ms": 100,
        "socket.timeout.ms": min(max(5000, milliseconds(publish_timeout)), 300_000),
        **given,
        # Partitions that are added later are read from their first message on: see InitialOffsets.
        "auto.offset.reset": "earliest",
        # librdkafka commits the offsets that are stored, and the subscription stores those that are finished.
        "enable.auto.commit": True,
        "enable.auto.offset.store": False,
    }


class LibrdkafkaLog:
    """
    What librdkafka gets for a logger.

    While no broker answers it says so ten times a second. The first of such lines is passed on, the next one half a
    minute later, with how many there were in between. Lines that `debug` asks for are all passed on. Secrets are
    censored.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = [secret for secret in secrets if secret]
        self._lock = threading.Lock()
        self._kinds: dict[str, LogThrottle] = {}

    def log(self, level: int, template: str, *arguments: object) -> None:
        """Pass a line on; confluent-kafka calls it in the thread that polls."""
        if not logger.isEnabledFor(level):
            return
        text = template % arguments
        for secret in self._secrets:
            text = text.replace(secret, "***")
        suffix = "" if level <= logging.DEBUG else self._suffix(_VARYING.sub("#", text))
        if suffix is not None:
            logger.log(level, "%s%s", text, suffix)

    def _suffix(self, kind: str) -> str | None:
        """Return how many lines of this kind were suppressed, None if this one is suppressed too."""
        with self._lock:
            if kind not in self._kinds and len(self._kinds) >= _KINDS:
                self._kinds.clear()
            return self._kinds.setdefault(kind, LogThrottle()).due()
