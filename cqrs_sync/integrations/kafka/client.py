"""The network side of a Kafka client: ours to look at, and to close where kafka-python does not."""

# Much of it is below the public surface of kafka-python.
# ruff: noqa: SLF001

from __future__ import annotations

import contextlib

# Looking up a host imports it: a child forked at that moment would wait for its import lock for ever.
import errno
import logging
import os
import selectors
import socket
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kafka.coordinator.base import MemberState
from kafka.errors import KafkaTimeoutError
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import KafkaNetSocket
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.protocol.sasl import SaslAuthenticateRequest, SaslBytesRequest

from cqrs_sync.integrations.kafka.errors import is_final
from cqrs_sync.lifecycle import reset_in_child


class Network:
    """
    Makes the network client of one producer or consumer and keeps hold of it.

    - A producer or consumer that cannot be made leaves its sockets, a consumer its
      thread as well: `hang_up` ends them.
    - While one is made, kafka-python tries wrong credentials again and again, and says
      in the end that it ran out of time. Here the first such answer ends it; `why` has
      the last reason why a connection failed.
    - `give_up` ends the making from any thread.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        keep_secret(options)
        #: What kafka-python gets: the same options, with us in between.
        self.options = {
            **options,
            "kafka_client": self._make,
            "proxy_url": options.get("proxy_url") or f"{_Direct.SCHEMES[0]}://",
            "selector": Descriptors(options.get("selector", selectors.DefaultSelector)),
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

    def completed(self) -> None:
        """The producer or consumer is made: from now on connections may come and go."""
        self._complete = True

    def explain(self, error: BaseException) -> BaseException:
        """Return why connecting took too long, where that is what `error` says."""
        return self.why if self.why is not None and isinstance(error, KafkaTimeoutError) else error

    def give_up(self) -> None:
        """Wait for no answer any more."""
        for client in self._made:
            # In the thread that waits; a RuntimeError says that it does no longer.
            with contextlib.suppress(RuntimeError):
                client._manager.call_soon(client._manager.close)

    def hang_up(self) -> None:
        """End all connections."""
        for client in self._made:
            client.close()
            client._manager.hang_up()

    def _make(self, **options: Any) -> Any:
        net = NetworkSelector(**options)
        manager = _Manager(net, **options)
        manager.failed = self._failed
        client = self._kind(net=net, manager=manager, **options)
        # kafka-python has this option and forgets to pass it on.
        client.cluster.config["allow_auto_create_topics"] = options.get("allow_auto_create_topics", False)
        self._made.append(client)
        return client

    def _failed(self, manager: Any, error: BaseException) -> None:
        self.why = error
        if not self._complete and is_final(error):
            manager.close()


class _Manager(KafkaConnectionManager):  # type: ignore[misc]  # kafka-python has no types
    """Tells why a connection could not be made; kafka-python only logs it."""

    failed: Callable[[Any, BaseException], None]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def hang_up(self) -> None:
        """Close the sockets of those that had something to send when nobody was left to send it."""
        for connection in list(self._seen):
            # What is closed and still sends cannot be aborted, nor taken from a selector that is closed.
            sock = getattr(connection.transport, "_sock", None)
            if sock is not None:
                sock.close()

    def get_connection(self, node_id: Any, **options: Any) -> Any:
        known = self._conns.get(node_id)
        connection = super().get_connection(node_id, **options)
        if connection is not known:
            self._seen.add(connection)
            connection.init_future.add_errback(lambda error: self.failed(self, error))
        return connection


class _Direct(KafkaNetSocket):  # type: ignore[misc]  # as above
    """How to connect; kafka-python leaves a socket open when the other side refuses."""

    #: kafka-python finds us by this scheme of a "proxy".
    SCHEMES = ("cqrs-direct",)

    def connect_ex(self, sock: socket.socket, address: Any) -> int:
        result = sock.connect_ex(address)
        if result not in _GOING_WELL:
            sock.close()
        return result


#: 10022 is what Windows says instead of EALREADY.
_GOING_WELL = (0, errno.EALREADY, errno.EINPROGRESS, errno.EISCONN, errno.EWOULDBLOCK, 10022)


class Descriptors:
    """
    Remembers what one Kafka client watches; given to kafka-python as its `selector`.

    A child has a copy of each socket: while it lives, the broker does not hear of its
    parent's death. And it shares the parent's epoll descriptor: wherever its copy of the
    client is collected, generators in it take the parent's sockets off the watch list. So
    it puts /dev/null in the place of each descriptor before anything else runs.
    """

    def __init__(self, kind: Callable[[], selectors.BaseSelector] = selectors.DefaultSelector) -> None:
        self._kind = kind
        self._selectors: list[selectors.BaseSelector] = []
        #: Every socket that was ever watched: one that nobody waits for is not, at the moment of a fork.
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
        """Let go of everything without a word on any connection."""
        nothing = os.open(os.devnull, os.O_RDWR)
        try:
            for descriptor in self._open():
                with contextlib.suppress(OSError):
                    os.dup2(nothing, descriptor, inheritable=False)
        finally:
            os.close(nothing)

    def _open(self) -> Iterator[int]:
        yield from {watched.fileno() for watched in list(self._sockets)} - {-1}
        for selector in self._selectors:
            # A closed selector has no map.
            for key in list((selector.get_map() or {}).values()):
                # A socket that is closed already: its number may be somebody else's by now.
                if getattr(key.fileobj, "fileno", lambda key=key: key.fd)() == key.fd:
                    yield key.fd
            fileno = getattr(selector, "fileno", None)
            if fileno is not None:
                with contextlib.suppress(ValueError):
                    yield fileno()


#: The loggers that write requests and frames.
_LOGGERS = ("kafka.net.connection", "kafka.protocol.parser")
_SECRETS = ("sasl_plain_password",)


def keep_secret(options: Mapping[str, Any]) -> None:
    """Censor what these options authenticate with, from now on."""
    if not str(options.get("security_protocol", "")).startswith("SASL"):
        return
    _censor.secrets.update(str(options[name]).encode() for name in _SECRETS if options.get(name))
    for name in _LOGGERS:
        # Adding it a second time does nothing.
        logging.getLogger(name).addFilter(_censor)


class _Censor(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self.secrets: set[bytes] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(self._censored(argument) for argument in record.args)
        return True

    def _censored(self, argument: object) -> object:
        if isinstance(argument, (SaslAuthenticateRequest, SaslBytesRequest)):
            return f"<{type(argument).__name__}>"
        if isinstance(argument, (bytes, bytearray)) and self._is_secret(argument):
            return f"<{len(argument)} bytes>"
        return argument

    def _is_secret(self, frame: bytes | bytearray) -> bool:
        # A token is in no option: a frame that authenticates tells it by its third and fourth byte after the length.
        authenticates = int.from_bytes(frame[4:6], "big") == SaslAuthenticateRequest.API_KEY
        return authenticates or any(secret in frame for secret in self.secrets)


_censor = _Censor()


def free_parked_records(consumer: Any) -> None:
    """
    Let it give out what it had fetched of a partition that was paused and resumed; before each `poll`.

    It does so when no other batch is in its hands, and takes one that is used up for one
    that is not: it would neither give these records out nor fetch the partition again.
    """
    fetcher = getattr(consumer, "_fetcher", None)
    if fetcher and getattr(fetcher, "_paused_partition_records", None) and not fetcher._next_partition_records:
        fetcher._next_partition_records = None


def keep_finished_joins(consumer: Any) -> None:
    """
    Let it take its place in the group although nobody was in `poll` at that moment; once for a consumer.

    Where joining has succeeded between two calls, the next one would begin anew, and who
    only ever polls in short moments would never be there.
    """
    coordinator = getattr(consumer, "_coordinator", None)
    attempt = getattr(coordinator, "_do_join_and_sync_async", None)
    if coordinator is None or attempt is None:
        return
    unseen: list[Any] = []

    async def join() -> Any:
        # When it is seen the state is STABLE; where the place in the group is lost meanwhile, UNJOINED.
        if unseen and coordinator.state == MemberState.REBALANCING:
            return unseen.pop()
        unseen.clear()
        assignment = await attempt()
        unseen.append(assignment)
        return assignment

    coordinator._do_join_and_sync_async = join
