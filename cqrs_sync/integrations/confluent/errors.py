"""Errors of librdkafka as ours: the message is at fault, the producer is, or the broker is."""

# librdkafka's own error codes begin with an underscore.
# ruff: noqa: SLF001

from __future__ import annotations

import re
import time

from confluent_kafka import KafkaError, KafkaException

from cqrs_sync.errors import BrokerUnavailable, ConfigurationError, DeliveryError, MessageRejected

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
