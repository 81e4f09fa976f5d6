"""SameThread | ThreadPool: run calls, carry context, never deadlock."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import Context, copy_context
from types import TracebackType
from typing import Protocol, Self

from cqrs_sync.fanout import Call, FanOut, Work
from cqrs_sync.lifecycle import close_at_exit, daemon_executor, reset_in_child

logger = logging.getLogger(__name__)


class Executor(Protocol):
    """Where event handlers run."""

    def run(self, work: Work, /, *, until: float | None = None, helping: bool = True) -> bool:
        """
        Make every call of `work`, each in its own copy of the caller's context.

        True once all are finished, False where they are not `until` (by
        `time.monotonic`): then the rest is made all the same, and `finished_late`
        called. `helping` allows calls in the thread that waits.
        """

    def close(self, timeout: float = 5.0) -> None:
        """Let running calls finish for `timeout` seconds, and let go of the threads."""


class SameThread:
    """Runs calls one after the other in the caller's thread."""

    def run(self, work: Work, /, *, until: float | None = None, helping: bool = True) -> bool:
        """Make every call of `work`, in the order they came."""
        del until, helping
        next_call = work.next_call
        while (call := next_call()) is not None:
            copy_context().run(*call)
        return True

    def close(self, timeout: float = 5.0) -> None:
        """Nothing to let go of."""


class ThreadPool:
    """
    Runs calls on a bounded `concurrent.futures.ThreadPoolExecutor`.

    `max_workers` is the number of calls that run at a time, those of all callers
    together. A caller that waits takes over calls of its own that nobody has
    started, as long as the limit allows: that is why no size can deadlock, and why
    a few quick handlers cost less than waking a thread. It does not help where a
    transaction is open in its thread, nor where it has a deadline to keep.

    `around` makes a context manager that is entered around each call on a pool
    thread, as for closing database connections there. Threads are started by the
    first call, anew in a forked child. Whoever made the pool closes it.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        name: str = "cqrs",
        around: Callable[[], AbstractContextManager[object]] | None = None,
        exit_timeout: float = 5.0,
    ) -> None:
        if max_workers is None:
            max_workers = min(32, (os.cpu_count() or 1) + 4)
        if isinstance(max_workers, bool) or not isinstance(max_workers, int) or max_workers < 1:
            raise ValueError(f"max_workers must be a whole number above 0, not {max_workers!r}")
        self.max_workers = max_workers
        self._name = name
        self._around = around
        self._exit_timeout = exit_timeout
        self._closed = False
        self.reset_in_child()
        reset_in_child(self)

    def reset_in_child(self) -> None:
        """Start over: the parent's threads are not in the child, its locks may be held for ever."""
        self._lock = threading.Lock()
        self._starting = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._executor: ThreadPoolExecutor | None = None
        # Fan-outs that have calls nobody has started, served in turns.
        self._queue: deque[FanOut] = deque()
        # Calls that may run now: threads that take calls, and callers that help.
        self._busy = 0
        self._local = threading.local()

    def run(self, work: Work, /, *, until: float | None = None, helping: bool = True) -> bool:
        """Make every call of `work`."""
        nested = getattr(self._local, "busy", False)
        with self._lock:
            call = work.next_call()
            if call is None:
                return True
            fan = FanOut(work, copy_context(), call)
            takes_place = self._closed or (helping and until is None and self._busy < self.max_workers)
            helps = nested or takes_place
            if helps:
                self._busy += not nested
                call = fan.take()
            wanted = self._enqueue(fan)
        if wanted and not self._start(wanted) and not helps:
            # No thread can be had, as at exit: the caller is the last who can do it.
            with self._lock:
                helps, nested, call = True, True, fan.take()
        if helps:
            self._help(fan, call, takes_place=not nested)
        return self._wait(fan, until)

    def close(self, timeout: float = 5.0) -> None:
        """
        Let running calls finish for `timeout` seconds, and let go of the threads.

        A call that is not finished goes on, in a thread that keeps no process from
        leaving. Calls that come later run in their caller's thread.
        """
        until = time.monotonic() + timeout
        executor: ThreadPoolExecutor | None = None
        with self._idle:
            self._closed = True
            mine = getattr(self._local, "busy", False)
            while self._busy > mine and (left := until - time.monotonic()) > 0:
                self._idle.wait(left)
            running = self._busy - mine
            if running <= 0:
                # Only then: whoever still waits for calls needs the threads that make them.
                executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=not mine)
        if running > 0:
            logger.warning("%d handler(s) still ran %.1f s after close(); they were left running", running, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ThreadPool({self.max_workers})"

    # -- with `self._lock` held
    def _enqueue(self, fan: FanOut) -> int:
        """Offer the calls of a fan-out; how many threads to wake for them."""
        if fan.ahead is None or fan.queued:
            return 0
        fan.queued = True
        self._queue.append(fan)
        return self._reserve(1)

    def _reserve(self, most: int) -> int:
        """Reserve places for threads that take queued calls."""
        wanted = max(0, min(most, self.max_workers - self._busy)) if self._queue else 0
        self._busy += wanted
        return wanted

    def _next(self) -> tuple[FanOut, Call] | None:
        """Take a call of the fan-out whose turn it is."""
        while self._queue:
            fan = self._queue.popleft()
            fan.queued = False
            call = fan.take()
            if fan.ahead is not None:
                fan.queued = True
                self._queue.append(fan)
            if call is not None:
                return fan, call
        return None

    def _settle(self, fan: FanOut) -> int:
        """Count a call as finished; how many threads to wake for calls it brought."""
        fan.running -= 1
        if fan.ahead is None:
            fan.ahead = fan.work.next_call()
        return self._enqueue(fan)

    def _release(self) -> int:
        """Give a place up; how many threads to wake in its stead."""
        self._busy -= 1
        if self._busy <= 1:
            self._idle.notify_all()
        return self._reserve(1)

    # -- without it
    def _help(self, fan: FanOut, call: Call | None, *, takes_place: bool) -> None:
        """Make calls of a fan-out in the thread that waits for it."""
        was_busy = getattr(self._local, "busy", False)
        self._local.busy = True
        try:
            while call is not None:
                fan.context.copy().run(*call)
                with self._lock:
                    wanted = self._settle(fan)
                    call = fan.take()
                if wanted:
                    self._start(wanted)
        except BaseException:
            with self._lock:
                fan.abandon()
            raise
        finally:
            self._local.busy = was_busy
            if takes_place:
                with self._lock:
                    wanted = self._release()
                if wanted:
                    self._start(wanted)

    def _wait(self, fan: FanOut, until: float | None) -> bool:
        with self._lock:
            if fan.finished():
                return True
            latch = fan.latch = threading.Lock()
            latch.acquire()
        try:
            if latch.acquire(timeout=-1 if until is None else max(0.0, until - time.monotonic())):
                return True
        except BaseException:
            with self._lock:
                fan.abandon()
            raise
        with self._lock:
            if fan.finished():
                return True
            fan.late = True
            return False

    def _drain(self) -> None:
        """Make calls on a pool thread as long as there are any."""
        self._local.busy = True
        with self._lock:
            item = self._next()
            # Each thread wakes two more: no one pays for waking all.
            wanted = self._reserve(2)
        while item is not None:
            if wanted:
                self._start(wanted)
            fan, call = item
            self._call(fan.context.copy(), call)
            with self._lock:
                wanted = self._settle(fan)
                finished = fan.finished()
                item = self._next()
            if finished:
                fan.announce()
            del fan, call
        with self._lock:
            wanted = self._release()
        if wanted:
            self._start(wanted)

    def _call(self, context: Context, call: Call) -> None:
        try:
            if self._around is None:
                context.run(*call)
            else:
                with self._around():
                    context.run(*call)
        except BaseException:
            logger.exception("a call on the pool raised; calls are meant not to")

    def _start(self, wanted: int) -> bool:
        """Wake threads; False where none can be had, as when the interpreter is leaving."""
        started = 0
        try:
            executor = self._executor or self._open()
            for _ in range(wanted):
                executor.submit(self._drain)
                started += 1
        except RuntimeError:
            with self._lock:
                self._busy -= wanted - started
        return started > 0

    def _open(self) -> ThreadPoolExecutor:
        with self._starting:
            if self._executor is None:
                self._executor = daemon_executor(self.max_workers, self._name)
                close_at_exit(self)
            return self._executor

    def close_at_exit(self) -> None:
        """Let running calls finish for `exit_timeout` seconds."""
        self.close(self._exit_timeout)
