"""Wait for what another thread or process does, never longer than a bound."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Between two looks at a condition that cannot wake us up.
_PAUSE = 0.01


def eventually(condition: Callable[[], T], timeout: float = 30.0, pause: float = _PAUSE) -> T:
    """
    Call `condition` every `pause` seconds until it is true, and return what it returned.

    Raises:
        AssertionError: it was still false after `timeout` seconds; shows what it returned last.
    """
    deadline = time.monotonic() + timeout
    never = threading.Event()
    while not (seen := condition()):
        if time.monotonic() >= deadline:
            name = getattr(condition, "__qualname__", repr(condition))
            raise AssertionError(f"{name} still returned {seen!r} after {timeout:g} s")
        never.wait(pause)
    return seen


#: No test waits longer for what is bound to happen.
BOUND = 20.0


def in_threads(*functions: Callable[[], T], timeout: float = BOUND) -> list[T]:
    """
    Run each function in a thread of its own, all at once, and return what they returned, in any order.

    Raises:
        AssertionError: a thread still ran after `timeout` seconds.
        BaseException: what a function raised, the first of them.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    start = threading.Barrier(len(functions))

    def run(function: Callable[[], T]) -> None:
        try:
            start.wait(timeout)
            results.append(function())
        except BaseException as error:  # noqa: BLE001 -- raised below, in the calling thread
            errors.append(error)

    # Daemons: a thread that hangs fails its test, and does not keep the test run from ending.
    threads = [threading.Thread(target=run, args=(function,), daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    until = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    alive = sum(thread.is_alive() for thread in threads)
    assert alive == 0, f"{alive} of {len(threads)} threads still ran after {timeout:g} s"
    if errors:
        raise errors[0]
    return results


def in_forked_child(action: Callable[[], object], *, timeout: float) -> int | None:
    """Run `action` in a forked child; its exit status, None where it had to be killed after `timeout` seconds."""
    child = multiprocessing.get_context("fork").Process(target=action)
    child.start()
    child.join(timeout)
    if child.is_alive():
        child.kill()
        child.join()
        return None
    return child.exitcode
