"""
Storms over pools: everything at once, for as long as one likes.

    python -m tests.storms.threads --seconds 60

Each storm runs in a process of its own and ends with figures. Anything lost, doubled, stuck, or
above the limit ends it with status 1. The tests run each for a second.
"""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import cqrs_sync as cqrs
from cqrs_sync import context
from cqrs_sync.memory import MemoryBroker, MemoryTransactions
from tests.promises.threads_fixtures import Followed, Gauge, Go, Happened, Told, fork, in_threads, mediator_of
from tests.source import ROOT
from tests.waiting import eventually

SIZES = (1, 2, 3, 8)
CALLERS = 6
#: What is left of a storm at its end must be done within this time.
CALM = 30.0

chance = random.SystemRandom()


def mixed(seconds: float) -> dict[str, int]:
    """Sends of every kind on pools of every size: nested, late, failing, in transactions, with follow-ups."""
    totals: Counter[str] = Counter()
    rounds = max(1, int(seconds / 2))
    for number in range(rounds):
        totals.update(_Mixed(SIZES[number % len(SIZES)], seconds / rounds).run())
    return dict(totals)


class _Mixed:
    def __init__(self, size: int, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._gauge = Gauge()
        self._pool = cqrs.ThreadPool(size)
        self._broker = MemoryBroker(keep=10_000_000)
        self._transactions = MemoryTransactions()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._handled: Counter[int] = Counter()
        self._expected: set[int] = set()
        self.outcomes: Counter[str] = Counter()
        self._mediator = mediator_of(
            self._pool,
            (Happened, self._happened),
            (Followed, self._followed),
            broker=self._broker,
            transactions=self._transactions,
        )

    def run(self) -> Counter[str]:
        in_threads(*[self._send_until_the_end] * CALLERS, timeout=self._end - time.monotonic() + CALM)
        eventually(lambda: len(self._handled) == len(self._expected), timeout=CALM)
        eventually(lambda: self._pool.busy_count == 0, timeout=CALM)
        eventually(lambda: len(self._broker.published) >= self._told, timeout=CALM)
        self._mediator.close()
        assert set(self._handled) == self._expected, "some events were not handled"
        assert set(self._handled.values()) <= {1}, "some events were handled twice"
        assert len(self._broker.published) == self._told, "notifications were lost or doubled"
        assert self._gauge.peak <= self._pool.max_workers, "the limit was exceeded"
        assert not self._pool.queued_count
        self.outcomes["events"] += len(self._handled)
        self.outcomes["notifications"] += self._told
        return self.outcomes

    @property
    def _told(self) -> int:
        # Every fifth event is followed by a notification.
        return sum(number % 5 == 0 for number in self._expected)

    def _send_until_the_end(self) -> None:
        while time.monotonic() < self._end:
            self._send()

    def _send(self) -> None:
        request = Go(tuple(Happened(self._expect()) for _ in range(chance.randint(1, 5))))
        timeout = chance.choice((None, None, 0.001, 0.01, 5.0))
        try:
            if chance.random() < 0.2:
                with self._transactions.atomic():
                    self._mediator.send(request, timeout=timeout)
            else:
                self._mediator.send(request, timeout=timeout)
            outcome = "in time"
        except cqrs.EventsFailed as error:
            kinds = {type(failure.error) for failure in error.failures}
            assert kinds <= {cqrs.HandlerOverran, cqrs.DeadlineExceeded, ValueError}, kinds
            outcome = "late" if kinds - {ValueError} else "failed"
        with self._lock:
            self.outcomes[outcome] += 1

    def _expect(self) -> int:
        number = next(self._numbers)
        with self._lock:
            self._expected.add(number)
        return number

    def _happened(self, event: Happened) -> None:
        with self._gauge.handling():
            self._note(event.number)
            if event.number % 5 == 0:
                cqrs.raise_event(Told(event.number))
            elif event.number % 7 == 0:
                cqrs.raise_event(Followed(self._expect_plain()))
            elif event.number % 11 == 0:
                # The outer send reports what this one does not.
                with suppress(cqrs.EventsFailed):
                    self._mediator.send(Go((Followed(self._expect_plain()), Followed(self._expect_plain()))))
            elif event.number % 13 == 0:
                with suppress(cqrs.EventsFailed):
                    self._mediator.send(Go((Followed(self._expect_plain()),)), timeout=0.01)
            elif event.number % 17 == 0:
                threading.Event().wait(0.002)
            elif event.number % 19 == 0:
                raise ValueError(event.number)

    def _expect_plain(self) -> int:
        while (number := self._expect()) % 5 == 0:
            with self._lock:
                self._expected.discard(number)
        return number

    def _followed(self, event: Followed) -> None:
        with self._gauge.handling():
            self._note(event.number)

    def _note(self, number: int) -> None:
        with self._lock:
            self._handled[number] += 1


def forks(seconds: float) -> dict[str, int]:
    """Fork from threads and from handlers while others send; every child sends, nested and with a deadline."""
    warnings.simplefilter("ignore", DeprecationWarning)
    forking = _Forking(time.monotonic() + seconds)
    in_threads(forking.fork_often, *[forking.load] * 3, timeout=seconds + CALM)
    eventually(lambda: forking.pool.busy_count == 0, timeout=CALM)
    assert set(forking.statuses) == {0}, forking.statuses
    return {"forks": forking.statuses[0]}


class _Forking:
    def __init__(self, end: float) -> None:
        self._end = end
        self.statuses: Counter[int | None] = Counter()
        self.pool = cqrs.ThreadPool(3)
        self._mediator = mediator_of(
            self.pool,
            (Happened, self._nest),
            (Followed, lambda event: None),
            (Told, self._fork_in_handler),
            broker=MemoryBroker(),
        )

    def load(self) -> None:
        while time.monotonic() < self._end:
            self._send(30.0)

    def fork_often(self) -> None:
        while time.monotonic() < self._end:
            self._fork()
            self._mediator.send(Go((Told(),)), timeout=60)

    def _send(self, timeout: float) -> None:
        for limit in (None, timeout):
            self._mediator.send(Go((Happened(), Happened(), Happened())), timeout=limit)

    def _nest(self, event: Happened) -> None:
        self._mediator.send(Go((Followed(), Followed())), timeout=10)

    def _fork_in_handler(self, event: Told) -> None:
        self._fork()

    def _fork(self) -> None:
        self.statuses[fork(lambda: self._send(5.0), timeout=10)] += 1


def closings(seconds: float) -> dict[str, int]:
    """Close pools while callers send, some from handlers, as fast as they can be made."""
    end = time.monotonic() + seconds
    totals: Counter[str] = Counter()
    while time.monotonic() < end:
        totals.update(_close_in_the_middle(chance.choice(SIZES), closer_is_a_handler=chance.random() < 0.3))
    return dict(totals)


def _close_in_the_middle(size: int, *, closer_is_a_handler: bool) -> dict[str, int]:
    lock, handled, sent = threading.Lock(), Counter[int](), itertools.count()
    pool = cqrs.ThreadPool(size)

    def handle(event: Happened) -> None:
        with lock:
            handled[event.number] += 1
        if event.number == 40 and closer_is_a_handler:
            pool.close(CALM)

    mediator = mediator_of(pool, (Happened, handle))

    def send() -> None:
        for part in range(15):
            mediator.send(Go(tuple(Happened(next(sent)) for _ in range(3))), timeout=CALM if part % 3 else None)

    def close() -> None:
        eventually(lambda: len(handled) > 20)
        if not closer_is_a_handler:
            pool.close(CALM)

    in_threads(close, *[send] * 4, timeout=CALM)
    eventually(lambda: pool.busy_count == 0, timeout=CALM)
    pool.close()
    assert handled == Counter(range(4 * 15 * 3)), "events were lost or doubled"
    return {"pools": 1, "events": len(handled)}


def interruptions(seconds: float) -> dict[str, int]:
    """Interrupt the main thread at random instants, in sends of every kind: no place of a pool is lost for it."""
    signal.signal(signal.SIGALRM, _interrupt)
    # An interrupt in a callback of the garbage collector is told there, not raised.
    sys.unraisablehook = lambda _: None
    end = time.monotonic() + seconds
    totals: Counter[str] = Counter()
    while time.monotonic() < end:
        size = chance.choice((1, 2, 4))
        totals.update(pools=1, interruptions=50, places_lost=_interrupt_often(cqrs.ThreadPool(size)))
    assert totals["places_lost"] == 0, totals
    return dict(totals)


def _interrupt_often(pool: cqrs.ThreadPool) -> int:
    def nest(event: Followed) -> None:
        mediator.send(Go((Happened(), Happened())), timeout=CALM if event.number % 2 else None)

    mediator = mediator_of(pool, (Happened, lambda event: None), (Followed, nest))
    mediator.send(Go((Happened(), Happened())), timeout=CALM)
    for _ in range(50):
        _send_until_interrupted(mediator)
        assert context.current.get() is None, "what was interrupted is still carried"
        assert context.deadline_at() is None, "the deadline of what was interrupted still counts"
    # Whatever was interrupted: others are served, those too that only wait.
    in_threads(*[lambda: mediator.send(Go((Followed(1), Followed(2))), timeout=CALM)] * 4, timeout=CALM)
    with suppress(AssertionError):
        eventually(lambda: pool.busy_count == 0, timeout=1)
    pool.close(0)
    return pool.busy_count


def _send_until_interrupted(mediator: cqrs.Mediator) -> None:
    requests = (Go((Happened(), Happened(), Happened())), Go((Followed(1), Followed(2), Happened())))
    with suppress(KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 1e-3), 0.1)
        while True:
            mediator.send(chance.choice(requests), timeout=chance.choice((None, CALM)))
    signal.setitimer(signal.ITIMER_REAL, 0)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


STORMS: dict[str, Callable[[float], dict[str, int]]] = {
    "mixed": mixed,
    "forks": forks,
    "closings": closings,
    "interruptions": interruptions,
}


def run(name: str, seconds: float, *, interval: float = 1e-5) -> subprocess.CompletedProcess[str]:
    """Run a storm in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tests.storms.threads", "--storm", name, f"--seconds={seconds}", f"--switch={interval}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=seconds + 4 * CALM,
        check=False,
    )


def main() -> int:
    """Return the exit status: 0 when every storm ended well."""
    parser = argparse.ArgumentParser(description=__doc__.strip().partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each storm lasts")
    parser.add_argument("--switch", type=float, default=1e-5, help="seconds between switches of threads")
    parser.add_argument("--storm", choices=STORMS, help="only this one, in this process")
    options = parser.parse_args()
    if options.storm is None:
        results = {name: run(name, options.seconds, interval=options.switch) for name in STORMS}
        for name, done in results.items():
            outcome = done.stdout if done.returncode == 0 else f"FAILED\n{done.stderr[-5000:]}"
            sys.stdout.write(f"{name:<16}{outcome.strip()}\n")
        return int(any(done.returncode for done in results.values()))
    faulthandler.dump_traceback_later(options.seconds + 3 * CALM, exit=True)
    sys.setswitchinterval(options.switch)
    # Every deadline that is missed is told there; here that is what happens.
    logging.getLogger("cqrs_sync").setLevel(logging.CRITICAL)
    sys.stdout.write(f"{STORMS[options.storm](options.seconds)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
