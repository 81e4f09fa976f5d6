"""The proxy of the outage tests breaks the path as documented."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.servers.proxy import TcpProxy


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of an echo server."""
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=_echo, args=(listener,), daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


@pytest.fixture
def proxy(echo: int) -> Iterator[TcpProxy]:
    with TcpProxy("127.0.0.1", echo) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: TcpProxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client:
        client.sendall(b"hello")
        assert b"hello" == client.recv(100)
        yield client


def test_a_cut_closes_connections_and_refuses_new_ones_until_restored(proxy: TcpProxy, client: socket.socket) -> None:
    """After `cut` no connection gets through; after `restore` all do, on the same port."""
    assert 1 == proxy.cut()

    assert b"" == client.recv(100)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port), timeout=5)
    proxy.restore()
    assert b"again" == _asked(proxy, b"again")
    assert 2 == proxy.accepted


def test_frozen_connections_stay_open_and_are_served_after_restore(proxy: TcpProxy, client: socket.socket) -> None:
    """Bytes sent into a frozen path arrive after `restore`."""
    proxy.freeze()
    client.sendall(b"late")
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.recv(100)

    proxy.restore()
    client.settimeout(5)

    assert b"late" == client.recv(100)


def test_dropped_connections_may_come_back_at_once(proxy: TcpProxy, client: socket.socket) -> None:
    """`drop` ends connections without refusing the next one."""
    assert 1 == proxy.drop()

    assert b"" == client.recv(100)
    assert b"next" == _asked(proxy, b"next")


def _asked(proxy: TcpProxy, question: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client:
        client.sendall(question)
        return client.recv(100)


def _echo(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            near, _ = listener.accept()
            threading.Thread(target=_answer, args=(near,), daemon=True).start()


def _answer(near: socket.socket) -> None:
    with contextlib.suppress(OSError), near:
        while piece := near.recv(100):
            near.sendall(piece)
