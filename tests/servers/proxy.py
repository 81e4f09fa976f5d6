"""A TCP proxy that breaks the path to a server on purpose."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

_PIECE = 65536


class TcpProxy:
    """
    Forwards connections to `(target_host, target_port)`, until told to break them.

    `port` stays the same as long as the proxy lives. `accepted` counts the
    connections it took: a test can tell whether its fault really hit.
    """

    def __init__(self, target_host: str, target_port: int) -> None:
        self.accepted = 0
        self._target = (target_host, target_port)
        self._lock = threading.Lock()
        self._pairs: list[_Pair] = []
        self._threads: list[threading.Thread] = []
        self._flows = threading.Event()
        self._flows.set()
        self._listening = False
        self._listener = _bound(0)
        self.port: int = self._listener.getsockname()[1]
        self._listen()

    @property
    def connections(self) -> int:
        """How many connections it forwards now."""
        with self._lock:
            return len(self._pairs)

    def cut(self) -> int:
        """Close all connections and refuse new ones; return how many were closed."""
        self._stop_listening()
        # Bound and not listening: connections are refused, and the port stays ours.
        self._listener = _bound(self.port)
        return self._drop_all()

    def drop(self) -> int:
        """Close all connections but accept new ones; return how many were closed."""
        return self._drop_all()

    def freeze(self) -> None:
        """Keep every connection and accept new ones, but forward nothing."""
        self._flows.clear()

    def restore(self) -> None:
        """Forward again, what has waited first."""
        self._flows.set()
        if not self._listening:
            self._listen()

    def close(self) -> None:
        """Close all connections and end the proxy."""
        self._stop_listening()
        self._drop_all()
        self._flows.set()
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self.close()

    def _listen(self) -> None:
        self._listening = True
        self._listener.listen(128)
        self._spawn(self._accept, self._listener)

    def _stop_listening(self) -> None:
        self._listening = False
        # Without the shutdown the thread in accept() would go on waiting on the closed descriptor.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _drop_all(self) -> int:
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            pair.close()
        return len(pairs)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._spawn(self._serve, near)

    def _serve(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(self._target, timeout=5)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = _Pair(near, far)
        with self._lock:
            # A cut between accept() and here must close this one as well.
            if not self._listening:
                pair.close()
                return
            self._pairs.append(pair)
        self._spawn(self._pump, pair, near, far)
        self._pump(pair, far, near)

    def _pump(self, pair: _Pair, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE):
                self._flows.wait()
                sink.sendall(piece)
        pair.close()
        with self._lock, contextlib.suppress(ValueError):
            self._pairs.remove(pair)

    def _spawn(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, name="tcp-proxy", daemon=True)
        with self._lock:
            self._threads = [known for known in self._threads if known.is_alive()] + [thread]
            thread.start()


class _Pair:
    """The two ends of one forwarded connection."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self._ends = (near, far)

    def close(self) -> None:
        """End both connections and wake the threads that read from them."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def _bound(port: int) -> socket.socket:
    """Take a loopback port without listening on it."""
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taken.bind(("127.0.0.1", port))
    return taken
