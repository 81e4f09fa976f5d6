"""What a process owes its threads and sockets: made anew in a forked child, closed when it leaves."""

from __future__ import annotations

import atexit
import concurrent.futures.thread
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol


class Resettable(Protocol):
    """Something with threads, locks or sockets."""

    def reset_in_child(self) -> None:
        """
        Forget what the parent had, without touching it.

        Inherited sockets belong to the parent: closing them politely would speak
        on its connection. Runs in the child before anything else does.
        """


class Closable(Protocol):
    """Something that must be let go of before the interpreter leaves."""

    def close_at_exit(self) -> None:
        """Close, within a time limit."""


_resettables: weakref.WeakSet[Resettable] = weakref.WeakSet()
_registered = False
_closables: weakref.WeakSet[Closable] = weakref.WeakSet()


def reset_in_child(resettable: Resettable, /) -> None:
    """Call `resettable.reset_in_child()` in every child forked from now on, as long as it lives."""
    global _registered  # noqa: PLW0603 -- the interpreter keeps one list of hooks, so do we
    _resettables.add(resettable)
    if not _registered and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_reset_all)
        _registered = True


def close_at_exit(closable: Closable, /) -> None:
    """Call `closable.close_at_exit()` when the interpreter leaves, if it still lives."""
    if not _closables:
        atexit.register(_close_all)
    _closables.add(closable)


def daemon_executor(workers: int, name: str) -> ThreadPoolExecutor:
    """
    Make an executor whose threads do not keep the interpreter from leaving.

    All of them are started here, from a daemon thread: they inherit that from it.
    """
    executor = ThreadPoolExecutor(workers, thread_name_prefix=name)
    starter = threading.Thread(target=_fill, args=(executor, workers), daemon=True)
    starter.start()
    starter.join()
    return executor


def _fill(executor: ThreadPoolExecutor, workers: int) -> None:
    """Make the executor start all its threads: none of these calls ends before all have begun."""
    barrier = threading.Barrier(workers)
    try:
        for _ in range(workers):
            executor.submit(_let_the_interpreter_leave, barrier)
    except RuntimeError:
        barrier.abort()


def _let_the_interpreter_leave(barrier: threading.Barrier) -> None:
    # At exit, concurrent.futures joins its threads without a limit; ours are closed with one.
    getattr(concurrent.futures.thread, "_threads_queues", {}).pop(threading.current_thread(), None)
    with suppress(threading.BrokenBarrierError):
        barrier.wait()


def _reset_all() -> None:
    for resettable in list(_resettables):
        resettable.reset_in_child()


def _close_all() -> None:
    for closable in list(_closables):
        closable.close_at_exit()
