"""Kafka and processes: imports, forks, exits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cqrs_sync.integrations.kafka import KafkaBroker
from tests.brokers.kafka_contract import KafkaProcesses, run
from tests.servers import free_port
from tests.servers.kafka import bodies_in
from tests.waiting import eventually

pytestmark = pytest.mark.broker

_ROOT = Path(__file__).parents[2]


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


class TestProcesses(KafkaProcesses):
    broker_class = KafkaBroker
