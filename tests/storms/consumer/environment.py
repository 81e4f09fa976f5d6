"""What every storm over consumers needs: a database, a broker, workers, and the sums at the end."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import sqlalchemy as sa

from cqrs_sync.broker import Group, OutgoingMessage, ReceivingBroker
from cqrs_sync.testing.contracts.broker import message
from tests.servers.kafka import Tansu
from tests.storms.consumer.shop import EFFECTS, METADATA, TOPIC, broker_at
from tests.storms.outbox.environment import database, pause
from tests.waiting import eventually

ROOT = Path(__file__).parents[3]
RABBITMQ = os.environ.get("CQRS_TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672/%2F")
GROUP = "storm"
#: Seconds a worker may take to leave.
GRACE = 20.0


@attrs.define
class Figures:
    """What became of the messages of a storm."""

    sent: int
    effects: int
    lost: int
    doubled: int
    inversions: int
    dead: int
    extra: dict[str, Any] = attrs.field(factory=dict)
    expected_dead: int = 0

    @property
    def wrong(self) -> int:
        """How many messages did not have one effect, in their order."""
        return self.lost + self.doubled + self.inversions + abs(self.dead - self.expected_dead)

    def __str__(self) -> str:
        extra = "".join(f", {value} {name.replace('_', ' ')}" for name, value in self.extra.items())
        return (
            f"{self.sent} sent, {self.effects} effects, {self.lost} lost, {self.doubled} doubled, "
            f"{self.inversions} turned round, {self.dead} dead{extra}"
        )


class Environment:
    """A database and a broker, with a group of workers."""

    def __init__(
        self, database_url: str, broker_url: str, directory: Path, *, delays: Sequence[float] = (1.0, 2.0)
    ) -> None:
        self.exchange = f"storm-{uuid.uuid4().hex[:10]}"
        self.directory = directory
        self.broker_url = broker_url
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "STORM_DATABASE": database_url,
            "STORM_BROKER": broker_url,
            "STORM_EXCHANGE": self.exchange,
        }
        self.engine = sa.create_engine(database_url)
        METADATA.drop_all(self.engine)
        METADATA.create_all(self.engine)
        #: One that no proxy is in the way of.
        self.broker: ReceivingBroker = broker_at(broker_url, self.exchange)
        self.group = Group(GROUP, (TOPIC,), delays=tuple(sorted(set(delays))))
        self.sent: list[OutgoingMessage] = []
        self.workers: list[subprocess.Popen[bytes]] = []
        self._logs: dict[subprocess.Popen[bytes], Path] = {}
        self.broker.apply_topology(self.group)

    def publish(self, count: int, keys: int = 50, times: int = 1) -> None:
        """Publish messages whose numbers grow per key, each so many times."""
        fresh = [
            message(TOPIC, json.dumps({"counter": f"c{n % keys}", "number": n}).encode(), key=f"c{n % keys}")
            for n in range(len(self.sent), len(self.sent) + count)
        ]
        self.sent += fresh
        for _ in range(times):
            for start in range(0, count, 1000):
                self.broker.publish(fresh[start : start + 1000], timeout=60)

    def start(self, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a worker, by the command."""
        log_file = self.directory / f"worker-{len(self.workers) + 1}.log"
        with log_file.open("wb") as log:
            worker = subprocess.Popen(
                [
                    *(sys.executable, "-m", "cqrs_sync", "consumer", "run"),
                    *("--app", "tests.storms.consumer.shop:application"),
                    *("--group", GROUP, "--inline-limit", "0.5s", "--retry-delays"),
                    ",".join(f"{delay:g}s" for delay in (0.1, 0.5, *self.group.delays)),
                    *("--grace", str(GRACE), *options),
                ],
                env={**self.environment, **environment},
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.workers.append(worker)
        self._logs[worker] = log_file
        return worker

    def log_of(self, worker: subprocess.Popen[bytes]) -> str:
        """Return what a worker has said."""
        return self._logs[worker].read_text(errors="replace")

    def count(self) -> int:
        """Return how many effects there are."""
        with self.engine.connect() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(EFFECTS)).scalar() or 0

    def wait_for(self, count: int, timeout: float = 300, patience: float = 60) -> float:
        """Wait until there are so many effects; return the seconds that took. Progress is asked for, not speed."""
        begun = time.monotonic()
        before, moved = -1, begun
        while (now := self.count()) < count:
            if now != before:
                before, moved = now, time.monotonic()
            logs = "\n".join(self.log_of(worker)[-1500:] for worker in self.workers[-4:])
            assert time.monotonic() - moved < patience, f"stuck at {now} of {count}\n{logs}"
            assert time.monotonic() - begun < timeout, f"{now} of {count} after {timeout} s\n{logs}"
            pause(0.05)
        return time.monotonic() - begun

    def settled(self, timeout: float = 60) -> None:
        """Wait until nothing waits for the group."""

        def is_empty() -> bool:
            backlog = self.broker.backlog(self.group)
            return not sum(backlog.waiting.values()) and not backlog.delayed

        eventually(is_empty, timeout=timeout)

    def stop(self, worker: subprocess.Popen[bytes]) -> float:
        """Tell a worker to leave, and return the seconds that took; it left well."""
        # Before that it is told to end like any other process that starts.
        eventually(lambda: "consuming" in self.log_of(worker) or worker.poll() is not None, timeout=60)
        begun = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        status = worker.wait(GRACE + 5)
        assert status == 0, f"exit status {status}\n{self.log_of(worker)[-3000:]}"
        return time.monotonic() - begun

    def figures(self, *, expected_dead: int = 0, missing: int = 0, **extra: Any) -> Figures:
        """Add up, when all workers have left."""
        for worker in self.workers:
            if worker.poll() is None:
                self.stop(worker)
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(EFFECTS.c.counter, EFFECTS.c.number).order_by(EFFECTS.c.id)).all()
        per_key: dict[str, list[int]] = defaultdict(list)
        for counter, number in rows:
            per_key[counter].append(number)
        times = Counter(number for _, number in rows)
        inversions = sum(a > b for numbers in per_key.values() for a, b in itertools.pairwise(numbers))
        return Figures(
            sent=len(self.sent),
            effects=len(rows),
            lost=len(self.sent) - len(times) - missing,
            doubled=sum(count - 1 for count in times.values()),
            inversions=inversions,
            dead=self._dead(expected_dead),
            extra=extra,
            expected_dead=expected_dead,
        )

    def _dead(self, expected: int) -> int:
        """Count dead letters, each once: where setting one aside was not confirmed in time, it is there twice."""
        letters: set[tuple[str | None, bytes]] = set()
        # Dead letters that were just read come back one by one.
        eventually(lambda: self.broker.backlog(self.group).dead >= expected, timeout=60)
        left = self.broker.backlog(self.group).dead
        if left:
            with self.broker.read_dead_letters(self.group) as deliveries:
                while left and (delivery := deliveries.receive(timeout=15)) is not None:
                    left -= 1
                    letters.add((delivery.message.attributes.get("id"), delivery.message.body[:300]))
        return len(letters)

    def close(self) -> None:
        """Leave nothing behind."""
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
                worker.wait(10)
        self._delete_queues()
        self.broker.close()
        METADATA.drop_all(self.engine)
        self.engine.dispose()

    def _delete_queues(self) -> None:
        if not self.broker_url.startswith("amqp"):
            return
        import pika  # noqa: PLC0415 -- only here

        connection = pika.BlockingConnection(pika.URLParameters(RABBITMQ))
        channel = connection.channel()
        for item in self.broker.inspect_topology(self.group):
            if item.kind == "queue":
                channel.queue_delete(item.name)
            elif item.kind == "exchange":
                channel.exchange_delete(item.name)
        connection.close()


@contextmanager
def environment_on(kind: str, broker: str, directory: Path, **options: Any) -> Iterator[Environment]:
    """An environment on a database and a broker: `rabbitmq`, `kafka` or `confluent`."""
    server = None if broker == "rabbitmq" else Tansu()
    if server is not None:
        server.start()
    try:
        with database(kind) as url:
            broker_url = RABBITMQ if server is None else f"{broker}://{server.servers}"
            environment = Environment(url, broker_url, directory, **options)
            try:
                yield environment
            finally:
                environment.close()
    finally:
        if server is not None:
            server.stop()
