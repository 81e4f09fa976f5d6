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
from tests.servers.kafka import QUICK_GROUPS
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


def test_a_child_does_not_hold_its_parent_s_connections_open(kafka_behind_proxy):
    """
    When the parent dies, the broker hears of it, however long its children live.
    """
    server, proxy = kafka_behind_proxy
    script = """
        import os, signal, sys
        from cqrs_sync.integrations.kafka import KafkaBroker
        from cqrs_sync.testing.contracts.broker import message
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
            eventually(lambda: not proxy._pairs, timeout=20)
        finally:
            os.kill(child, signal.SIGKILL)


class TestProcesses(KafkaProcesses):
    broker_class = KafkaBroker
    quick_groups = QUICK_GROUPS
    refused = "ECONNREFUSED"
    logger = "kafka"
    children = 40
