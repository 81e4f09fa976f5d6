"""The lifetime of RabbitMQBroker: threads, connections, memory, forked children, exit."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from cqrs_sync.broker import Group
from cqrs_sync.errors import BrokerUnavailable, ClosedError, PublishFailed
from cqrs_sync.integrations.rabbitmq import RabbitMQBroker
from cqrs_sync.integrations.rabbitmq.publisher import PublishBatch
from cqrs_sync.testing.contracts.broker import message
from cqrs_sync.testing.waiting import in_forked_child
from tests.brokers.rabbitmq_publishers import publisher_of
from tests.servers import free_port
from tests.servers.proxy import TcpProxy
from tests.servers.rabbitmq import bound_queue, drained, forget, proxied, via
from tests.waiting import eventually

pytestmark = pytest.mark.broker


@pytest.fixture
def queue(rabbitmq_url: str, exchange: str) -> Iterator[str]:
    with bound_queue(rabbitmq_url, exchange, "meetings") as queue:
        yield queue


@pytest.fixture
def proxy(rabbitmq_url: str) -> Iterator[TcpProxy]:
    with proxied(rabbitmq_url) as proxy:
        yield proxy


@pytest.fixture
def broker(proxy: TcpProxy, rabbitmq_url: str, exchange: str, queue: str) -> Iterator[RabbitMQBroker]:
    """A broker that connects through the proxy."""
    with contextlib.closing(RabbitMQBroker(f"{via(proxy, rabbitmq_url)}?heartbeat=1", exchange=exchange)) as broker:
        yield broker


def io_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "rabbitmq" in thread.name]


def test_nothing_starts_before_the_first_use(proxy, rabbitmq_url, exchange):
    """T5: no thread and no connection at construction. An unused broker can be closed."""
    before = threading.active_count()
    broker = RabbitMQBroker(via(proxy, rabbitmq_url), exchange=exchange)
    broker.publish([])

    assert before == threading.active_count()
    assert 0 == proxy.accepted
    broker.close()


def test_a_connection_outlives_a_long_silence(broker, proxy):
    """B2: heartbeats are answered while nothing is published: the server closes after two missed ones."""
    broker.publish([message("meetings")])
    threading.Event().wait(5.0)
    broker.publish([message("meetings")])

    assert 1 == proxy.accepted


def test_threads_share_one_connection(broker, proxy):
    """One connection and one I/O thread serve sixteen threads."""
    threads = [threading.Thread(target=broker.publish, args=([message("meetings")],)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert 1 == proxy.accepted
    assert 1 == len(io_threads())


def test_a_hundred_forked_children_publish_and_exit_clean(broker, queue, rabbitmq_url):
    """B2: each makes its own connection; the parent keeps its own."""
    broker.publish([message("meetings", b"parent")])
    for n in range(100):
        body = b"%d" % n
        assert 0 == in_forked_child(
            lambda body=body: broker.publish([message("meetings", body)], timeout=5), timeout=20
        )
    broker.publish([message("meetings", b"parent")])

    wanted = sorted([b"parent"] * 2 + [b"%d" % n for n in range(100)])
    assert wanted == sorted(body for _, body in drained(rabbitmq_url, queue))


def test_children_forked_while_others_publish_are_not_harmed(broker, proxy):
    """The other threads may hold a lock or have sent half a frame at that moment."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def publish() -> None:
        while not stop.is_set():
            try:
                broker.publish([message("meetings") for _ in range(20)])
            except PublishFailed as error:
                errors.append(error)

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    statuses = [
        in_forked_child(lambda: broker.publish([message("meetings")], timeout=5), timeout=10) for _ in range(10)
    ]
    stop.set()
    for thread in threads:
        thread.join(10)

    assert [0] * 10 == statuses
    assert [] == errors
    assert 11 == proxy.accepted


def test_closing_waits_for_running_calls(broker, queue, rabbitmq_url):
    """A running call finishes, a new one is refused, and the thread ends."""
    broker.publish([message("meetings")])
    entered = threading.Event()
    outcome: list[object] = []

    class Batch(list):
        def __len__(self) -> int:
            entered.set()
            return super().__len__()

    def publish() -> None:
        broker.publish(Batch(message("meetings") for _ in range(1_000)), timeout=20)
        outcome.append("confirmed")

    publishing = threading.Thread(target=publish)
    publishing.start()
    assert entered.wait(10)
    broker.close(timeout=10)
    publishing.join(10)

    assert ["confirmed"] == outcome
    with pytest.raises(ClosedError):
        broker.publish([message("meetings")])
    assert [] == io_threads()
    assert 1_001 == len(drained(rabbitmq_url, queue))


@pytest.mark.parametrize("fault", ["freeze", "cut"])
def test_closing_ends_in_time_when_the_broker_does_not_answer(broker, proxy, fault):
    """A caller that still waits for a confirm gets an error."""
    broker.publish([message("meetings")])
    getattr(proxy, fault)()
    errors: list[PublishFailed] = []

    def publish() -> None:
        try:
            broker.publish([message("meetings")], timeout=30)
        except PublishFailed as error:
            errors.append(error)

    publishing = threading.Thread(target=publish)
    publishing.start()
    eventually(lambda: publisher_of(broker)._running_calls == 1)
    started = time.monotonic()
    broker.close(timeout=1.0)
    took = time.monotonic() - started
    publishing.join(10)

    assert took < 6.0
    [(_, error)] = errors[0].failures
    assert isinstance(error, BrokerUnavailable)
    assert "closed before an answer came" in str(error)
    assert [] == io_threads()


_SCRIPT = """
import atexit
import sys
import threading

# Registered first, so it runs last: it sees the threads that all others have left.
atexit.register(lambda: print([thread.name for thread in threading.enumerate()]))

from cqrs_sync.broker import Group
from cqrs_sync.integrations.rabbitmq import RabbitMQBroker
from cqrs_sync.integrations.rabbitmq.publisher import PublishBatch
from cqrs_sync.testing.contracts.broker import message

broker = RabbitMQBroker(sys.argv[1], exchange=sys.argv[2])
subscription = RabbitMQBroker(sys.argv[1], exchange=sys.argv[2]).subscribe(Group("leaving", ["others"]))
broker.publish([message("meetings")])
"""


def test_a_process_that_closes_nothing_exits_clean(proxy, exchange, queue, rabbitmq_url):
    """T5: connections are closed at exit, within a time limit, and nothing is written to stderr."""
    url = via(proxy, rabbitmq_url)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _SCRIPT, url, exchange],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    forget(rabbitmq_url, exchange, Group("leaving", ["others"]))

    assert (0, "['MainThread']\n", "") == (done.returncode, done.stdout, done.stderr)
    assert 1 == len(drained(rabbitmq_url, queue))


def test_a_process_that_cannot_reach_its_broker_exits_in_time(exchange):
    """T5: it needs no kill."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, f"amqp://127.0.0.1:{free_port()}/?socket_timeout=1", exchange],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert "BrokerUnavailable: connection refused" in done.stderr
    assert time.monotonic() - started < 25


def test_a_large_call_needs_little_memory(broker):
    """T4: messages are encoded batch by batch, not all at once."""
    messages = [message("meetings", b"x" * 2_000) for _ in range(10_000)]
    broker.publish(messages[:100])
    gc.collect()
    tracemalloc.start()
    try:
        broker.publish(messages, timeout=60)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    # All messages encoded take 22 MB.
    assert peak < 8_000_000


def test_an_outage_does_not_pile_up_abandoned_messages(broker, proxy):
    """T4: messages whose callers gave up are dropped while the broker is away."""
    broker.publish([message("meetings")])
    proxy.cut()
    before = batches()
    for _ in range(20):
        with pytest.raises(PublishFailed):
            broker.publish([message("meetings") for _ in range(50)], timeout=0.02)

    eventually(lambda: not [batch for batch in batches() if batch not in before])


def batches() -> list[PublishBatch]:
    """Return the calls of `publish` that anything refers to."""
    gc.collect()
    # `isinstance` would ask lazy objects of other libraries for their class, and have them loaded.
    return [each for each in gc.get_objects() if type(each) is PublishBatch]
