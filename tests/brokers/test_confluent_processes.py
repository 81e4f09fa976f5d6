"""librdkafka and processes: imports, forks, exits."""

from __future__ import annotations

import sys

import pytest

from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
from cqrs_sync.testing.contracts import in_forked_child, message
from tests.brokers.kafka_contract import KafkaProcesses, run
from tests.servers import free_port
from tests.servers.kafka import bodies_in

pytestmark = pytest.mark.broker


def test_importing_and_making_a_broker_starts_nothing():
    """
    No thread, those of librdkafka included, and no file or socket, until the first call.
    """
    completed, _ = run("""
        import os
        from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
        before = [os.listdir(f"/proc/self/{kind}") for kind in ("task", "fd")]
        ConfluentKafkaBroker("127.0.0.1:9", config={"client.id": "shop"})
        assert [os.listdir(f"/proc/self/{kind}") for kind in ("task", "fd")] == before
        assert len(before[0]) == 1
    """)

    assert (0, "") == (completed.returncode, completed.stderr)


@pytest.mark.slow
def test_thirty_children_publish_and_leave(kafka_servers, kafka_topic):
    """
    Forked after the broker was used, each child publishes and exits like any program within five seconds;
    the parent goes on publishing.
    """
    completed, _ = run(
        """
        import os, sys, time
        from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
        from cqrs_sync.testing.contracts import message
        servers, topic = sys.argv[1:]
        broker = ConfluentKafkaBroker(servers)
        broker.publish([message(topic, b"parent")], timeout=10)
        slowest = 0
        for number in range(30):
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
    assert {b"%d" % number for number in range(30)} == set(bodies) - {b"parent"}
    assert 31 == bodies.count(b"parent")


def test_connecting_imports_nothing(kafka_servers, kafka_topic):
    """
    A child that is forked while a thread imports a module waits for that import for ever: there must be none.
    """
    completed, _ = run(
        """
        import sys
        from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
        from cqrs_sync.testing.contracts import message
        servers, topic = sys.argv[1:]
        before = set(sys.modules)
        quick = {"session.timeout.ms": 2000, "heartbeat.interval.ms": 500}
        broker = ConfluentKafkaBroker(servers, consumer_config=quick)
        broker.publish([message(topic, key="k")], timeout=10)
        broker.subscribe(topic, group="g").close()
        broker.close()
        assert set(sys.modules) == before, set(sys.modules) - before
        """,
        kafka_servers,
        kafka_topic,
    )

    assert (0, "") == (completed.returncode, completed.stderr)


def test_a_producer_of_the_parent_is_never_destroyed_in_a_child(kafka_servers, kafka_topic):
    """
    Its threads are not there to end: whoever destroys it waits for ever, so that must not happen even to the last one.
    """
    broker = ConfluentKafkaBroker(kafka_servers)
    broker.publish([message(kafka_topic)], timeout=10)
    inherited = broker._together._producer._producer
    references = sys.getrefcount(inherited)

    def compare():
        # One that nobody will ever give back.
        assert references < sys.getrefcount(inherited)

    assert 0 == in_forked_child(compare, timeout=5)
    assert references == sys.getrefcount(inherited)
    broker.close()


def test_a_child_leaves_its_parent_s_consumer_alone(kafka_servers, kafka_topic):
    """
    A child that inherits a subscription, even inside its `with` block, leaves without touching it; the parent receives.
    """
    completed, took = run(
        """
        import os, sys
        from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
        from cqrs_sync.testing.contracts import message, receive
        servers, topic = sys.argv[1:]
        quick = {"session.timeout.ms": 2000, "heartbeat.interval.ms": 500}
        broker = ConfluentKafkaBroker(servers, consumer_config=quick)
        with broker.subscribe(topic, group=topic) as deliveries:
            broker.publish([message(topic, b"1")], timeout=10)
            receive(deliveries, 1)
            for _ in range(5):
                child = os.fork()
                if not child:
                    sys.exit()
                assert os.waitpid(child, 0)[1] == 0
            broker.publish([message(topic, b"2")], timeout=10)
            assert receive(deliveries, 1)[0].message.body == b"2"
        """,
        kafka_servers,
        kafka_topic,
    )

    assert (0, "") == (completed.returncode, completed.stderr)
    assert 20 > took


def test_a_process_whose_broker_is_gone_leaves_in_time():
    """
    An unreachable broker holds nobody up at exit, and there is no traceback.
    """
    completed, took = run(
        """
        import logging, sys
        from cqrs_sync.errors import PublishFailed
        from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
        from cqrs_sync.testing.contracts import message
        logging.getLogger("cqrs_sync.integrations.confluent").setLevel(logging.CRITICAL)
        try:
            ConfluentKafkaBroker(sys.argv[1]).publish([message("orders")], timeout=0.5)
        except PublishFailed as error:
            print(error)
        """,
        f"127.0.0.1:{free_port()}",
    )

    assert (0, "") == (completed.returncode, completed.stderr)
    assert "Connection refused" in completed.stdout
    assert 10 > took


def test_a_process_leaves_in_time_with_a_subscription_nobody_closed(own_kafka):
    """
    Even where the broker has stopped to answer, the interpreter does not wait for it.
    """
    completed, took = run(
        """
        import logging, os, signal, sys
        from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
        from cqrs_sync.testing.contracts import message, receive
        logging.getLogger("cqrs_sync.integrations.confluent").setLevel(logging.CRITICAL)
        quick = {"session.timeout.ms": 2000, "heartbeat.interval.ms": 500}
        broker = ConfluentKafkaBroker(sys.argv[1], consumer_config=quick)
        deliveries = broker.subscribe("orders", group="g")
        broker.publish([message("orders")], timeout=10)
        receive(deliveries, 1)
        os.kill(int(sys.argv[2]), signal.SIGSTOP)
        """,
        own_kafka.servers,
        str(own_kafka._process.pid),
    )

    assert (0, "") == (completed.returncode, completed.stderr)
    assert 6 > took


class TestProcesses(KafkaProcesses):
    broker_class = ConfluentKafkaBroker
