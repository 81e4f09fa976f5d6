"""
How near publishing comes to the limit of RabbitMQ, the disk and the kernel.

The limit is a raw socket: frames encoded beforehand, answers counted by hand, with as
many messages in flight as ours has. Limit and candidate take turns in one process,
and a figure is the median of the rounds' ratios.

    python -m tests.benchmarks.rabbitmq_publish [rounds]
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import struct
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator

import attrs
import pika

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.integrations.rabbitmq import RabbitMQBroker
from cqrs_sync.integrations.rabbitmq.amqp import MessageEncoder
from cqrs_sync.serializer import uuid7
from tests.servers.rabbitmq import bound_queue

_URL = os.environ.get("CQRS_TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672/")
_TOPIC = "meetings"
_BODY = b'{"meeting_id": "%s", "user_id": "%s"}' % (b"m" * 80, b"u" * 80)
_THREADS = 16


@attrs.frozen
class Bar:
    """The share of the limit's rate that the candidate must reach."""

    name: str
    candidate: str
    limit: str
    ratio: float


BARS = (
    Bar("one message, of raw", "ours x1", "raw, window 1", 0.65),
    Bar("five in a call, of raw", "ours x5", "raw, window 5", 0.7),
    Bar("16 threads, of raw", "ours, 16 threads", "raw, window 16", 0.45),
    Bar("16 threads, of a connection each", "ours, 16 threads", "pika, 16 connections", 1.5),
    Bar("batches of 500, of raw", "ours x500", "raw, window 500", 0.7),
    Bar("batches of 500, of one at a time", "ours x500", "pika x1", 10.0),
)


def run(rounds: int) -> list[tuple[str, float, float]]:
    """Measure; return the name, the median ratio and the bar of each comparison."""
    ratios: dict[str, list[float]] = {bar.name: [] for bar in BARS}
    with _contenders() as contenders:
        for contender in contenders.values():
            contender()
        for turn in range(rounds):
            for bar in BARS:
                ratios[bar.name].append(_compare(contenders[bar.candidate], contenders[bar.limit], turn))
            contenders["purge"]()
    return [(bar.name, statistics.median(ratios[bar.name]), bar.ratio) for bar in BARS]


def _compare(candidate: Callable[[], float], limit: Callable[[], float], turn: int) -> float:
    """Let both run at nearly the same moment, each first in every other round."""
    if turn % 2:
        theirs = limit()
        return candidate() / theirs
    ours = candidate()
    return ours / limit()


@contextlib.contextmanager
def _contenders() -> Iterator[dict[str, Callable[[], float]]]:
    exchange = f"bench-{uuid.uuid4().hex[:8]}"
    with (
        bound_queue(_URL, exchange, _TOPIC) as queue,
        contextlib.closing(RabbitMQBroker(_URL, exchange=exchange, publish_timeout=60)) as broker,
        contextlib.closing(RawPublisher(_URL, exchange)) as raw,
        contextlib.ExitStack() as stack,
    ):
        plain = [stack.enter_context(_blocking(_URL)) for _ in range(_THREADS)]
        yield {
            "raw, window 1": lambda: raw.rate(100, 1),
            "ours x1": lambda: _rate(100, lambda: _publish(broker, 100, 1)),
            "pika x1": lambda: _rate(100, lambda: _one_by_one(plain[0], exchange, 100)),
            "raw, window 5": lambda: raw.rate(200, 5),
            "ours x5": lambda: _rate(200, lambda: _publish(broker, 40, 5)),
            "raw, window 16": lambda: raw.rate(800, 16),
            "ours, 16 threads": lambda: _rate(800, lambda: _together(lambda _: _publish(broker, 50, 1))),
            "pika, 16 connections": lambda: _rate(
                800, lambda: _together(lambda n: _one_by_one(plain[n], exchange, 50))
            ),
            "raw, window 500": lambda: raw.rate(3000, 500),
            "ours x500": lambda: _rate(3000, lambda: _publish(broker, 6, 500)),
            "purge": lambda: _rate(1, lambda: plain[0].queue_purge(queue)),
        }


def _rate(count: int, action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return count / (time.perf_counter() - started)


def _publish(broker: RabbitMQBroker, calls: int, messages: int) -> None:
    # The messages are made beforehand, as the raw frames are.
    batch = [sample_message() for _ in range(messages)]
    for _ in range(calls):
        broker.publish(batch)


def _together(action: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=action, args=(n,)) for n in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def sample_message() -> OutgoingMessage:
    """Return a small message: eight attributes and a body of 200 bytes."""
    identity = uuid7()
    attributes = {
        "specversion": "1.0",
        "id": identity,
        "source": "benchmark",
        "type": "meeting.joined",
        "time": "2026-11-23T12:00:00.000000Z",
        "eventversion": "1",
        "correlationid": identity,
        "partitionkey": "m-1",
    }
    return OutgoingMessage(
        id=identity, topic=_TOPIC, type="meeting.joined", body=_BODY, key="m-1", attributes=attributes
    )


@contextlib.contextmanager
def _blocking(url: str) -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
    parameters = pika.URLParameters(url)
    parameters.heartbeat = 0
    connection = pika.BlockingConnection(parameters)
    channel = connection.channel()
    channel.confirm_delivery()
    yield channel
    connection.close()


def _one_by_one(channel: pika.adapters.blocking_connection.BlockingChannel, exchange: str, count: int) -> None:
    message = sample_message()
    properties = pika.BasicProperties(
        content_type=message.content_type,
        delivery_mode=2,
        message_id=message.id,
        headers={f"ce-{name}": value for name, value in message.attributes.items()},
    )
    for _ in range(count):
        channel.basic_publish(exchange, _TOPIC, _BODY, properties, mandatory=True)


class RawPublisher:
    """An AMQP client that writes frames made beforehand and counts the answers."""

    _ACK = bytes((0, 60, 0, 80))

    def __init__(self, url: str, exchange: str) -> None:
        parameters = pika.URLParameters(url)
        encoded = MessageEncoder(exchange, 1_000_000).encode(sample_message())
        assert isinstance(encoded, bytes)
        self._frame = encoded
        self._received = b""
        self._tag = 0
        self._answered = 0
        self._socket = socket.create_connection((parameters.host, parameters.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open(parameters)

    def rate(self, count: int, window: int) -> float:
        """Publish `count` messages, `window` at a time, each window confirmed before the next."""
        frames = self._frame * window
        started = time.perf_counter()
        for _ in range(count // window):
            self._socket.sendall(frames)
            self._tag += window
            self._await_answers()
        return count / (time.perf_counter() - started)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _await_answers(self) -> None:
        # Single answers overtake each other, so the highest tag does not tell how many messages are confirmed.
        open_tags = set(range(self._answered + 1, self._tag + 1))
        while open_tags:
            _, payload = self._frame_in()
            if payload[:4] != self._ACK:
                raise AssertionError(f"the broker says {payload!r}")
            tag, multiple = struct.unpack_from(">QB", payload, 4)
            if multiple:
                open_tags = {left for left in open_tags if left > tag}
            else:
                open_tags.discard(tag)
        self._answered = self._tag

    def _frame_in(self) -> tuple[int, bytes]:
        while True:
            if len(self._received) >= 7:
                kind, _, size = struct.unpack_from(">BHI", self._received)
                if len(self._received) >= size + 8:
                    payload, self._received = self._received[7 : 7 + size], self._received[size + 8 :]
                    return kind, payload
            piece = self._socket.recv(65536)
            if not piece:
                raise AssertionError("the broker closed the connection")
            self._received += piece

    def _open(self, parameters: pika.connection.Parameters) -> None:
        credentials = parameters.credentials
        response = f"\0{credentials.username}\0{credentials.password}".encode()
        self._socket.sendall(b"AMQP\0\0\x09\x01")
        self._frame_in()
        start_ok = struct.pack(">I", 0) + b"\x05PLAIN" + struct.pack(">I", len(response)) + response + b"\x05en_US"
        self._call(0, 10, 11, start_ok, answer=True)
        self._call(0, 10, 31, struct.pack(">HIH", 2047, 131072, 0), answer=False)
        vhost = parameters.virtual_host.encode()
        self._call(0, 10, 40, bytes((len(vhost),)) + vhost + b"\0\0", answer=True)
        self._call(1, 20, 10, b"\0", answer=True)
        self._call(1, 85, 10, b"\0", answer=True)

    def _call(self, channel: int, kind: int, method: int, arguments: bytes, *, answer: bool) -> None:
        payload = struct.pack(">HH", kind, method) + arguments
        self._socket.sendall(struct.pack(">BHI", 1, channel, len(payload)) + payload + b"\xce")
        if answer:
            self._frame_in()


def main() -> None:
    """Print each ratio and its bar."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    print(f"{'RabbitMQ publishing':36} {'ratio':>7} {'bar':>6}")
    for name, ratio, bar in run(rounds):
        print(f"{name:36} {ratio:7.2f} {bar:6.2f}  {'ok' if ratio >= bar else 'MISSED'}")


if __name__ == "__main__":
    main()
