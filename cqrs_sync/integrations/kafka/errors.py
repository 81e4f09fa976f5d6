"""Errors of kafka-python as ours: the message is at fault, or the broker is."""

from __future__ import annotations

from typing import Any

from kafka import errors as kafka

from cqrs_sync.errors import BrokerUnavailable, ConfigurationError, DeliveryError, MessageRejected

#: What a broker answers that has looked at a message and will never accept it.
_REFUSALS = (
    kafka.InvalidRecordError,
    kafka.InvalidTimestampError,
    kafka.InvalidTopicError,
    kafka.MessageSizeTooLargeError,
    kafka.PolicyViolationError,
    kafka.RecordListTooLargeError,
    kafka.UnsupportedForMessageFormatError,
)

#: What `KafkaProducer.send` raises about its arguments; a UnicodeError is a ValueError.
_WRONG_ARGUMENTS = (AssertionError, OverflowError, TypeError, ValueError)

#: What no second attempt to connect will change.
_REFUSED_CONNECTIONS = (
    kafka.AuthorizationError,
    kafka.IllegalSaslStateError,
    kafka.SaslAuthenticationFailedError,
    kafka.UnsupportedSaslMechanismError,
    kafka.UnsupportedVersionError,
)
_WRONG_OPTIONS = (
    *(FileNotFoundError, PermissionError, RuntimeError, *_WRONG_ARGUMENTS),
    *(kafka.KafkaConfigurationError, kafka.UnrecognizedBrokerVersion, kafka.UnsupportedCodecError),
)


def delivery_error(error: BaseException) -> DeliveryError:
    """
    Return why a message was not confirmed; `error` becomes the cause.

    Only a refusal is the fault of the message. An operator can mend all else, missing rights, a wrong configuration or
    an unknown error, and the message must not be given up meanwhile.
    """
    if isinstance(error, DeliveryError):
        return error
    kind = MessageRejected if isinstance(error, (*_REFUSALS, *_WRONG_ARGUMENTS)) else BrokerUnavailable
    ours = kind(_describe(error))
    ours.__cause__ = error
    return ours


def connection_error(error: BaseException, servers: str) -> BrokerUnavailable | ConfigurationError:
    """Return why there is no producer or consumer; `error` becomes the cause."""
    ours: BrokerUnavailable | ConfigurationError
    if isinstance(error, _WRONG_OPTIONS):
        ours = ConfigurationError(f"kafka-python does not accept its options: {_describe(error)}")
    else:
        ours = BrokerUnavailable(f"kafka at {servers} cannot be reached: {_describe(error)}")
    ours.__cause__ = error
    return ours


def is_final(error: BaseException | None) -> bool:
    """Tell whether there is no use in connecting again at once."""
    return isinstance(error, (*_REFUSED_CONNECTIONS, *_WRONG_OPTIONS))


def is_passing(error: Any) -> bool:
    """Tell whether kafka-python itself would have sent the record again, had there been time."""
    return isinstance(error, kafka.RetriableError)


def _describe(error: BaseException) -> str:
    text = str(error)
    name = type(error).__name__
    return text if name in text else f"{name}: {text}".rstrip(": ")
