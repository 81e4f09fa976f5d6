"""Errors of librdkafka as ours: the message is at fault, the producer is, or the broker is."""

from __future__ import annotations

import re

from confluent_kafka import KafkaError, KafkaException

from cqrs_sync.errors import BrokerUnavailable, ConfigurationError, DeliveryError, MessageRejected

#: What a broker, or librdkafka in its place, says when it has looked at a message and will never take it.
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

#: There may be no such topic.
STRANGE_TOPIC = frozenset(
    {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}  # noqa: SLF001
)

#: The producer has lost its place, or was ended: another one may send the same message.
LOST_PRODUCER = frozenset(
    {
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.INVALID_PRODUCER_ID_MAPPING,
        KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
        KafkaError.PRODUCER_FENCED,
        KafkaError.UNKNOWN_PRODUCER_ID,
        *(KafkaError._DESTROY, KafkaError._FATAL, KafkaError._FENCED, KafkaError._GAPLESS_GUARANTEE),  # noqa: SLF001
        *(KafkaError._INCONSISTENT, KafkaError._PURGE_INFLIGHT, KafkaError._PURGE_QUEUE),  # noqa: SLF001
    }
)

#: What no second attempt at connecting will change.
_REFUSED_CONNECTIONS = frozenset(
    {
        *(KafkaError.ILLEGAL_SASL_STATE, KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError.UNSUPPORTED_SASL_MECHANISM),
        KafkaError._AUTHENTICATION,  # noqa: SLF001
    }
)

#: What `Producer.produce` raises about its arguments, UnicodeError being a ValueError.
_WRONG_ARGUMENTS = (OverflowError, TypeError, ValueError)

#: In here a value is quoted that nobody should see.
_VALUE = re.compile(r'value "[^"]*"')


def delivery_error(error: BaseException | KafkaError, why: KafkaError | None = None) -> DeliveryError:
    """
    Return why a message was not confirmed, `why` being what the producer last heard about its connections.

    Everything that is not a refusal of the message itself may pass: missing rights,
    a wrong configuration or an unknown error are for an operator to mend, and the
    message must not be given up meanwhile. The vendor's error becomes the cause.
    """
    if isinstance(error, DeliveryError):
        return error
    code = code_of(error)
    kind = MessageRejected if code in REFUSALS or isinstance(error, _WRONG_ARGUMENTS) else BrokerUnavailable
    ours = kind(_words(error, None if kind is MessageRejected else why))
    ours.__cause__ = error if isinstance(error, BaseException) else KafkaException(error)
    return ours


def connection_error(error: BaseException, servers: str, why: KafkaError | None = None) -> BrokerUnavailable:
    """Return why there is no way to the broker; `error` becomes the cause."""
    ours = BrokerUnavailable(f"kafka at {servers} cannot be reached: {_words(error, why)}")
    ours.__cause__ = error
    return ours


def configuration_error(error: BaseException) -> ConfigurationError:
    """Return what librdkafka says about its options, without the values that it quotes."""
    told = error.args[0].str() if isinstance(error, KafkaException) else str(error)
    return ConfigurationError(f"librdkafka does not accept its options: {_VALUE.sub('value', told)}")


def code_of(error: BaseException | KafkaError) -> int | None:
    """Return librdkafka's number for an error, None where it is not one of librdkafka's."""
    if isinstance(error, KafkaException):
        error = error.args[0]
    return error.code() if isinstance(error, KafkaError) else None


def is_final(error: KafkaError) -> bool:
    """Tell whether it is no use to try to connect again at once."""
    return error.code() in _REFUSED_CONNECTIONS


def _words(error: BaseException | KafkaError, why: KafkaError | None) -> str:
    vendor = error.args[0] if isinstance(error, KafkaException) else error
    words = f"{vendor.name()}: {vendor.str()}" if isinstance(vendor, KafkaError) else f"{type(error).__name__}: {error}"
    return words if why is None else f"{words} ({why.str()})"
