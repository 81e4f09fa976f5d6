"""The two clients for Kafka, and what their tests have in common: each test of a promise runs with both."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
from kafka import KafkaAdminClient

from cqrs_sync.broker import MessageBroker
from cqrs_sync.errors import BrokerUnavailable, PublishFailed
from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
from cqrs_sync.integrations.kafka import KafkaBroker
from cqrs_sync.testing.contracts.broker import message
from tests.servers.kafka import CONFLUENT_QUICK_GROUPS, CONFLUENT_SINGLY, QUICK_GROUPS, SINGLY
from tests.waiting import eventually

#: How much later than its deadline a call may return on a busy machine.
LATE = 4.0
#: Seconds after the broker's return in which publishing has to work again.
BACK_IN = 8.0
ROOT = Path(__file__).parents[2]


@attrs.frozen
class Client:
    """One client, in the words that differ."""

    broker_class: type[KafkaBroker | ConfluentKafkaBroker]
    #: Options of a broker that creates no topics by itself.
    creates_no_topics: Mapping[str, Any]
    #: Options of groups that miss a member soon, and of a member that may stay away from polling for three seconds.
    quick_groups: Mapping[str, Any]
    impatient: Mapping[str, Any]
    #: Options of a producer that sends each record alone, and of one that does so without idempotence.
    singly: Mapping[str, Any]
    one_by_one: Mapping[str, Any]
    #: Options of a broker whose producer gives up after a second.
    gives_up_soon: Mapping[str, Any]
    #: What it says of a port without a listener.
    refused: str
    #: What it says of a wrong password, and logs at DEBUG while it sends one.
    unauthenticated: str
    authenticating: str
    #: What logs that a connection was refused.
    logger: str
    #: How many children are forked, and how many messages are confirmed between two harms.
    children: int
    many: int

    #: Options of a broker with credentials, and what a URL ends with for a log at DEBUG.
    credentials: Callable[[str, str], Mapping[str, Any]]
    debug: str
    #: Whether a producer has records in flight.
    in_flight: Callable[[Any], object]

    def broker(self, servers: str, *, creates_topics: bool = True, **options: Any) -> Any:
        return self.broker_class(servers, **({} if creates_topics else self.creates_no_topics), **options)

    def __str__(self) -> str:
        return self.broker_class.__name__


KAFKA_PYTHON = Client(
    KafkaBroker,
    creates_no_topics={"client_config": {"allow_auto_create_topics": False}},
    quick_groups=QUICK_GROUPS,
    impatient={"max_poll_interval_ms": 3000},
    singly=SINGLY,
    one_by_one={"enable_idempotence": False, "batch_size": 0},
    # kafka-python's own order of things in small: it tries again several times before it gives up.
    gives_up_soon={"producer_config": {"request_timeout_ms": 300, "delivery_timeout_ms": 1000}},
    refused="ECONNREFUSED",
    unauthenticated="SaslAuthenticationFailedError",
    authenticating="SaslAuthenticateRequest",
    logger="kafka",
    children=40,
    many=200,
    credentials=lambda user, password: {
        "client_config": {
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": user,
            "sasl_plain_password": password,
        }
    },
    debug="",
    in_flight=lambda producer: producer._sender._in_flight_batches,
)
CONFLUENT = Client(
    ConfluentKafkaBroker,
    creates_no_topics={"client_config": {"allow.auto.create.topics": False}},
    quick_groups=CONFLUENT_QUICK_GROUPS,
    impatient={"max.poll.interval.ms": 3000},
    singly=CONFLUENT_SINGLY,
    one_by_one={"enable.idempotence": False, "batch.num.messages": 1, "max.in.flight": 1},
    gives_up_soon={"publish_timeout": 1.0},
    refused="Connection refused",
    unauthenticated="SASL authentication error",
    authenticating="sasl.password",
    logger="cqrs_sync.integrations.confluent",
    children=12,
    many=2500,
    credentials=lambda user, password: {
        "client_config": {
            "security.protocol": "sasl_plaintext",
            "sasl.mechanism": "PLAIN",
            "sasl.username": user,
            "sasl.password": password,
            "debug": "all",
        }
    },
    debug="?debug=all",
    in_flight=lambda producer: len(producer._producer),
)


def failures_of(broker, messages, **options):
    with pytest.raises(PublishFailed) as caught:
        broker.publish(messages, **options)
    return caught.value.failures


def publish(broker, body=b"x", *, timeout=5.0, topic="orders"):
    """Publish one message; return why it failed, None if it did not, and the seconds it took."""
    started = time.monotonic()
    try:
        broker.publish([message(topic, body, key="k")], timeout=timeout)
    except PublishFailed as failed:
        return failed.failures[0][1], time.monotonic() - started
    return None, time.monotonic() - started


def seconds_until_it_works(broker):
    started = time.monotonic()
    eventually(lambda: publish(broker)[0] is None, timeout=30)
    return time.monotonic() - started


# What the tests look at inside of a broker and a subscription, with either client.


def supervisor_of(broker):
    """What keeps its producer."""
    return broker._publisher.batching


def producer_of(broker):
    """The producer that its next call would use."""
    return supervisor_of(broker)._producer


def owes_nothing(broker):
    """Whether the client has given up the record that a call left behind, with no thread looking."""
    unanswered = supervisor_of(broker)._unanswered
    return unanswered is None or unanswered[1] in unanswered[0].answers()


def make_topic(servers, topic, *, partitions):
    admin = KafkaAdminClient(bootstrap_servers=servers)
    try:
        admin.create_topics({topic: {"num_partitions": partitions, "replication_factor": 1}})
    finally:
        admin.close()


def publish_texts(broker, topic, *texts):
    broker.publish([message(topic, text) for text in texts], timeout=10)


def bodies(deliveries):
    return [delivery.message.body for delivery in deliveries]


def buffer_of(deliveries):
    """What it has fetched, and its partitions."""
    return deliveries._buffer


def ready_count(deliveries):
    """How many messages it has fetched and not delivered."""
    return len(buffer_of(deliveries)._ready)


def initial_offsets_of(deliveries):
    """Where its partitions begin."""
    return deliveries._initial_offsets


def has_partitions(deliveries):
    return bool(buffer_of(deliveries).partitions)


def is_unreachable(deliveries):
    try:
        assert deliveries.receive(timeout=0.2) is None
    except BrokerUnavailable:
        return True
    return False


class Publishers:
    """Sixteen threads that publish, and what they were told about their messages."""

    def __init__(self, broker: MessageBroker, timeout: float) -> None:
        self.confirmed: list[bytes] = []
        self.failed: list[bytes] = []
        self.latest = 0.0
        self._broker = broker
        self._timeout = timeout
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._publish_on, args=(name,)) for name in range(16)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._enough.set()
        for thread in self._threads:
            thread.join(20)

    def _publish_on(self, name: int) -> None:
        numbers = itertools.count()
        while not self._enough.is_set():
            batch = [message("orders", b"%d-%d" % (name, next(numbers)), key=str(name)) for _ in range(5)]
            started = time.monotonic()
            failed = self._publish(batch)
            self.latest = max(self.latest, time.monotonic() - started - self._timeout)
            self.failed += failed
            self.confirmed += [sent.body for sent in batch if sent.body not in failed]

    def _publish(self, batch):
        try:
            self._broker.publish(batch, timeout=self._timeout)
        except PublishFailed as error:
            return [sent.body for sent, _ in error.failures]
        return []


def run(script: str, *arguments: str, client: Client | None = None) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a script in an interpreter of its own, which complains about everything; it knows `Broker`, if any."""
    known = ""
    if client is not None:
        known = f"from {client.broker_class.__module__} import {client.broker_class.__name__} as Broker\n"
    started = time.monotonic()
    completed = subprocess.run(
        [sys.executable, "-W", "error", "-c", known + textwrap.dedent(script), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return completed, time.monotonic() - started
