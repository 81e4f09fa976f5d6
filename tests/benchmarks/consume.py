"""
What a consumer costs beside a hand-written loop over the same client, with a handler that does nothing.

    python -m tests.benchmarks.consume [rounds]

Both receive the same messages from the same kind of place, make the same event of each and call the same
handler. The loop promises nothing: one thread, an ack or a commit when the handler has
returned, nothing deferred, no heartbeats while a handler works. The time counts from
the first message on: joining a group takes what it takes.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from attrs import frozen

import cqrs_sync as cqrs
from cqrs_sync.broker import Group, ReceivingBroker
from cqrs_sync.consumer import Consumer
from cqrs_sync.testing.contracts.broker import message
from tests.benchmarks.figures import Figure, table
from tests.servers.kafka import Tansu

MESSAGES = 20_000
KEYS = 1000
_URL = "amqp://guest:guest@127.0.0.1:5672/%2F"


@frozen
class Happened(cqrs.NotificationEvent, topic="orders", name="contract.happened", key="order"):
    order: str
    number: int


class Clock:
    """A handler that does nothing but note when it was called first, and last."""

    def __init__(self) -> None:
        self._calls = itertools.count(1)
        self._begun = 0.0
        self.took = 0.0
        self.done = threading.Event()

    def __call__(self, event: Happened) -> None:
        number = next(self._calls)
        if number == 1:
            self._begun = time.perf_counter()
        elif number == MESSAGES:
            self.took = time.perf_counter() - self._begun
            self.done.set()


def run(rounds: int) -> list[Figure]:
    """Return the figures."""
    figures = []
    for kind, places in (("rabbitmq", _rabbitmq), ("kafka", _kafka), ("confluent", _confluent)):
        ratios, rates = [], []
        for _ in range(rounds):
            with places() as (broker, group, loop):
                broker.apply_topology(group)
                _publish(broker)
                by_hand = loop()
            with places() as (broker, group, _):
                broker.apply_topology(group)
                _publish(broker)
                ours = _consumed(broker, group)
            ratios.append(by_hand / ours)
            rates.append(MESSAGES / ours)
        figures.append(Figure(f"consuming from {kind}, of a loop", statistics.median(ratios), 0.7, at_most=False))
        figures.append(Figure(f"consuming from {kind}", statistics.median(rates), None, "messages/s"))
    return figures


def _publish(broker: ReceivingBroker) -> None:
    for start in range(0, MESSAGES, 1000):
        broker.publish(
            [
                message("orders", json.dumps({"order": str(n % KEYS), "number": n}).encode(), key=str(n % KEYS))
                for n in range(start, start + 1000)
            ],
            timeout=30,
        )


def _consumed(broker: ReceivingBroker, group: Group) -> float:
    """Return the seconds a consumer takes."""
    events, clock = cqrs.EventMap(), Clock()
    events.bind(Happened, clock)
    mediator = cqrs.bootstrap(source="tests", events=events, broker=broker, threads=16)
    consumer = Consumer(mediator, group.name, retry=cqrs.RetryPolicy(delays=(0.1, 1.0, *group.delays)), inline_limit=1)
    with consumer:
        assert clock.done.wait(120), f"{consumer.counts} of {MESSAGES}"
    assert consumer.counts.handled == MESSAGES
    return clock.took


Places = Iterator[tuple[ReceivingBroker, Group, Callable[[], float]]]


@contextmanager
def _rabbitmq() -> Places:  # noqa: PLR0915 -- the loop is in it
    import pika  # noqa: PLC0415 -- only one of them is used

    from cqrs_sync.integrations.rabbitmq import RabbitMQBroker  # noqa: PLC0415

    name = f"bench-{uuid.uuid4().hex[:8]}"
    broker, group = RabbitMQBroker(_URL, exchange=name, publish_timeout=30), Group("g", ("orders",))
    admin = pika.BlockingConnection(pika.URLParameters(_URL))

    def loop() -> float:
        clock, channel = Clock(), admin.channel()
        channel.basic_qos(prefetch_count=200)

        def handle(channel: Any, method: Any, _: Any, body: bytes) -> None:
            clock(Happened(**json.loads(body)))
            channel.basic_ack(method.delivery_tag)
            if clock.done.is_set():
                channel.stop_consuming()

        channel.basic_consume(f"{name}.g", handle)
        channel.start_consuming()
        channel.close()
        return clock.took

    try:
        yield broker, group, loop
    finally:
        items = broker.inspect_topology(group)
        broker.close()
        channel = admin.channel()
        for item in items:
            if item.kind == "queue":
                channel.queue_delete(item.name)
            elif item.kind == "exchange":
                channel.exchange_delete(item.name)
        admin.close()


@contextmanager
def _kafka() -> Places:
    from kafka import KafkaConsumer  # noqa: PLC0415 -- as above

    from cqrs_sync.integrations.kafka import KafkaBroker  # noqa: PLC0415

    quick = {"session_timeout_ms": 2000, "heartbeat_interval_ms": 500}
    server = Tansu()
    server.start()
    broker = KafkaBroker(server.servers, publish_timeout=30, consumer_config=quick)

    def loop() -> float:
        clock, unsaved = Clock(), 0
        consumer = KafkaConsumer("orders", bootstrap_servers=server.servers, group_id="g", enable_auto_commit=False,
                                 metrics_enabled=False, **quick)  # fmt: skip
        while not clock.done.is_set():
            for records in consumer.poll(timeout_ms=500).values():
                for record in records:
                    clock(Happened(**json.loads(record.value)))
                unsaved += len(records)
            if unsaved >= 500:
                consumer.commit()
                unsaved = 0
        consumer.close()
        return clock.took

    try:
        yield broker, Group("g", ("orders",)), loop
    finally:
        broker.close()
        server.stop()


@contextmanager
def _confluent() -> Places:
    from confluent_kafka import Consumer as Client  # noqa: PLC0415 -- as above
    from confluent_kafka import TopicPartition  # noqa: PLC0415

    from cqrs_sync.integrations.confluent import ConfluentKafkaBroker  # noqa: PLC0415

    quick = {"session.timeout.ms": 2000, "heartbeat.interval.ms": 500}
    server = Tansu()
    server.start()
    broker = ConfluentKafkaBroker(server.servers, publish_timeout=30, consumer_config=quick)

    def loop() -> float:
        clock = Clock()
        client = Client(
            {
                "bootstrap.servers": server.servers,
                "group.id": "g",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                **quick,
            },
        )
        # Given its partitions: joining is not what is measured.
        client.assign([TopicPartition("orders", number, 0) for number in range(3)])
        while not clock.done.is_set():
            records = client.consume(500, 0.5)
            for record in records:
                clock(Happened(**json.loads(record.value())))
            if records:
                client.commit(asynchronous=True)
        client.close()
        return clock.took

    try:
        yield broker, Group("g", ("orders",)), loop
    finally:
        broker.close()
        server.stop()


if __name__ == "__main__":
    print(table(run(int(sys.argv[1]) if len(sys.argv) > 1 else 3)))
