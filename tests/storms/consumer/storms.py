"""The storms: what happens to consumers, and what must be true afterwards."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

from cqrs_sync.broker import IncomingMessage
from tests.servers.proxy import TcpProxy
from tests.storms.consumer.environment import RABBITMQ, Environment, Figures, environment_on
from tests.storms.consumer.shop import TOPIC
from tests.storms.outbox.environment import pause
from tests.waiting import eventually

chance = random.SystemRandom()


def thrice(database: str, broker: str, directory: Path, *, messages: int, workers: int = 4) -> Figures:
    """Each message is delivered three times, to so many workers."""
    with environment_on(database, broker, directory) as environment:
        environment.publish(messages, times=3)
        for _ in range(workers):
            environment.start()
        seconds = environment.wait_for(messages)
        environment.settled(300)
        return environment.figures(workers=workers, seconds=round(seconds))


def deploys(database: str, broker: str, directory: Path, *, times: int, each: int = 100) -> Figures:
    """Workers are told to leave under load (SIGTERM), and others come, again and again."""
    slowest, stopped = 0.0, 0
    with environment_on(database, broker, directory) as environment:
        for _ in range(times):
            environment.publish(each)
            worker = environment.start(STORM_HANDLER="slow:0.005")
            environment.wait_for(environment.count() + 1)
            pause(chance.random() * 0.3)
            slowest, stopped = max(slowest, environment.stop(worker)), stopped + 1
        environment.start()
        environment.wait_for(len(environment.sent))
        environment.settled()
        return environment.figures(told_to_leave=stopped, seconds_for_the_slowest=round(slowest, 1))


def joins(database: str, broker: str, directory: Path, *, times: int, each: int = 250) -> Figures:
    """Workers come while others have much in hand, and the oldest one leaves, again and again."""
    with environment_on(database, broker, directory) as environment:
        environment.start(STORM_HANDLER="slow:0.1")
        for number in range(times):
            environment.publish(each)
            environment.wait_for(environment.count() + 5)
            health = directory / f"health-{number}"
            environment.start("--health-file", str(health), STORM_HANDLER="slow:0.1")
            # A rebalance of a Kafka group takes seconds; Tansu never stops waiting for a member that leaves in it.
            eventually(lambda health=health: health.exists() and '"ready": true' in health.read_text(), timeout=60)  # type: ignore[misc]
            environment.stop(environment.workers[number])
        environment.wait_for(len(environment.sent))
        environment.settled()
        return environment.figures(came=times)


def kills(database: str, broker: str, directory: Path, *, times: int, each: int = 200) -> Figures:
    """Two workers at a time; one is killed (`kill -9`) while it works, and another one comes."""
    with environment_on(database, broker, directory) as environment:
        environment.start(STORM_HANDLER="slow:0.002")
        for _ in range(times):
            environment.publish(each)
            victim = environment.start(STORM_HANDLER="slow:0.002")
            begun = environment.count()
            eventually(lambda begun=begun: environment.count() > begun + 5, timeout=60)  # type: ignore[misc]
            pause(chance.random() * 0.3)
            # With a single active consumer it is the older one that works.
            worker = environment.workers[-2] if chance.random() < 0.7 else victim
            worker.kill()
            worker.wait(10)
            if worker is not victim:
                continue
            environment.workers.append(environment.workers.pop(-2))
        environment.wait_for(len(environment.sent))
        environment.settled()
        alive = [worker for worker in environment.workers if worker.poll() is None]
        killed = sum(worker.poll() == -signal.SIGKILL for worker in environment.workers)
        return environment.figures(killed=killed, left=len(alive))


def lost_connections(database: str, directory: Path, *, times: int, fault: str) -> Figures:
    """The path to RabbitMQ is dropped, or frozen and then dropped: workers consume again each time."""
    with environment_on(database, "rabbitmq", directory) as environment:
        port = int(RABBITMQ.rpartition(":")[2].partition("/")[0])
        proxy = TcpProxy("127.0.0.1", port)
        try:
            worker = environment.start(STORM_BROKER=RABBITMQ.replace(f":{port}/", f":{proxy.port}/"))
            slowest = 0.0
            for _ in range(times):
                environment.publish(50)
                environment.wait_for(len(environment.sent) - 40)
                begun = time.monotonic()
                _break(proxy, fault)
                environment.publish(10)
                environment.wait_for(len(environment.sent), timeout=60)
                slowest = max(slowest, time.monotonic() - begun)
            assert worker.poll() is None
            environment.settled()
            return environment.figures(times=times, seconds_for_the_slowest=round(slowest, 1))
        finally:
            proxy.close()


def _break(proxy: TcpProxy, fault: str) -> None:
    if fault == "drop":
        proxy.drop()
        return
    before = proxy.accepted
    proxy.freeze()
    # Silent: only a worker that gives the path up and connects anew gets through.
    eventually(lambda: proxy.accepted > before, timeout=60)
    proxy.drop()
    proxy.restore()


def restarts(database: str, directory: Path, *, times: int) -> Figures:
    """RabbitMQ is stopped and started again."""
    with environment_on(database, "rabbitmq", directory) as environment:
        worker = environment.start()
        slowest = 0.0
        for _ in range(times):
            environment.publish(100)
            environment.wait_for(len(environment.sent) - 90)
            for command in ("stop_app", "start_app"):
                subprocess.run(["rabbitmqctl", command], check=True, capture_output=True, timeout=120)
            begun = time.monotonic()
            environment.publish(10)
            environment.wait_for(len(environment.sent))
            slowest = max(slowest, time.monotonic() - begun)
        assert worker.poll() is None
        environment.settled()
        return environment.figures(restarts=times, seconds_for_the_slowest=round(slowest, 1))


def long_handler(database: str, broker: str, directory: Path, *, seconds: float, limit: float) -> Figures:
    """A handler takes longer than the broker lets a consumer hold a message, or go without a poll."""
    with environment_on(database, broker, directory) as environment, _Limited(broker, limit):
        environment.publish(3, keys=3)
        worker = environment.start(STORM_HANDLER=f"slow:{seconds}", STORM_POLL_INTERVAL_MS=str(round(limit * 1000)))
        environment.wait_for(3, timeout=seconds * 3 + 60, patience=seconds + 60)
        environment.settled(120)
        assert worker.poll() is None
        return environment.figures(seconds=seconds, limit=limit)


class _Limited:
    """RabbitMQ with a consumer time-out, for everybody, while the block runs."""

    def __init__(self, broker: str, limit: float) -> None:
        self._command = ["rabbitmqctl", "eval"] if broker == "rabbitmq" else None
        self._limit = round(limit * 1000)
        self._before = ""

    def __enter__(self) -> None:
        if self._command:
            self._before = self._eval("{ok, T} = application:get_env(rabbit, consumer_timeout), T.")
            self._eval(f"application:set_env(rabbit, consumer_timeout, {self._limit}).")

    def __exit__(self, *_: object) -> None:
        if self._command:
            self._eval(f"application:set_env(rabbit, consumer_timeout, {self._before or 1800000}).")

    def _eval(self, what: str) -> str:
        assert self._command
        done = subprocess.run([*self._command, what], check=True, capture_output=True, text=True, timeout=60)
        return done.stdout.strip()


def hostile(database: str, broker: str, directory: Path, *, count: int) -> Figures:
    """Bytes that are no messages come among good ones; each is a dead letter with its reason, good ones are handled."""
    with environment_on(database, broker, directory) as environment:
        worker = environment.start("--on-unknown", "dead-letter")
        environment.publish(50)
        environment.wait_for(50)
        for batch in _cut(_hostile(count)):
            environment.broker.defer(batch, environment.group, after=0, timeout=60)
        environment.publish(1)
        environment.wait_for(51, timeout=300)
        eventually(lambda: environment.broker.backlog(environment.group).dead >= count, timeout=300)
        begun = time.monotonic()
        environment.publish(1)
        environment.wait_for(52)
        next_one = time.monotonic() - begun
        assert worker.poll() is None
        reasons = _reasons(environment, count)
        return environment.figures(expected_dead=count, reasons=len(reasons), seconds_for_the_next=round(next_one, 2))


def _cut(messages: list[IncomingMessage]) -> list[list[IncomingMessage]]:
    return [messages[start : start + 200] for start in range(0, len(messages), 200)]


def _reasons(environment: Environment, count: int) -> set[str]:
    reasons: set[str] = set()
    with environment.broker.read_dead_letters(environment.group) as letters:
        for _ in range(min(count, 200)):
            delivery = letters.receive(timeout=10)
            assert delivery is not None
            assert delivery.message.notes["reason"], "a dead letter without a reason"
            reasons.add(delivery.message.notes["reason"])
    return reasons


def _hostile(count: int) -> list[IncomingMessage]:
    good = {"specversion": "1.0", "id": "x", "source": "s", "type": "contract.happened"}
    gadgets = ("os.system", "builtins.eval", "__import__('os')", "subprocess:Popen", "pickle.loads")
    kinds = [
        lambda n: IncomingMessage(TOPIC, os.urandom(200), "application/json", None, {**good, "id": str(n)}),
        lambda n: IncomingMessage(TOPIC, b'{"counter": "\xff\xfe"}', None, None, {**good, "id": str(n)}),
        lambda n: IncomingMessage(TOPIC, b"[" * 50_000 + b"]" * 50_000, None, None, {**good, "id": str(n)}),
        lambda n: IncomingMessage(TOPIC, b'{"a":' * 20_000, None, None, {**good, "id": str(n)}),
        lambda n: IncomingMessage(TOPIC, b"{}", None, None, {**good, "id": str(n), "x": "y" * 60_000}),
        lambda n: IncomingMessage(TOPIC, b"{}", None, "k" * 200, {**good, "id": str(n), "type": gadgets[n % 5]}),
        lambda n: IncomingMessage(TOPIC, b"\x78\x9c" + b"\0" * 1000, "application/zlib", None, {**good, "id": str(n)}),
        lambda n: IncomingMessage(
            TOPIC, b'{"counter": 1e999, "number": "NaN"}', "text/xml", None, {**good, "id": str(n)}
        ),
        lambda n: IncomingMessage(TOPIC, b"\x80\x04cos\nsystem\n%d." % n, "application/x-pickle", None, {}),
        lambda n: IncomingMessage(TOPIC, b'{"number": ' + b"9" * 5000 + b"}", None, None, {**good, "id": f"{n}" * 400}),
    ]
    return [kinds[n % len(kinds)](n) for n in range(count)]


def deadly(database: str, broker: str, directory: Path) -> Figures:
    """A message ends each process that handles it: it is parked, and nothing else is."""
    with environment_on(database, broker, directory) as environment:
        environment.publish(40)
        ends = 0
        worker = environment.start(STORM_HANDLER="deadly:7")
        deadline = time.monotonic() + 300
        while environment.broker.backlog(environment.group).dead < 1:
            assert time.monotonic() < deadline, environment.log_of(worker)[-3000:]
            if worker.poll() is not None:
                assert worker.returncode == 9, environment.log_of(worker)[-3000:]
                ends += 1
                worker = environment.start(STORM_HANDLER="deadly:7")
            pause(0.1)
        environment.wait_for(39)
        environment.settled()
        return environment.figures(expected_dead=1, missing=1, processes_ended=ends)


def outage(database: str, broker: str, directory: Path, *, messages: int, seconds: float) -> Figures:
    """What handlers need is down for a while, with messages waiting: few spend attempts."""
    with environment_on(database, broker, directory, delays=(5.0, 10.0)) as environment:
        down = directory / "down"
        down.touch()
        environment.publish(messages, keys=500)
        environment.start(STORM_HANDLER=f"down:{down}", STORM_THREADS="8")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pause(0.5)
        log = environment.log_of(environment.workers[0])
        spent = {line.partition("' '")[2].partition("'")[0] for line in log.splitlines() if ": attempt " in line}
        down.unlink()
        took = environment.wait_for(messages)
        environment.settled()
        return environment.figures(spent_attempts=len(spent), seconds_down=seconds, seconds_to_recover=round(took, 1))


def one_partition(database: str, directory: Path, *, messages: int) -> Figures:
    """A single partition with a hundred keys, sixteen threads, and a worker that is killed in the middle."""
    with environment_on(database, "kafka", directory) as environment:
        environment.publish(messages, keys=100)
        worker = environment.start("--prefetch", "200", STORM_THREADS="16", STORM_HANDLER="slow:0.002")
        environment.wait_for(messages // 3)
        worker.kill()
        worker.wait(10)
        environment.start("--prefetch", "200", STORM_THREADS="16")
        environment.wait_for(messages)
        environment.settled()
        return environment.figures(killed=1)
