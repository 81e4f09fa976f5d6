"""Troubles that come one at a time: relays that are stopped, brokers that are away, transactions that take long."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa

from tests.servers.rabbitmq import proxied, via
from tests.storms.outbox.environment import Environment, Figures, broker_of, pause, somewhere
from tests.waiting import eventually

WRITERS = 8

#: What a relay logs that settles after its lease.
LAPSED = "another process has claimed them"


def calm(database: str, broker: str, directory: Path, *, orders: int, relays: int, skew: float = 0.0) -> Figures:
    """
    Environment orders while some relays, and every other writer, deliver: nothing goes wrong, and nothing comes twice.

    The clocks of relays are wrong by `skew` seconds, one forward, the next one back.
    """
    with Environment(database, broker_of(broker), directory) as environment:
        running = [
            environment.start("relay", f"--skew={skew if number % 2 else -skew}", "--lease", "5")
            for number in range(relays)
        ]
        writers = [
            environment.start(
                "writer", "--name", f"w{number}", "--count", str(orders // WRITERS), *_path(number % 2 == 0)
            )
            for number in range(WRITERS)
        ]
        for writer in writers:
            assert writer.wait(120) == 0, environment.log.read_text()
        _drained(environment, 60)
        _end(running)
        return environment.figures()


def stopped(database: str, directory: Path, *, orders: int, fault: str) -> Figures:
    """
    Stop a relay for longer than its lease, with a batch in hand, and let it go on when another has delivered that.

    What it does late changes nothing.
    """
    with Environment(database, broker_of("rabbitmq"), directory) as environment:
        writer = environment.start("writer", "--count", str(orders), "--no-fast-path", "--refused", "0")
        assert writer.wait(60) == 0, environment.log.read_text()
        late = environment.start("relay", "--lease", "2", "--publishers", "1", fault=f"{fault}:1")
        os.waitid(os.P_PID, late.pid, os.WSTOPPED | os.WNOWAIT)
        held = environment.waiting()
        begun = time.monotonic()
        other = environment.start("relay", "--lease", "2")
        _drained(environment, 60)
        takeover = time.monotonic() - begun
        late.send_signal(signal.SIGCONT)
        if fault == "stop-settle":
            # It logs that, unless the database ended its connection and nothing was settled at all.
            with suppress(AssertionError):
                eventually(lambda: LAPSED in environment.log.read_text(), timeout=20)
        _end([late, other])
        figures = environment.figures()
        figures.extra = {
            "held": held,
            "seconds_until_taken_over": round(takeover, 1),
            "times_told_of": environment.log.read_text().count(LAPSED),
        }
        return figures


def late_commit(database: str, directory: Path, *, orders: int, seconds: float) -> Figures:
    """Keep a transaction with an early event open while later ones are delivered; its own comes after its commit."""
    with Environment(database, broker_of("rabbitmq"), directory) as environment:
        relay = environment.start("relay")
        shop = environment.shop.Shop(fast_path=False)
        begun = time.monotonic()
        with shop.sessions.begin():
            # First in its table, last to be committed.
            shop.mediator.send(environment.shop.PlaceOrder("early", 1))
            writer = environment.start("writer", "--name", "later", "--count", str(orders), "--no-fast-path")
            assert writer.wait(60 + seconds) == 0
            _drained(environment, 30)
            delivered_meanwhile = len(environment.broker.received())
            pause(max(0.0, seconds - (time.monotonic() - begun)))
        eventually(lambda: environment.waiting() == 0, timeout=10)
        _end([relay])
        shop.close()
        late = environment.figures()
        return Figures(
            committed=late.committed,
            received=delivered_meanwhile + late.received,
            lost=late.committed - delivered_meanwhile - late.received,
            extra={"delivered_while_it_was_open": delivered_meanwhile, "seconds_open": round(time.monotonic() - begun)},
        )


def deploys(database: str, directory: Path, *, orders: int, times: int) -> Figures:
    """Tell a relay to stop while it publishes, and start the next one, again and again: nothing comes twice."""
    with Environment(database, broker_of("rabbitmq"), directory) as environment:
        pace = 1.5 * times / (orders // WRITERS)
        writers = [
            environment.start(
                "writer", "--name", f"w{number}", "--count", str(orders // WRITERS), f"--pace={pace}", "--no-fast-path"
            )
            for number in range(WRITERS)
        ]
        stopped = 0
        while any(writer.poll() is None for writer in writers) or stopped < times:
            relay = _started(environment, stopped + 1)
            pause(somewhere(0.1, 1.0))
            stopped += 1
            _end([relay])
        relay = _started(environment, stopped + 1)
        _drained(environment, 30)
        _end([relay])
        figures = environment.figures()
        figures.extra = {"stopped": stopped}
        return figures


def cut_off(database: str, directory: Path, *, orders: int, times: int) -> Figures:
    """Have the database close the connections of two relays, again and again: they make new ones."""
    with Environment(database, broker_of("rabbitmq"), directory) as environment:
        pace = 0.5 * times / (orders // WRITERS)
        relays = [environment.start("relay", "--lease", "3"), environment.start("relay", "--lease", "3")]
        writers = [
            environment.start(
                "writer", "--name", f"w{number}", "--count", str(orders // WRITERS), f"--pace={pace}", "--no-fast-path"
            )
            for number in range(WRITERS)
        ]
        closed = 0
        while any(writer.poll() is None for writer in writers):
            pause(somewhere(0.2, 0.5))
            closed += _close_idle(environment, database)
        for writer in writers:
            assert writer.wait(1) == 0, environment.log.read_text()
        _drained(environment, 60)
        _end(relays)
        figures = environment.figures()
        figures.extra = {"connections_closed": closed}
        return figures


def _close_idle(environment: Environment, database: str) -> int:
    """Close the connections that claim or settle, those of writers aside; return how many."""
    with environment.engine.connect() as connection:
        if database == "postgresql":
            statement = (
                "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid() AND (query LIKE '%cqrs_delivery%' AND query NOT LIKE 'INSERT%')"
            )
            return int(connection.execute(sa.text(statement)).scalar_one())
        listed = (
            "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID() "
            "AND info LIKE '%cqrs_delivery%' AND info NOT LIKE 'INSERT%'"
        )
        numbers = [row[0] for row in connection.execute(sa.text(listed))]
        for number in numbers:
            with suppress(sa.exc.OperationalError):
                connection.exec_driver_sql(f"KILL {number}")
        return len(numbers)


def durable(database: str, directory: Path, *, orders: int) -> Figures:
    """Kill a process in the second of three durable handlers: another one runs that and the third."""
    with Environment(database, broker_of("rabbitmq"), directory) as environment:
        environment.environment.update(SHOP_DURABLE="first,second,third", SHOP_THREADS="1")
        killed = 0
        for number in range(1, orders + 1):
            writer = environment.start(
                "writer", "--name", f"w{number}", "--count", "1", "--refused", "0", fault="handler:second"
            )
            killed += writer.wait(30) == -signal.SIGKILL
        with environment.engine.connect() as connection:
            before = Counter(row[0] for row in connection.execute(sa.select(environment.shop.NOTES.c.handler)))
        _end_leases(environment, database)
        relay = environment.start("relay")
        _drained(environment, 30)
        _end([relay])
        with environment.engine.connect() as connection:
            after = Counter(row[0] for row in connection.execute(sa.select(environment.shop.NOTES.c.handler)))
        figures = environment.figures()
        figures.extra = {"killed": killed, "ran_before": dict(before), "ran_in_the_end": dict(after)}
        return figures


def outage(database: str, directory: Path, *, orders: int, seconds: float) -> Figures:
    """Cut the path to the broker with orders waiting, and restore it."""
    proxy = proxied(broker_of("rabbitmq").url)
    try:
        with Environment(database, broker_of("rabbitmq"), directory) as environment:
            environment.environment["SHOP_BROKER"] = via(proxy, environment.broker.url)
            proxy.cut()
            writer = environment.start("writer", "--count", str(orders), "--no-fast-path", "--refused", "0")
            relays = [environment.start("relay"), environment.start("relay")]
            assert writer.wait(120) == 0, environment.log.read_text()
            pause(seconds)
            waiting, charged = environment.waiting(), _charged(environment)
            proxy.restore()
            begun = time.monotonic()
            _drained(environment, 60)
            drained = time.monotonic() - begun
            _end(relays)
            figures = environment.figures()
            figures.extra = {
                "waited": waiting,
                "charged": charged,
                "seconds_away": seconds,
                "seconds_to_drain": round(drained, 1),
                "log_lines": len(environment.log.read_text().splitlines()),
            }
            return figures
    finally:
        proxy.close()


def _charged(environment: Environment) -> int:
    """Count deliveries that were charged an attempt and are not under way."""
    statement = "SELECT COUNT(*) FROM cqrs_delivery WHERE attempts > 0 AND token IS NULL"
    with environment.engine.connect() as connection:
        return int(connection.execute(sa.text(statement)).scalar_one())


def _end_leases(environment: Environment, database: str) -> None:
    """Let the leases of the dead be over now: they would be in half a minute."""
    now = "now()" if database == "postgresql" else "UTC_TIMESTAMP(6)"
    with environment.engine.connect() as connection:
        connection.execute(sa.text(f"UPDATE cqrs_delivery SET due_at = {now}"))  # noqa: S608 -- one of two


def _path(fast: bool) -> tuple[str, ...]:
    return () if fast else ("--no-fast-path",)


def _started(environment: Environment, count: int) -> subprocess.Popen[bytes]:
    """Start a relay, the `count`th, and wait until it can be told to stop."""
    relay = environment.start("relay")
    # Nine processes import at the same time here; how fast is not what the storm measures.
    eventually(lambda: environment.log.read_text().count("relaying") >= count, timeout=120)
    return relay


def _drained(environment: Environment, timeout: float) -> None:
    eventually(lambda: environment.waiting() == 0, timeout=timeout)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """End relays as a deploy does: each ends well, and in time."""
    for process in processes:
        process.terminate()
    for process in processes:
        assert process.wait(30) == 0
