"""Errors of pika and the network, translated: callers only see errors of this library. And fewer log lines of pika."""

from __future__ import annotations

import logging
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pika import exceptions
from pika.adapters.utils import connection_workflow

from cqrs_sync.errors import BrokerUnavailable, DeliveryError, MessageRejected

#: Close codes that may be the fault of a published message, or of its exchange.
_MESSAGE_CLOSES_CHANNEL = frozenset({311, 403, 404, 406})
_MESSAGE_CLOSES_CONNECTION = frozenset({501, 502, 505})
#: Close codes while connecting that a retry within seconds does not change.
_LOGIN_REFUSED = frozenset({403, 530})

_MESSAGE_ERRORS = exceptions.ShortStringTooLong, exceptions.UnsupportedAMQPFieldException, exceptions.UnroutableError
#: For a basic.nack.
NACKED = "the broker did not accept it (nack): a queue is full or failing"
_CODE = re.compile(r"\((\d{3})\)")


def delivery_error(error: BaseException, address: str) -> DeliveryError:
    """Translate an error of pika or the network into one of ours, with the address in its text."""
    kind = MessageRejected if is_message_error(error) else BrokerUnavailable
    translated = kind(f"{describe(error)} (RabbitMQ at {address})")
    translated.__cause__ = error
    return translated


def is_message_error(error: BaseException) -> bool:
    """Tell whether a published message may be at fault, not the broker or the network."""
    if isinstance(error, exceptions.ChannelClosed):
        return error.reply_code in _MESSAGE_CLOSES_CHANNEL
    if isinstance(error, exceptions.ConnectionClosed):
        return error.reply_code in _MESSAGE_CLOSES_CONNECTION
    return isinstance(error, _MESSAGE_ERRORS)


def is_permanent(error: BaseException) -> bool:
    """Tell whether another attempt to connect is pointless: wrong credentials, vhost or certificate."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError | exceptions.AuthenticationError):
            return True
        if isinstance(cause, exceptions.ProbableAuthenticationError | exceptions.ProbableAccessDeniedError):
            return _code_in(cause) in _LOGIN_REFUSED
    return False


def describe(error: BaseException) -> str:
    """Return what happened in words for operators."""
    for cause in _causes(error):
        for kind, text in _TEXTS.items():
            if isinstance(cause, kind):
                return text.format(error=cause, text=_text_of(cause))
    return f"{type(error).__name__}: {error}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the causes, innermost first: pika wraps an error up to three times."""
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
    # pika keeps only the repr of the broker's answer: "ConnectionClosedByBroker: (403) 'ACCESS_REFUSED ...'".
    found = _CODE.search(str(error.args[0])) if error.args else None
    return int(found[1]) if found else None


def _text_of(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return str(error.verify_message)
    if isinstance(error, exceptions.ConnectionClosed | exceptions.ChannelClosed):
        return f"{error.reply_code} {error.reply_text}"
    return str(error.args[0]) if error.args else "no reason given"


_TEXTS: dict[type[BaseException], str] = {
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
    exceptions.AMQPHeartbeatTimeout: "the broker missed its heartbeats",
    exceptions.ConnectionBlockedTimeout: "the broker blocked the connection for too long",
    exceptions.StreamLostError: "the connection was lost",
    exceptions.ConnectionClosedByBroker: "the broker closed the connection: {text}",
    exceptions.ChannelClosedByBroker: "the broker refused: {text}",
    exceptions.ConsumerCancelled: "the broker cancelled the subscription because its queue was deleted",
    exceptions.IncompatibleProtocolError: "the server does not speak AMQP 0-9-1",
    exceptions.NackError: NACKED,
    exceptions.ShortStringTooLong: "a topic, an id or a content type is longer than 255 bytes",
    exceptions.UnroutableError: "no queue is bound for the topic",
    exceptions.UnsupportedAMQPFieldException: "an attribute has a type that AMQP does not have",
    exceptions.ProtocolSyntaxError: "the broker sent bytes that are not AMQP 0-9-1",
    connection_workflow.AMQPConnectorException: "connecting failed: {text}",
    exceptions.AMQPConnectionError: "the connection failed: {text}",
    exceptions.AMQPChannelError: "the channel failed: {text}",
    exceptions.AMQPError: "pika failed: {text}",
    exceptions.ChannelError: "pika failed: {text}",
    exceptions.ReentrancyError: "pika failed: {text}",
}


class _Thread(threading.local):
    #: How many `quiet_pika` blocks the thread is in.
    depth = 0


_here = _Thread()


@contextmanager
def quiet_pika() -> Iterator[None]:
    """
    Leave out pika's lines below CRITICAL that this thread logs in the block, unless its logger is enabled for DEBUG.

    During an outage pika logs seven ERROR lines for each attempt to connect. The caller of `publish` gets one error
    with the reason instead, and relays and consumers log the outage once. Other connections that the application makes
    with pika log as before.
    """
    for name in list(logging.root.manager.loggerDict):
        if name == "pika" or name.startswith("pika."):
            # Adding it again does nothing.
            logging.getLogger(name).addFilter(_is_wanted)
    _here.depth += 1
    try:
        yield
    finally:
        _here.depth -= 1


def _is_wanted(record: logging.LogRecord) -> bool:
    # pika looks up addresses in a thread of its own, and then reports the error to the connection's thread.
    is_quiet = _here.depth > 0 or record.funcName == "_resolve"
    return (
        not is_quiet or record.levelno >= logging.CRITICAL or logging.getLogger(record.name).isEnabledFor(logging.DEBUG)
    )
