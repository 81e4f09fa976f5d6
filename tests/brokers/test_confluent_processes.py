"""librdkafka and processes: imports, forks, exits."""

from __future__ import annotations

import sys

import pytest

from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
from cqrs_sync.testing.contracts.broker import message
from cqrs_sync.testing.waiting import in_forked_child
from tests.brokers.kafka_contract import KafkaProcesses, run
from tests.servers.kafka import CONFLUENT_QUICK_GROUPS

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


def test_a_producer_of_the_parent_is_never_destroyed_in_a_child(kafka_servers, kafka_topic):
    """
    Its threads are not there to end: whoever destroys it waits for ever, so that must not happen even to the last one.
    """
    broker = ConfluentKafkaBroker(kafka_servers)
    broker.publish([message(kafka_topic)], timeout=10)
    inherited = broker._publisher.batching._producer._producer
    references = sys.getrefcount(inherited)

    def compare():
        # One that nobody will ever give back.
        assert references < sys.getrefcount(inherited)

    assert 0 == in_forked_child(compare, timeout=20)
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
        from cqrs_sync.testing.contracts.broker import message, receive
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
    assert 40 > took


def test_a_process_leaves_in_time_with_a_subscription_nobody_closed(own_kafka):
    """
    Even where the broker has stopped to answer, the interpreter does not wait for it.
    """
    completed, took = run(
        """
        import logging, os, signal, sys
        from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
        from cqrs_sync.testing.contracts.broker import message, receive
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
    assert 30 > took


class TestProcesses(KafkaProcesses):
    broker_class = ConfluentKafkaBroker
    quick_groups = CONFLUENT_QUICK_GROUPS
    refused = "Connection refused"
    logger = "cqrs_sync.integrations.confluent"
    children = 12
