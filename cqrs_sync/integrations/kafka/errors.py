"""Errors of kafka-python as ours: either the message is at fault, or the broker is."""

from __future__ import annotations

from typing import Any

from kafka import errors as kafka

from cqrs_sync.errors import BrokerUnavailable, ConfigurationError, DeliveryError, MessageRejected

#: What a broker answers when it has looked at a message and will never take it.
REFUSALS = (
    kafka.InvalidRecordError,
    kafka.InvalidTimestampError,
    kafka.InvalidTopicError,
    kafka.MessageSizeTooLargeError,
    kafka.PolicyViolationError,
    kafka.RecordListTooLargeError,
    kafka.UnsupportedForMessageFormatError,
)

#: What `KafkaProducer.send` raises about its arguments, UnicodeError being a ValueError.
_WRONG_ARGUMENTS = (AssertionError, OverflowError, TypeError, ValueError)

#: What no second attempt at connecting will change.
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

    Everything that is not a refusal of the message itself may pass: missing rights,
    a wrong configuration or an unknown error are for an operator to mend, and the
    message must not be given up meanwhile.
    """
    if isinstance(error, DeliveryError):
        return error
    kind = MessageRejected if isinstance(error, (*REFUSALS, *_WRONG_ARGUMENTS)) else BrokerUnavailable
    ours = kind(_words(error))
    ours.__cause__ = error
    return ours


def connection_error(error: BaseException, servers: str) -> BrokerUnavailable | ConfigurationError:
    """Return why there is no producer or consumer; `error` becomes the cause."""
    ours: BrokerUnavailable | ConfigurationError
    if isinstance(error, _WRONG_OPTIONS):
        ours = ConfigurationError(f"kafka-python does not accept its options: {_words(error)}")
    else:
        ours = BrokerUnavailable(f"kafka at {servers} cannot be reached: {_words(error)}")
    ours.__cause__ = error
    return ours


def is_final(error: BaseException | None) -> bool:
    """Tell whether it is no use to try to connect again at once."""
    return isinstance(error, (*_REFUSED_CONNECTIONS, *_WRONG_OPTIONS))


def is_passing(error: Any) -> bool:
    """Tell whether kafka-python itself would have sent a record again, had there been time."""
    return isinstance(error, kafka.RetriableError)


def _words(error: BaseException) -> str:
    text = str(error)
    name = type(error).__name__
    return text if name in text else f"{name}: {text}".rstrip(": ")
