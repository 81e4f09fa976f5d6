"""Kafka and processes: imports, forks, exits, with either client."""

from __future__ import annotations

import json
import threading
import time

import pytest

from cqrs_sync.errors import ClosedError, PublishFailed
from cqrs_sync.testing.contracts.broker import message
from tests.brokers.kafka_clients import LATE, run
from tests.servers import free_port
from tests.servers.kafka import bodies_in

pytestmark = pytest.mark.broker


def test_a_process_whose_broker_is_gone_leaves_in_time(client):
    """An unreachable broker holds up no exit, and there is no traceback."""
    completed, took = run(
        """
        import logging, sys
        from cqrs_sync.errors import PublishFailed
        from cqrs_sync.testing.contracts.broker import message
        logging.getLogger(sys.argv[2]).setLevel(logging.CRITICAL)
        try:
            Broker(sys.argv[1]).publish([message("orders")], timeout=0.5)
        except PublishFailed as error:
            print(error)
        """,
        f"127.0.0.1:{free_port()}",
        client.logger,
        client=client,
    )

    assert (0, "") == (completed.returncode, completed.stderr)
    assert client.refused in completed.stdout
    assert 20 > took


def test_connecting_imports_nothing(client, kafka_servers, kafka_topic):
    """A child that is forked while a thread imports a module waits for that import without end: there must be none."""
    completed, _ = run(
        """
        import json, sys
        from cqrs_sync.broker import Group
        from cqrs_sync.testing.contracts.broker import message
        servers, topic, quick = sys.argv[1:]
        before = set(sys.modules)
        broker = Broker(servers, consumer_config=json.loads(quick))
        broker.publish([message(topic, key="k")], timeout=10)
        broker.subscribe(Group("g", [topic])).close()
        broker.close()
        assert set(sys.modules) == before, set(sys.modules) - before
        """,
        kafka_servers,
        kafka_topic,
        json.dumps(client.quick_groups),
        client=client,
    )

    assert (0, "") == (completed.returncode, completed.stderr)


@pytest.mark.slow
def test_children_publish_and_leave(client, kafka_servers, kafka_topic):
    """
    Forked after the broker was used, each child publishes and exits like any program within five seconds;
    the parent continues to publish.
    """
    completed, _ = run(
        """
        import os, sys, time
        from cqrs_sync.testing.contracts.broker import message
        servers, topic, children = sys.argv[1:]
        broker = Broker(servers)
        broker.publish([message(topic, b"parent")], timeout=10)
        slowest = 0
        for number in range(int(children)):
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
        str(client.children),
        client=client,
    )

    assert (0, "") == (completed.returncode, completed.stderr)
    bodies = bodies_in(kafka_servers, kafka_topic)
    assert {b"%d" % number for number in range(client.children)} == set(bodies) - {b"parent"}
    assert client.children + 1 == bodies.count(b"parent")


def test_children_come_and_go_while_threads_publish(client, kafka_servers, kafka_topic):
    """
    A fork at any moment, even while a producer is made, leaves neither parent nor child hanging.

    A child that is forked while its parent looks up a host inherits a lock of the C library that no thread will
    ever release, and is told that there is no broker: one of many, and in time.
    """
    completed, _ = run(
        """
        import os, sys, threading
        from cqrs_sync.errors import PublishFailed
        from cqrs_sync.testing.contracts.broker import message
        servers, topic = sys.argv[1:]
        broker = Broker(servers)
        enough, failed, statuses = threading.Event(), [], []
        def publish_on():
            while not enough.is_set():
                try:
                    broker.publish([message(topic)], timeout=20)
                except Exception as error:
                    failed.append(error)
        threads = [threading.Thread(target=publish_on) for _ in range(4)]
        for thread in threads: thread.start()
        for number in range(12):
            child = os.fork()
            if not child:
                try:
                    broker.publish([message(topic, b"%d" % number)], timeout=10)
                    status = 0
                except PublishFailed:
                    status = 3
                except BaseException:
                    status = 4
                os._exit(status)
            statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        enough.set()
        for thread in threads: thread.join()
        broker.close()
        assert not failed, failed
        assert statuses.count(0) >= 10 and {0, 3} >= set(statuses), statuses
        """,
        kafka_servers,
        kafka_topic,
        client=client,
    )

    assert (0, "") == (completed.returncode, completed.stderr)


def test_a_process_that_leaves_without_closing_has_lost_nothing(client, kafka_servers, kafka_topic):
    """What `publish` returned for is there, and leaving is quick and quiet."""
    completed, took = run(
        """
        import sys
        from cqrs_sync.testing.contracts.broker import message
        servers, topic = sys.argv[1:]
        Broker(servers).publish([message(topic, b"%d" % number) for number in range(500)], timeout=10)
        """,
        kafka_servers,
        kafka_topic,
        client=client,
    )

    assert (0, "") == (completed.returncode, completed.stderr)
    assert {b"%d" % number for number in range(500)} == set(bodies_in(kafka_servers, kafka_topic))
    assert 25 > took


def test_a_broker_that_is_not_referred_to_ends_its_thread(client, kafka_servers, kafka_topic):
    """A process that makes brokers and forgets them does not fill up with threads."""
    completed, _ = run(
        """
        import gc, sys, threading, time
        from cqrs_sync.testing.contracts.broker import message
        servers, topic = sys.argv[1:]
        for _ in range(3):
            Broker(servers).publish([message(topic)], timeout=10)
        gc.collect()
        until = time.monotonic() + 30
        while threading.active_count() > 1:
            assert time.monotonic() < until, threading.enumerate()
        """,
        kafka_servers,
        kafka_topic,
        client=client,
    )

    assert (0, "") == (completed.returncode, completed.stderr)


def test_closing_while_others_publish_ends_them_in_time(client, kafka_servers, kafka_topic):
    """A thread that is publishing when the broker is closed gets its confirmation or an error of ours."""
    broker = client.broker(kafka_servers)
    broker.publish([message(kafka_topic)], timeout=10)
    results: list[object] = []

    def publish_on() -> None:
        while True:
            try:
                broker.publish([message(kafka_topic)], timeout=5)
            except (ClosedError, PublishFailed) as error:
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
    assert 3 + LATE > took
