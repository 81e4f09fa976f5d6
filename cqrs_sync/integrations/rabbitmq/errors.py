"""Vendor errors never leave this integration: each becomes one of ours, in clear words."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator

from pika import exceptions
from pika.adapters.utils import connection_workflow

from cqrs_sync.errors import BrokerUnavailable, DeliveryError, MessageRejected

#: Close codes that say what is wrong with a message, or with where it should go.
_ENDS_THE_CHANNEL = frozenset({311, 403, 404, 406})
_ENDS_THE_CONNECTION = frozenset({501, 502, 505})
#: Close codes of a channel that say that what it asked for cannot be had: forbidden, missing, in use, different.
_REFUSALS = frozenset({403, 404, 405, 406})
#: Close codes while connecting that no retry within seconds will change.
_NO_ENTRY = frozenset({403, 530})

_MESSAGE_ERRORS = (
    exceptions.ShortStringTooLong,
    exceptions.UnsupportedAMQPFieldException,
    exceptions.UnroutableError,
)
_CODE = re.compile(r"\((\d{3})\)")


def delivery_error(error: BaseException, address: str) -> DeliveryError:
    """Return the error of ours that stands for what pika or the network reported."""
    kind = MessageRejected if blames_a_message(error) else BrokerUnavailable
    translated = kind(f"{words_for(error)} (RabbitMQ at {address})")
    translated.__cause__ = error
    return translated


def blames_a_message(error: BaseException) -> bool:
    """Tell whether something that was published is at fault, not the broker or the way to it."""
    if isinstance(error, exceptions.ChannelClosed):
        return error.reply_code in _ENDS_THE_CHANNEL
    if isinstance(error, exceptions.ConnectionClosed):
        return error.reply_code in _ENDS_THE_CONNECTION
    return isinstance(error, _MESSAGE_ERRORS)


def is_final(error: BaseException) -> bool:
    """Tell whether connecting again at once is pointless: wrong credentials, vhost or certificate."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError | exceptions.AuthenticationError):
            return True
        if isinstance(cause, exceptions.ProbableAuthenticationError | exceptions.ProbableAccessDeniedError):
            return _code_in(cause) in _NO_ENTRY
    return False


def refusal_in(error: BaseException) -> exceptions.ChannelClosedByBroker | None:
    """Return what the broker said where it refused what was asked for; None where something else went wrong."""
    cause = error.__cause__
    if isinstance(cause, exceptions.ChannelClosedByBroker) and cause.reply_code in _REFUSALS:
        return cause
    return None


def words_for(error: BaseException) -> str:
    """Say in clear words what happened."""
    for cause in _causes(error):
        for kind, words in _WORDS.items():
            if isinstance(cause, kind):
                return words.format(error=cause, text=_text_of(cause))
    return f"{type(error).__name__}: {error}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Innermost first: pika wraps what happened up to three times."""
    inner: BaseException | None = None
    if isinstance(error, connection_workflow.AMQPConnectionWorkflowFailed):
        inner = error.exceptions[-1]
    elif isinstance(error, connection_workflow.AMQPConnectorPhaseErrorBase):
        inner = error.exception
    elif len(error.args) == 1 and isinstance(error.args[0], BaseException):
        inner = error.args[0]
    if inner is not None:
        yield from _causes(inner)
    yield error


def _code_in(error: BaseException) -> int | None:
    # pika keeps only the repr of what the broker answered: "ConnectionClosedByBroker: (403) 'ACCESS_REFUSED ...'".
    found = _CODE.search(str(error.args[0])) if error.args else None
    return int(found[1]) if found else None


def _text_of(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return str(error.verify_message)
    if isinstance(error, exceptions.ConnectionClosed | exceptions.ChannelClosed):
        return f"{error.reply_code} {error.reply_text}"
    return str(error.args[0]) if error.args else "no reason given"


_WORDS: dict[type[BaseException], str] = {
    ssl.SSLCertVerificationError: "the broker's TLS certificate is not trusted: {text}",
    ssl.SSLError: "TLS failed: {error}",
    socket.gaierror: "the host name cannot be resolved",
    ConnectionRefusedError: "connection refused",
    connection_workflow.AMQPConnectorStackTimeout: "the broker does not answer",
    TimeoutError: "the broker does not answer",
    OSError: "the network failed: {error}",
    exceptions.ProbableAuthenticationError: "the broker refuses user and password: {text}",
    exceptions.AuthenticationError: "the broker does not offer {text} authentication",
    exceptions.ProbableAccessDeniedError: "the broker refuses the virtual host: {text}",
    exceptions.ConnectionOpenAborted: "the broker does not answer",
    exceptions.AMQPHeartbeatTimeout: "the broker fell silent",
    exceptions.ConnectionBlockedTimeout: "the broker blocked the connection for too long",
    exceptions.StreamLostError: "the connection was lost",
    exceptions.ConnectionClosedByBroker: "the broker closed the connection: {text}",
    exceptions.ChannelClosedByBroker: "the broker refused: {text}",
    exceptions.ConsumerCancelled: "the broker cancelled the subscription, its queue was deleted",
    exceptions.IncompatibleProtocolError: "whoever listens there does not speak AMQP 0-9-1",
    exceptions.NackError: "the broker did not take it (nack): a queue is full or failing",
    exceptions.ShortStringTooLong: "a topic, an id or a content type is longer than 255 bytes",
    exceptions.UnroutableError: "no queue is bound for the topic",
    exceptions.UnsupportedAMQPFieldException: "an attribute is of a type that AMQP does not know",
    exceptions.ProtocolSyntaxError: "the broker sent what is not AMQP 0-9-1",
    connection_workflow.AMQPConnectorException: "connecting failed: {text}",
    exceptions.AMQPConnectionError: "the connection failed: {text}",
    exceptions.AMQPChannelError: "the channel failed: {text}",
    exceptions.AMQPError: "pika failed: {text}",
    exceptions.ChannelError: "pika failed: {text}",
    exceptions.ReentrancyError: "pika failed: {text}",
}
