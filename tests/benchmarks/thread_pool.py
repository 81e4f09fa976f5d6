"""
What spreading handlers over a pool costs beside `concurrent.futures` itself, and beside the ideal.

    python -m tests.benchmarks.thread_pool [rounds]
"""

from __future__ import annotations

import math
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context

from cqrs_sync.threads.executor import Call
from cqrs_sync.threads.pool import ThreadPool
from tests.benchmarks.figures import Figure, ratio, rounds_of, seconds, table

_WORKERS = 16


class Calls:
    """The same call, so many times."""

    def __init__(self, call: Callable[[], object], times: int) -> None:
        """Take the call."""
        self._calls = iter([(call,)] * times)

    def next_call(self) -> Call | None:
        """Return it."""
        return next(self._calls, None)

    def finished_late(self) -> None:
        """Never happens: there is no deadline."""


def run(rounds: int = 15) -> list[Figure]:
    """Measure everything, in one process and the same rounds."""
    with ThreadPool(_WORKERS) as pool, ThreadPoolExecutor(_WORKERS) as executor:

        def ours(call: Callable[[], object], times: int) -> None:
            pool.run(Calls(call, times))

        def theirs(call: Callable[[], object], times: int) -> None:
            wait([executor.submit(copy_context().run, call) for _ in range(times)])

        ours(_sleep, _WORKERS)
        theirs(_sleep, _WORKERS)
        return [*_noop(ours, theirs, rounds), *_sleeping(ours, rounds), *_nested(ours, rounds), *_convoy(ours, rounds)]


def _noop(ours: Callable[..., None], theirs: Callable[..., None], rounds: int) -> list[Figure]:
    sizes = (2, 4, 8, 16, 32, 64)
    contenders: dict[str, Callable[[], float]] = {}
    for size in sizes:
        contenders[f"ours {size}"] = lambda size=size: seconds(lambda: ours(_nothing, size), 60)  # type: ignore[misc]
        contenders[f"theirs {size}"] = lambda size=size: seconds(lambda: theirs(_nothing, size), 60)  # type: ignore[misc]
    measured = rounds_of(contenders, rounds)
    return [
        Figure(f"{size} no-op handlers, of submit and wait", ratio(measured, f"ours {size}", f"theirs {size}"), 0.5)
        for size in sizes
    ]


def _sleeping(ours: Callable[..., None], rounds: int) -> list[Figure]:
    bars = {2: 0.95, 4: 0.95, 8: 0.95, 16: 0.90, 64: 0.93}
    contenders: dict[str, Callable[[], float]] = {"one": lambda: seconds(_sleep, 4)}
    for size in bars:
        contenders[f"{size}"] = lambda size=size: seconds(lambda: ours(_sleep, size), 3)  # type: ignore[misc]
    measured = rounds_of(contenders, rounds)
    return [
        Figure(
            f"{size} handlers sleeping 10 ms on {_WORKERS} threads, of the ideal",
            ratio(measured, "one", f"{size}") * math.ceil(size / _WORKERS),
            bar,
            at_most=False,
        )
        for size, bar in bars.items()
    ]


def _nested(ours: Callable[..., None], rounds: int) -> list[Figure]:
    """16 handlers that each fan out to 4 of 1 ms: 4 ms of work for 16 threads."""
    contenders = {
        "one": lambda: seconds(_short_sleep, 10),
        "nested": lambda: seconds(lambda: ours(lambda: ours(_short_sleep, 4), _WORKERS), 3),
    }
    measured = rounds_of(contenders, rounds)
    return [Figure("nested fan-out, of the ideal", ratio(measured, "one", "nested") * 4, 0.5, at_most=False)]


def _convoy(ours: Callable[..., None], rounds: int) -> list[Figure]:
    """Three no-op handlers beside a thread that never gives the interpreter up by itself."""
    stop = threading.Event()

    def burn() -> None:
        while not stop.is_set():
            pass

    thread = threading.Thread(target=burn, daemon=True)
    thread.start()
    try:
        took = [seconds(lambda: ours(_nothing, 3), 5) for _ in range(rounds * 4)]
    finally:
        stop.set()
        thread.join()
    return [Figure("3 no-op handlers beside a CPU-bound thread", statistics.median(took) * 1000, 1, "ms")]


def _nothing() -> None:
    pass


def _sleep() -> None:
    time.sleep(0.01)


def _short_sleep() -> None:
    time.sleep(0.001)


if __name__ == "__main__":
    print(table(run(int(sys.argv[1]) if len(sys.argv) > 1 else 15)))
