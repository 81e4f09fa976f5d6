"""Work and threads for tests of executors, and of whatever many threads use."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from cqrs_sync.threads.executor import Call

#: No test waits longer for what is bound to happen.
BOUND = 20.0


class Calls:
    """Work: these calls, and those added while they are made."""

    def __init__(self, *calls: Call) -> None:
        self.finished_late_calls = 0
        self.failed: list[tuple[Call, BaseException]] = []
        self.late = threading.Event()
        #: Whether two threads have asked for a call at once.
        self.was_crowded = False
        self._ahead = deque(calls)
        self._asking = threading.Lock()

    def add(self, *call: object) -> None:
        """Add a function and its arguments."""
        self._ahead.append(call)

    def next_call(self) -> Call | None:
        """Return the next call."""
        if not self._asking.acquire(blocking=False):
            self.was_crowded = True
            return None
        try:
            return self._ahead.popleft() if self._ahead else None
        finally:
            self._asking.release()

    def call_failed(self, call: Call, error: BaseException, /) -> None:
        """Note it."""
        self.failed.append((call, error))

    def finished_late(self) -> None:
        """Count."""
        self.finished_late_calls += 1
        self.late.set()


def in_threads(*functions: Callable[[], object], timeout: float = BOUND) -> None:
    """Run these at once in a thread each, until all are done; raises the first error."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(functions))

    def run(function: Callable[[], object]) -> None:
        try:
            start.wait(timeout)
            function()
        except BaseException as error:  # noqa: BLE001 -- raised below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,), daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    until = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    alive = sum(thread.is_alive() for thread in threads)
    assert alive == 0, f"{alive} of {len(threads)} threads still ran after {timeout} s"
    if errors:
        raise errors[0]
