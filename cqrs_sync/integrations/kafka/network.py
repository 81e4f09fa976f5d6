"""The network side of a Kafka client: ours to look at, and to close where kafka-python does not."""

from __future__ import annotations

import contextlib

# Looking up a host imports it: a child forked at that moment would wait for its import lock for ever.
import encodings.idna  # noqa: F401
import errno
import selectors
import socket
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from kafka.errors import KafkaTimeoutError
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import KafkaNetSocket
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from cqrs_sync.integrations.kafka.descriptors import Descriptors
from cqrs_sync.integrations.kafka.failures import is_final
from cqrs_sync.integrations.kafka.secrecy import keep_secret


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
                client._manager.call_soon(client._manager.close)  # noqa: SLF001

    def hang_up(self) -> None:
        """End all connections."""
        for client in self._made:
            client.close()
            client._manager.hang_up()  # noqa: SLF001 -- ours

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
