"""Kafka and processes: imports, forks, exits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from cqrs_sync.errors import Closed, PublishFailed
from cqrs_sync.integrations.kafka import KafkaBroker
from cqrs_sync.testing.contracts import message
from tests.servers import free_port
from tests.servers.kafka import bodies_in
from tests.waiting import eventually

pytestmark = pytest.mark.broker

_ROOT = Path(__file__).parents[2]


def run(script: str, *arguments: str, timeout: float = 100) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a script in an interpreter of its own, which complains about everything."""
    started = time.monotonic()
    completed = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *arguments],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return completed, time.monotonic() - started


def test_importing_and_making_a_broker_starts_nothing():
    """
    No thread, no socket, until the first call.
    """
    completed, _ = run("""
        import socket, threading
        def refuse(*_, **__): raise AssertionError("a socket was made")
        socket.socket.__init__ = refuse
        from cqrs_sync.integrations.kafka import KafkaBroker
        KafkaBroker("127.0.0.1:9")
        assert threading.active_count() == 1, threading.enumerate()
    """)

    assert (0, "") == (completed.returncode, completed.stderr)


@pytest.mark.slow
def test_a_hundred_children_publish_and_leave(kafka_servers, kafka_topic):
    """
    Forked after the broker was used, each child publishes and exits like any program within five seconds;
    the parent goes on publishing.
    """
    completed, _ = run(
        """
        import os, sys, time
        from cqrs_sync.integrations.kafka import KafkaBroker
        from cqrs_sync.testing.contracts import message
        servers, topic = sys.argv[1:]
        broker = KafkaBroker(servers)
        broker.publish([message(topic, b"parent")], timeout=10)
        slowest = 0
        for number in range(100):
            child = os.fork()
            if not child:
                broker.publish([message(topic, b"%d" % number)], timeout=4)
                sys.exit()
            started = time.monotonic()
            _, status = os.waitpid(child, 0)
            slowest = max(slowest, time.monotonic() - started)
            assert status == 0, status
            broker.publish([message(topic, b"parent")], timeout=10)
        broker.close()
        assert slowest < 5, slowest
        """,
        kafka_servers,
        kafka_topic,
    )

    assert (0, "") == (completed.returncode, completed.stderr)
    bodies = bodies_in(kafka_servers, kafka_topic)
    assert {b"%d" % number for number in range(100)} == set(bodies) - {b"parent"}
    assert 101 == bodies.count(b"parent")


def test_connecting_imports_nothing(kafka_servers, kafka_topic):
    """
    A child that is forked while a thread imports a module waits for that import for ever: there must be none.
    """
    completed, _ = run(
        """
        import sys
        from cqrs_sync.integrations.kafka import KafkaBroker
        from cqrs_sync.testing.contracts import message
        servers, topic = sys.argv[1:]
        before = set(sys.modules)
        broker = KafkaBroker(servers)
        broker.publish([message(topic, key="k")], timeout=10)
        broker.subscribe(topic, group="g").close()
        broker.close()
        assert set(sys.modules) == before, set(sys.modules) - before
        """,
        kafka_servers,
        kafka_topic,
    )

    assert (0, "") == (completed.returncode, completed.stderr)


def test_children_come_and_go_while_threads_publish(kafka_servers, kafka_topic):
    """
    A fork at any moment, even while a producer is made, leaves neither parent nor child hanging.
    """
    completed, _ = run(
        """
        import os, sys, threading
        from cqrs_sync.integrations.kafka import KafkaBroker
        from cqrs_sync.testing.contracts import message
        servers, topic = sys.argv[1:]
        broker = KafkaBroker(servers)
        enough, failed = threading.Event(), []
        def publish_on():
            while not enough.is_set():
                try:
                    broker.publish([message(topic)], timeout=20)
                except Exception as error:
                    failed.append(error)
        threads = [threading.Thread(target=publish_on) for _ in range(4)]
        for thread in threads: thread.start()
        for number in range(20):
            child = os.fork()
            if not child:
                broker.publish([message(topic, b"%d" % number)], timeout=10)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        enough.set()
        for thread in threads: thread.join()
        broker.close()
        assert not failed, failed
        """,
        kafka_servers,
        kafka_topic,
    )

    assert (0, "") == (completed.returncode, completed.stderr)


def test_a_child_does_not_hold_its_parent_s_connections_open(kafka_behind_proxy):
    """
    When the parent dies, the broker hears of it, however long its children live.
    """
    server, proxy = kafka_behind_proxy
    script = """
        import os, signal, sys
        from cqrs_sync.integrations.kafka import KafkaBroker
        from cqrs_sync.testing.contracts import message
        broker = KafkaBroker(sys.argv[1])
        broker.publish([message("orders")], timeout=10)
        child = os.fork()
        if child:
            print(child, flush=True)
        signal.pause()
    """
    command = [sys.executable, "-c", textwrap.dedent(script), server.servers]
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            assert proxy._pairs
            parent.kill()
            eventually(lambda: not proxy._pairs, timeout=5)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_process_that_leaves_without_closing_has_lost_nothing(kafka_servers, kafka_topic):
    """
    What `publish` returned for is there, and leaving is quick and quiet.
    """
    completed, took = run(
        """
        import sys
        from cqrs_sync.integrations.kafka import KafkaBroker
        from cqrs_sync.testing.contracts import message
        servers, topic = sys.argv[1:]
        KafkaBroker(servers).publish([message(topic, b"%d" % number) for number in range(500)], timeout=10)
        """,
        kafka_servers,
        kafka_topic,
    )

    assert (0, "") == (completed.returncode, completed.stderr)
    assert {b"%d" % number for number in range(500)} == set(bodies_in(kafka_servers, kafka_topic))
    assert 15 > took


def test_a_process_whose_broker_is_gone_leaves_in_time():
    """
    An unreachable broker holds nobody up at exit, and there is no traceback.
    """
    completed, took = run(
        """
        import logging, sys
        from cqrs_sync.errors import PublishFailed
        from cqrs_sync.integrations.kafka import KafkaBroker
        from cqrs_sync.testing.contracts import message
        logging.getLogger("kafka").setLevel(logging.CRITICAL)
        try:
            KafkaBroker(sys.argv[1]).publish([message("orders")], timeout=0.5)
        except PublishFailed as error:
            print(error)
        """,
        f"127.0.0.1:{free_port()}",
    )

    assert (0, "") == (completed.returncode, completed.stderr)
    assert "ECONNREFUSED" in completed.stdout
    assert 10 > took


def test_a_broker_nobody_refers_to_ends_its_thread(kafka_servers, kafka_topic):
    """
    A process that makes brokers and forgets them does not fill up with threads.
    """
    completed, _ = run(
        """
        import gc, sys, threading, time
        from cqrs_sync.integrations.kafka import KafkaBroker
        from cqrs_sync.testing.contracts import message
        servers, topic = sys.argv[1:]
        for _ in range(3):
            KafkaBroker(servers).publish([message(topic)], timeout=10)
        gc.collect()
        until = time.monotonic() + 5
        while threading.active_count() > 1:
            assert time.monotonic() < until, threading.enumerate()
        """,
        kafka_servers,
        kafka_topic,
    )

    assert (0, "") == (completed.returncode, completed.stderr)


def test_closing_while_others_publish_ends_them_in_time(kafka_servers, kafka_topic):
    """
    A thread that is publishing when the broker is closed gets its confirmation or an error of ours.
    """
    broker = KafkaBroker(kafka_servers)
    broker.publish([message(kafka_topic)], timeout=10)
    results: list[object] = []

    def publish_on() -> None:
        while True:
            try:
                broker.publish([message(kafka_topic)], timeout=5)
            except (Closed, PublishFailed) as error:
                results.append(error)
                return

    threads = [threading.Thread(target=publish_on) for _ in range(8)]
    for thread in threads:
        thread.start()
    started = time.monotonic()
    broker.close(timeout=3)
    took = time.monotonic() - started
    for thread in threads:
        thread.join(10)

    assert 8 == len(results)
    assert 4 > took
