"""
Everything that kafka-python needs: connections that can be watched and ended, forks, secrets, repairs, errors.

All of it is below the public surface of kafka-python, and nothing else is but `producer`.
"""

# ruff: noqa: SLF001

from __future__ import annotations

import contextlib

# Looking up a host imports it: a child forked at that moment would wait for its import lock without end.
import encodings.idna  # noqa: F401
import errno
import logging
import os
import selectors
import socket
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kafka import errors as kafka
from kafka.coordinator.base import MemberState
from kafka.errors import KafkaError, KafkaTimeoutError
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import KafkaNetSocket
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.protocol.sasl import SaslAuthenticateRequest, SaslBytesRequest

from cqrs_sync.errors import BrokerUnavailable, ConfigurationError, DeliveryError, MessageRejected
from cqrs_sync.lifecycle import reset_in_child

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


#: The loggers of kafka-python that write requests and frames.
_FRAME_LOGGERS = ("kafka.net.connection", "kafka.protocol.parser")
_SECRETS = ("sasl_plain_password",)


class KafkaConnections:
    """
    The connections of one producer or consumer.

    - A producer or consumer that cannot be made leaves its sockets open, a consumer its thread as well: `close` ends
      them.
    - While one is made, kafka-python tries wrong credentials again and again, and says in the end that it ran out of
      time. Here the first such answer ends it; `why` has the last reason why a connection failed.
    - `cancel` ends the making from any thread.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        _hide_credentials(options)
        #: The options for kafka-python, with our hooks.
        self.options: dict[str, Any] = {
            **options,
            "kafka_client": self._make,
            "proxy_url": options.get("proxy_url") or f"{_DirectSocket.SCHEMES[0]}://",
            "selector": _ForkSafeSelectors(options.get("selector", selectors.DefaultSelector)),
        }
        self.why: BaseException | None = None
        self._kind = options.get("kafka_client", KafkaNetClient)
        self._made: list[Any] = []
        self._complete = False

    @property
    def client(self) -> Any:
        """The network client, once it is made."""
        return self._made[0]

    @property
    def cluster(self) -> Any:
        """What the broker has told about itself and its topics."""
        return self.client.cluster

    def complete(self) -> None:
        """Note that the producer or consumer is made: from now on connections may come and go."""
        self._complete = True

    @contextlib.contextmanager
    def connecting(self, servers: str) -> Iterator[None]:
        """Close the connections if this block raises. Raises kafka-python's errors as ours."""
        try:
            yield
        except BaseException as error:
            self.close()
            # A ValueError or TypeError is about the name of a group.
            if isinstance(error, (KafkaError, TypeError, ValueError)):
                raise connection_error(self.explain(error), servers) from error
            raise

    def explain(self, error: BaseException) -> BaseException:
        """Return why connecting took too long, if that is what `error` says."""
        return self.why if self.why is not None and isinstance(error, KafkaTimeoutError) else error

    def refresh_topics(self, timeout: float) -> None:
        """Ask the broker about its topics once more; wait for the answer, for `timeout` seconds at most."""
        answered = threading.Event()
        self.cluster.request_update().add_both(lambda _: answered.set())
        answered.wait(timeout)

    def cancel(self) -> None:
        """Wait for no more answers."""
        for client in self._made:
            # In the thread that waits; a RuntimeError says that it has ended.
            with contextlib.suppress(RuntimeError):
                client._manager.call_soon(client._manager.close)

    def close(self) -> None:
        """End all connections."""
        for client in self._made:
            client.close()
            client._manager.close_sockets()

    def _make(self, **options: Any) -> Any:
        net = NetworkSelector(**options)
        manager = _ConnectionManager(net, self._failed, **options)
        client = self._kind(net=net, manager=manager, **options)
        # kafka-python has this option and forgets to pass it on.
        client.cluster.config["allow_auto_create_topics"] = options.get("allow_auto_create_topics", False)
        self._made.append(client)
        return client

    def _failed(self, manager: Any, error: BaseException) -> None:
        self.why = error
        if not self._complete and is_final(error):
            manager.close()


class _ConnectionManager(KafkaConnectionManager):  # type: ignore[misc]  # kafka-python has no types
    """Calls `failed` with the reason why a connection could not be made; kafka-python only logs it."""

    def __init__(self, net: Any, failed: Callable[[Any, BaseException], None], **options: Any) -> None:
        super().__init__(net, **options)
        self._cqrs_failed = failed
        self._cqrs_connections: weakref.WeakSet[Any] = weakref.WeakSet()

    def close_sockets(self) -> None:
        """Close the sockets of connections that had something to send when no thread was left to send it."""
        for connection in list(self._cqrs_connections):
            # A connection that is closed and still sends cannot be aborted, nor taken from a closed selector.
            sock = getattr(connection.transport, "_sock", None)
            if sock is not None:
                sock.close()

    def get_connection(self, node_id: Any, **options: Any) -> Any:
        known = self._conns.get(node_id)
        connection = super().get_connection(node_id, **options)
        if connection is not known:
            self._cqrs_connections.add(connection)
            connection.init_future.add_errback(lambda error: self._cqrs_failed(self, error))
        return connection


class _DirectSocket(KafkaNetSocket):  # type: ignore[misc]  # as above
    """Connects; kafka-python itself leaves a socket open when the other side refuses."""

    #: kafka-python finds this class by the scheme of a "proxy".
    SCHEMES = ("cqrs-direct",)

    def connect_ex(self, sock: socket.socket, address: Any) -> int:
        result = sock.connect_ex(address)
        if result not in _GOING_WELL:
            sock.close()
        return result


#: 10022 is what Windows says instead of EALREADY.
_GOING_WELL = (0, errno.EALREADY, errno.EINPROGRESS, errno.EISCONN, errno.EWOULDBLOCK, 10022)


class _ForkSafeSelectors:
    """
    Makes the selectors of one client, and keeps a forked child away from the descriptors of its parent.

    A child has a copy of each socket: while it lives, the broker does not notice the parent's death. And it shares the
    parent's epoll descriptor: wherever its copy of the client is collected, generators in it take the parent's sockets
    off the watch list. So it replaces each descriptor by /dev/null before anything else runs.
    """

    def __init__(self, kind: Callable[[], selectors.BaseSelector]) -> None:
        self._kind = kind
        self._selectors: list[selectors.BaseSelector] = []
        #: Every socket that was ever watched: at the moment of a fork, one that no call waits for is not.
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        reset_in_child(self)

    def __call__(self) -> selectors.BaseSelector:
        """Make a selector and remember it."""
        selector = self._kind()
        self._selectors.append(selector)
        register = selector.register

        def remember(fileobj: Any, *rest: Any, **named: Any) -> Any:
            if isinstance(fileobj, socket.socket):
                self._sockets.add(fileobj)
            return register(fileobj, *rest, **named)

        selector.register = remember  # type: ignore[method-assign]
        return selector

    def reset_in_child(self) -> None:
        """Replace all descriptors without a word on any connection."""
        nothing = os.open(os.devnull, os.O_RDWR)
        try:
            for descriptor in self._open_descriptors():
                with contextlib.suppress(OSError):
                    os.dup2(nothing, descriptor, inheritable=False)
        finally:
            os.close(nothing)

    def _open_descriptors(self) -> Iterator[int]:
        yield from {watched.fileno() for watched in list(self._sockets)} - {-1}
        for selector in self._selectors:
            # A closed selector has no map.
            for key in list((selector.get_map() or {}).values()):
                # A socket may be closed already: its number may belong to another file by now.
                if getattr(key.fileobj, "fileno", lambda key=key: key.fd)() == key.fd:
                    yield key.fd
            fileno = getattr(selector, "fileno", None)
            if fileno is not None:
                with contextlib.suppress(ValueError):
                    yield fileno()


class _CredentialFilter(logging.Filter):
    """Keeps credentials out of the log: at DEBUG, kafka-python writes all that goes over the wire."""

    def __init__(self) -> None:
        super().__init__()
        self.secrets: set[bytes] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(self._censor(argument) for argument in record.args)
        return True

    def _censor(self, argument: object) -> object:
        if isinstance(argument, (SaslAuthenticateRequest, SaslBytesRequest)):
            return f"<{type(argument).__name__}>"
        if isinstance(argument, (bytes, bytearray)) and self._is_secret(argument):
            return f"<{len(argument)} bytes>"
        return argument

    def _is_secret(self, frame: bytes | bytearray) -> bool:
        # A token is in no option: the third and fourth byte after the length tell a frame that authenticates.
        authenticates = int.from_bytes(frame[4:6], "big") == SaslAuthenticateRequest.API_KEY
        return authenticates or any(secret in frame for secret in self.secrets)


_credential_filter = _CredentialFilter()


def _hide_credentials(options: Mapping[str, Any]) -> None:
    if not str(options.get("security_protocol", "")).startswith("SASL"):
        return
    _credential_filter.secrets.update(str(options[name]).encode() for name in _SECRETS if options.get(name))
    for name in _FRAME_LOGGERS:
        # Adding it a second time does nothing.
        logging.getLogger(name).addFilter(_credential_filter)


def release_paused_records(consumer: Any) -> None:
    """
    Let a consumer deliver what it fetched from a partition that was paused and resumed; call it before each `poll`.

    kafka-python 3.0.12 delivers these records only while it holds no other batch, and takes a batch that is used up
    for one that is not: it would neither deliver them nor fetch from the partition again.
    """
    fetcher = getattr(consumer, "_fetcher", None)
    if fetcher and getattr(fetcher, "_paused_partition_records", None) and not fetcher._next_partition_records:
        fetcher._next_partition_records = None


def keep_finished_joins(consumer: Any) -> None:
    """
    Let a consumer become a member although joining succeeded between two calls of `poll`; call it once.

    kafka-python 3.0.12 begins to join anew with the next call: a consumer that is only polled for short moments would
    never become a member.
    """
    coordinator = getattr(consumer, "_coordinator", None)
    attempt = getattr(coordinator, "_do_join_and_sync_async", None)
    if coordinator is None or attempt is None:
        return
    unseen: list[Any] = []

    async def join() -> Any:
        # The state becomes STABLE once the result is seen, and UNJOINED if the membership is lost meanwhile.
        if unseen and coordinator.state == MemberState.REBALANCING:
            return unseen.pop()
        unseen.clear()
        assignment = await attempt()
        unseen.append(assignment)
        return assignment

    coordinator._do_join_and_sync_async = join
