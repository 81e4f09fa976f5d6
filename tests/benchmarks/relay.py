"""
What a relay costs beside a hand-written loop that selects, publishes pipelined and deletes the same batches.

    python -m tests.benchmarks.relay [rounds]

Both read the same rows of one PostgreSQL and give the same bytes to the same broker. The
loop promises nothing: it holds its transaction while it publishes, and knows no keys, attempts,
leases or other relays. Besides: the time from a commit to the broker, what an idle relay asks
of its database, and claiming from a full table.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.orm import sessionmaker

import cqrs_sync as cqrs
from cqrs_sync.broker import MessageBroker
from cqrs_sync.integrations.sqlalchemy import Sessions, SQLAlchemyOutbox, tables
from cqrs_sync.memory import MemoryBroker
from cqrs_sync.outbox import OutboxEntry
from cqrs_sync.testing.contracts.broker import message
from tests.benchmarks.figures import Figure
from tests.storms.outbox.environment import broker_of, database
from tests.waiting import eventually

MESSAGES = 10_000
BATCH = 500
BODY = json.dumps({"order": "x" * 200}).encode()

Row = Sequence[Any]
Publish = Callable[[Sequence[Row]], None]


class Bench:
    """A PostgreSQL with an outbox in it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = sa.create_engine(url)
        metadata = sa.MetaData()
        tables(metadata)
        metadata.create_all(self.engine)
        self.sessions = Sessions(sessionmaker(self.engine))
        self.outbox = SQLAlchemyOutbox(self.sessions)

    def fill(self, topic: str, keys: int, count: int = MESSAGES) -> None:
        """Keep messages that share this many keys; 0 for none."""
        for start in range(0, count, 1000):
            entries = [
                OutboxEntry(message(topic, BODY, key=str(number % keys) if keys else None), publish=True)
                for number in range(start, min(start + 1000, count))
            ]
            with self.sessions.begin():
                self.outbox.add(entries)

    def mediator(self, broker: MessageBroker, **options: Any) -> cqrs.Mediator:
        return cqrs.bootstrap(source="tests", broker=broker, outbox=self.outbox, threads=1, **options)


def run(rounds: int) -> list[Figure]:
    """Return the figures."""
    figures: list[Figure] = []
    with database("postgresql") as url:
        for kind in ("rabbitmq", "kafka", "confluent"):
            figures += _throughput(Bench(url), kind, rounds)
        figures += _latency(Bench(url))
        figures += _idle(Bench(url))
        figures += _claims(Bench(url))
    return figures


def _throughput(bench: Bench, kind: str, rounds: int) -> list[Figure]:
    figures = []
    with ExitStack() as stack:
        server = stack.enter_context(broker_of("rabbitmq" if kind == "rabbitmq" else "kafka"))
        topic = getattr(server, "topic", "orders")
        broker, publish = stack.enter_context(_clients(kind, server))
        loads = (("no keys", 0, cqrs.OnDeadLetter.BLOCK), ("1000 keys", 1000, cqrs.OnDeadLetter.BLOCK))
        few = (
            ("8 keys, exact order", 8, cqrs.OnDeadLetter.BLOCK),
            ("8 keys, stepping over", 8, cqrs.OnDeadLetter.SKIP),
        )
        for name, keys, on_dead_letter in (*loads, *few):
            ratios = []
            for _ in range(rounds):
                bench.fill(topic, keys)
                by_hand = _by_hand(bench, publish)
                bench.fill(topic, keys)
                ours = _relayed(bench, broker, cqrs.RetryPolicy(on_dead_letter=on_dead_letter))
                ratios.append(by_hand / ours)
            bar = 0.8 if keys != 8 else None
            figures.append(Figure(f"relay to {kind}, {name}, of a loop", statistics.median(ratios), bar, at_most=False))
            figures.append(Figure(f"relay to {kind}, {name}", MESSAGES / ours, None, "messages/s"))
    return figures


def _relayed(bench: Bench, broker: MessageBroker, policy: cqrs.RetryPolicy) -> float:
    """Return the seconds one relay takes."""
    relay = bench.mediator(broker, fast_path=False, retry=policy).relay
    assert relay is not None
    begun = time.perf_counter()
    relay.start()
    eventually(lambda: relay.delivered >= MESSAGES, timeout=120)
    took = time.perf_counter() - begun
    relay.close(10)
    assert relay.delivered == MESSAGES
    return took


def _by_hand(bench: Bench, publish: Publish) -> float:
    """Return the seconds the loop takes."""
    url = sa.make_url(bench.url).set(drivername="postgresql").render_as_string(hide_password=False)
    select = (
        "SELECT d.id, m.id, m.topic, m.type, m.partition_key, m.content_type, m.payload, m.headers "
        "FROM cqrs_delivery d JOIN cqrs_message m ON m.id = d.message_id "
        "ORDER BY d.id LIMIT %s FOR UPDATE OF d SKIP LOCKED"
    )
    with psycopg.connect(url) as connection:
        begun = time.perf_counter()
        while rows := connection.execute(select, (BATCH,)).fetchall():
            publish(rows)
            connection.execute("DELETE FROM cqrs_delivery WHERE id = ANY(%s)", ([row[0] for row in rows],))
            connection.commit()
        return time.perf_counter() - begun


@contextmanager
def _clients(kind: str, server: Any) -> Iterator[tuple[MessageBroker, Publish]]:
    """Our broker, and the vendor's client as the loop uses it."""
    make = {"rabbitmq": _rabbitmq, "kafka": _kafka, "confluent": _confluent}[kind]
    with make(server) as (broker, publish):
        yield broker, publish
        broker.close()


@contextmanager
def _rabbitmq(server: Any) -> Iterator[tuple[MessageBroker, Publish]]:
    from cqrs_sync.integrations.rabbitmq import RabbitMQBroker  # noqa: PLC0415 -- only one of them is used

    with _pipelined(server) as publish:
        yield RabbitMQBroker(server.url, exchange=server.exchange, publish_timeout=10), publish


@contextmanager
def _kafka(server: Any) -> Iterator[tuple[MessageBroker, Publish]]:
    from kafka import KafkaProducer  # noqa: PLC0415 -- as above

    from cqrs_sync.integrations.kafka import KafkaBroker  # noqa: PLC0415

    servers = server.url.removeprefix("kafka://")
    producer = KafkaProducer(bootstrap_servers=servers, acks="all", metrics_enabled=False)

    def publish(rows: Sequence[Row]) -> None:
        futures = [producer.send(row[2], value=bytes(row[6]), key=_key(row), headers=_headers(row)) for row in rows]
        producer.flush(10)
        for future in futures:
            future.get(10)

    try:
        yield KafkaBroker(servers, publish_timeout=10), publish
    finally:
        producer.close()


@contextmanager
def _confluent(server: Any) -> Iterator[tuple[MessageBroker, Publish]]:
    from confluent_kafka import Producer  # noqa: PLC0415 -- as above

    from cqrs_sync.integrations.confluent import ConfluentKafkaBroker  # noqa: PLC0415

    servers = server.url.removeprefix("kafka://")
    producer = Producer({"bootstrap.servers": servers, "acks": "all", "linger.ms": 0})
    failed: list[Any] = []

    def report(error: Any, _: Any) -> None:
        if error is not None:
            failed.append(error)

    def publish(rows: Sequence[Row]) -> None:
        for row in rows:
            producer.produce(row[2], bytes(row[6]), _key(row), headers=_headers(row), on_delivery=report)
        assert producer.flush(10) == 0
        assert not failed

    yield ConfluentKafkaBroker(servers, publish_timeout=10), publish


def _key(row: Row) -> bytes | None:
    return None if row[4] is None else row[4].encode()


def _headers(row: Row) -> list[tuple[str, bytes]]:
    return [(f"ce_{name}", value.encode()) for name, value in json.loads(row[7]).items()]


@contextmanager
def _pipelined(server: Any) -> Iterator[Publish]:
    """pika, with a batch of confirms under way at a time."""
    import pika  # noqa: PLC0415 -- as above

    connection = pika.BlockingConnection(pika.URLParameters(server.url))
    channel: Any = connection.channel()._impl
    counts = {"sent": 0, "confirmed": 0}

    def confirmed(frame: Any) -> None:
        counts["confirmed"] = max(counts["confirmed"], frame.method.delivery_tag)

    channel.confirm_delivery(confirmed, callback=lambda _: None)

    def publish(rows: Sequence[Row]) -> None:
        for row in rows:
            headers = {f"cloudEvents:{name}": value for name, value in json.loads(row[7]).items()}
            properties = pika.BasicProperties(
                message_id=row[1], type=row[3], content_type=row[5], delivery_mode=2, headers=headers
            )
            channel.basic_publish(server.exchange, row[2], bytes(row[6]), properties, mandatory=True)
            counts["sent"] += 1
        while counts["confirmed"] < counts["sent"]:
            connection.process_data_events(time_limit=0.05)

    try:
        yield publish
    finally:
        connection.close()


def _latency(bench: Bench) -> list[Figure]:
    """From the commit until the broker has it, on the fast path with no relay."""
    with broker_of("rabbitmq") as server:
        from cqrs_sync.integrations.rabbitmq import RabbitMQBroker  # noqa: PLC0415

        real = RabbitMQBroker(server.url, exchange=server.exchange)
        mediator = bench.mediator(real)
        relay = mediator.relay
        assert relay is not None
        waits = []
        for number in range(200):
            with bench.sessions.begin():
                bench.outbox.add([OutboxEntry(message("orders", BODY, key=str(number)), publish=True)])
            begun = time.perf_counter()
            relay.wake()
            eventually(lambda number=number: relay.delivered > number, timeout=10, pause=0.0002)  # type: ignore[misc]
            waits.append((time.perf_counter() - begun) * 1000)
        mediator.close()
    waits.sort()
    return [
        Figure("commit to broker, median", statistics.median(waits), None, "ms"),
        Figure("commit to broker, p95", waits[int(len(waits) * 0.95)], 50, "ms"),
    ]


def _idle(bench: Bench, seconds: float = 12.0) -> list[Figure]:
    """Statements a second that a relay sends while nothing happens."""
    relay = bench.mediator(MemoryBroker(), fast_path=False).relay
    assert relay is not None
    relay.start()
    statements = 0

    def count(*_: object) -> None:
        nonlocal statements
        statements += 1

    until = time.monotonic() + 8
    eventually(lambda: time.monotonic() > until, timeout=10)
    sa.event.listen(bench.engine, "before_cursor_execute", count)
    begun = time.monotonic()
    eventually(lambda: time.monotonic() > begun + seconds, timeout=seconds + 2)
    relay.close(5)
    return [Figure("an idle relay's statements", statements / seconds, 1, "1/s")]


def _claims(bench: Bench, settled: int = 1_000_000) -> list[Figure]:
    """Claim from a table with many delivered messages and 10,000 that wait."""
    with bench.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO cqrs_message SELECT gen_random_uuid()::text, 'orders', 'order.placed', '1', "
            f"'application/json', 'x'::bytea, '{{}}', now() - interval '1 day' FROM generate_series(1, {settled})"
        )
    # A key of its own for each: what is claimed blocks no other.
    bench.fill("orders", MESSAGES)
    with bench.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")
    waits = []
    for _ in range(100):
        begun = time.perf_counter()
        claimed = bench.outbox.claim(100, 60)
        waits.append((time.perf_counter() - begun) * 1000)
        assert len(claimed) == 100
    waits.sort()
    return [
        Figure("claim 100 of 10,000 beside 1,000,000 delivered, median", statistics.median(waits), None, "ms"),
        Figure("claim 100 of 10,000 beside 1,000,000 delivered, p95", waits[95], 20, "ms"),
    ]


def main() -> None:
    """Print the figures."""
    for figure in run(int(sys.argv[1]) if len(sys.argv) > 1 else 5):
        print(f"{figure.name:<60}{figure.value:10.3g} {figure.unit}")


if __name__ == "__main__":
    main()
