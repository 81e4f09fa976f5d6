"""Where storms run: a database, a broker, processes that can be killed, and the count of what became of each order."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import attrs
import sqlalchemy as sa

from tests.source import ROOT
from tests.waiting import eventually

DATABASES = {
    "postgresql": os.environ.get("CQRS_TEST_POSTGRESQL_URL", "postgresql+psycopg://postgres@127.0.0.1/postgres"),
    "mariadb": os.environ.get("CQRS_TEST_MARIADB_URL", "mysql+pymysql://root@127.0.0.1/mysql"),
}


@contextmanager
def database(kind: str) -> Iterator[str]:
    """The URL of a database of its own, dropped afterwards."""
    url = sa.make_url(DATABASES[kind])
    name = f"cqrs_storm_{uuid.uuid4().hex[:8]}"
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        force = " WITH (FORCE)" if kind == "postgresql" else ""
        with engine.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name}{force}")
        engine.dispose()


class RabbitMQ:
    """A queue that gets everything."""

    def __init__(self, url: str) -> None:
        from tests.servers.rabbitmq import bound_queue, drained  # noqa: PLC0415 -- needs pika

        self.url = url
        self.exchange = f"storm-{uuid.uuid4().hex[:8]}"
        self._bound, self._drained = bound_queue(url, self.exchange, "#"), drained

    def received(self) -> list[tuple[str, bytes]]:
        """Everything that has come, as ids and bodies, in order."""
        return [(str(properties.message_id), body) for properties, body in self._drained(self.url, self._queue)]

    def __enter__(self) -> Self:
        self._queue = self._bound.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._bound.__exit__(*error)


class Kafka:
    """A Kafka-compatible broker of our own."""

    exchange = ""

    def __init__(self) -> None:
        from tests.servers.kafka import Tansu  # noqa: PLC0415 -- needs kafka-python

        self._server = Tansu()
        self.topic = f"storm-{uuid.uuid4().hex[:8]}"

    @property
    def url(self) -> str:
        return f"kafka://{self._server.servers}"

    def received(self) -> list[tuple[str, bytes]]:
        from kafka import KafkaConsumer, TopicPartition  # noqa: PLC0415

        consumer = KafkaConsumer(bootstrap_servers=self._server.servers, metrics_enabled=False)
        partitions = [TopicPartition(self.topic, number) for number in consumer.partitions_for_topic(self.topic)]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        ends = consumer.end_offsets(partitions)
        records: list[Any] = []

        def all_read() -> bool:
            for some in consumer.poll(timeout_ms=200).values():
                records.extend(some)
            return all(consumer.position(partition) >= end for partition, end in ends.items())

        eventually(all_read, timeout=60)
        consumer.close()
        # A key stays in its partition: order within partitions is all there is.
        return [(dict(record.headers)["ce_id"].decode(), record.value) for record in records]

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()


@attrs.define
class Figures:
    """What became of everything."""

    committed: int = 0
    received: int = 0
    lost: int = 0
    ghosts: int = 0
    duplicates: int = 0
    #: The same order under another id.
    twins: int = 0
    #: Orders that came for the first time after a later one of their key.
    inversions: int = 0
    waiting: int = 0
    dead: int = 0
    extra: dict[str, Any] = attrs.field(factory=dict)

    @property
    def wrong(self) -> int:
        """Count what must not be, whatever happens."""
        return self.lost + self.ghosts + self.twins + self.inversions + self.waiting + self.dead

    def __str__(self) -> str:
        figures = {name: value for name, value in attrs.asdict(self).items() if name != "extra"} | self.extra
        return ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in figures.items())


class Environment:
    """A database, a broker and processes for one storm; it leaves nothing behind."""

    def __init__(self, kind: str, broker: RabbitMQ | Kafka, directory: Path) -> None:
        self._stack = ExitStack()
        self._kind = kind
        self.broker = broker
        self._directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._stack.enter_context(self.broker)
        self.url = self._stack.enter_context(database(self._kind))
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SHOP_DATABASE": self.url,
            "SHOP_BROKER": self.broker.url,
            "SHOP_EXCHANGE": self.broker.exchange,
            "SHOP_TOPIC": getattr(self.broker, "topic", "orders"),
        }
        os.environ.update({name: value for name, value in self.environment.items() if name.startswith("SHOP_")})
        from tests.storms.outbox import shop  # noqa: PLC0415 -- reads the environment

        self.shop = shop
        self.engine = sa.create_engine(self.url, isolation_level="AUTOCOMMIT")
        shop.METADATA.create_all(self.engine)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait(10)
        self.engine.dispose()
        self._stack.close()

    def start(self, role: str, *arguments: str, fault: str = "") -> subprocess.Popen[bytes]:
        """Start a process of the shop; what it says goes to a log."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.storms.outbox.shop", role, *arguments],
                cwd=ROOT,
                env={**self.environment, "SHOP_FAULT": fault},
                stdout=log,
                stderr=log,
            )
        self._processes.append(process)
        return process

    @property
    def log(self) -> Path:
        """What the processes have said."""
        return self._directory / "processes.log"

    def waiting(self) -> int:
        """Deliveries that are neither made nor dead."""
        with self.engine.connect() as connection:
            return int(
                connection.execute(sa.text("SELECT COUNT(*) FROM cqrs_delivery WHERE status <> 'dead'")).scalar_one()
            )

    def figures(self) -> Figures:
        """Compare what was committed with what the broker has."""
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(self.shop.ORDERS.c.writer, self.shop.ORDERS.c.number)).all()
            dead = connection.execute(sa.text("SELECT COUNT(*) FROM cqrs_delivery WHERE status = 'dead'")).scalar_one()
        committed = {(writer, number) for writer, number in rows}
        received = [(identity, json.loads(body)) for identity, body in self.broker.received()]
        ids: dict[tuple[str, int], set[str]] = {}
        latest: Counter[str] = Counter()
        figures = Figures(committed=len(committed), received=len(received), waiting=self.waiting(), dead=int(dead))
        for identity, body in received:
            order = (body["writer"], body["number"])
            if order in ids:
                figures.duplicates += 1
            elif body["number"] < latest[body["writer"]]:
                figures.inversions += 1
            latest[body["writer"]] = max(latest[body["writer"]], body["number"])
            ids.setdefault(order, set()).add(identity)
        figures.lost = len(committed - ids.keys())
        figures.ghosts = len(ids.keys() - committed)
        figures.twins = sum(len(known) > 1 for known in ids.values())
        return figures


def kill(process: subprocess.Popen[bytes]) -> bool:
    """Kill a process as a power cut does; False where it had ended by itself."""
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    return True


def killed_itself(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process came to its fault."""
    return process.poll() == -signal.SIGKILL


def pause(seconds: float) -> None:
    """Wait while a storm runs."""
    until = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= until, timeout=seconds + 1)


def somewhere(shortest: float, longest: float) -> float:
    """A random number of seconds between the two."""
    return random.SystemRandom().uniform(shortest, longest)


def broker_of(kind: str) -> RabbitMQ | Kafka:
    """The broker of a storm."""
    if kind == "kafka":
        return Kafka()
    return RabbitMQ(os.environ.get("CQRS_TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672/"))


__all__: Sequence[str] = ["Environment", "Figures", "broker_of", "kill", "killed_itself", "pause", "somewhere"]
