"""SameThread | ThreadPool: run calls, carry context, never deadlock."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from types import TracebackType
from typing import Self

from cqrs_sync.executor import Call, Executor, SameThread, Work
from cqrs_sync.fanout import Around, FanOut
from cqrs_sync.lifecycle import close_at_exit, daemon_executor, reset_in_child

__all__ = ["Executor", "SameThread", "ThreadPool"]

logger = logging.getLogger(__name__)

# The pools on which a call runs that waits for this one, each as the token it has in this process.
_waiting: ContextVar[tuple[object, ...]] = ContextVar("cqrs_sync.waiting", default=())


class ThreadPool:
    """
    Runs calls on a bounded `concurrent.futures.ThreadPoolExecutor`.

    `max_workers` is the number of calls that run at a time, those of all callers
    together. A caller that waits takes over calls of its own that nobody has
    started, as long as the limit allows: that is why no size can deadlock, and why
    a few quick handlers cost less than waking a thread. It does not help where a
    transaction is open in its thread, nor where it has a deadline to keep, unless
    the pool is full and the caller runs on it himself.

    `around` makes a context manager that is entered around each call on a pool
    thread, as for closing database connections there; a call it cannot be entered
    for counts as failed. Threads are started by the first call, anew in a forked
    child. Whoever made the pool closes it.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        name: str = "cqrs",
        around: Around | None = None,
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
        self._token = object()

    def run(self, work: Work, /, *, until: float | None = None, helping: bool = True) -> bool:
        """Make every call of `work`."""
        nested = getattr(self._local, "busy", False)
        context = copy_context()
        if not (inside := self._token in (outer := _waiting.get())):
            context.run(_waiting.set, (*outer, self._token))
        with self._lock:
            call = work.next_call()
            if call is None:
                return True
            fan = FanOut(work, context, call)
            free = self._busy < self.max_workers
            # Whoever has the places of a full pool may be waiting for this caller, himself or over another pool.
            stuck = nested or inside
            helps = self._closed or (free or stuck if helping and until is None else stuck and not free)
            takes_place = helps and not nested
            self._busy += takes_place
            call = fan.take() if helps else None
            wanted = self._enqueue(fan)
        try:
            self._make(fan, call, wanted, takes_place=takes_place)
            finished = self._wait(fan, until)
        except BaseException:
            with self._lock:
                fan.abandon()
            raise
        if finished and fan.error is not None:
            raise fan.error
        return finished

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
        if fan.ahead is None or fan.queued or (self._closed and self._executor is None):
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
            fan.look_ahead()
        return self._enqueue(fan)

    def _next_or_leave(self) -> tuple[FanOut, Call] | None:
        """Take a call; where there is none, give the place up."""
        item = self._next()
        if item is None:
            self._give_back(1)
        return item

    def _give_back(self, places: int) -> None:
        self._busy -= places
        if self._busy <= 1:
            self._idle.notify_all()

    # -- without it
    def _make(self, fan: FanOut, call: Call | None, wanted: int, *, takes_place: bool) -> None:
        """Have calls of a fan-out made: by threads, and from `call` on by the one that waits for it."""
        local = self._local
        nested = getattr(local, "busy", False)
        try:
            if wanted and not self._start(wanted) and call is None:
                # No thread can be had, as at exit: the caller is the last who can do it.
                with self._lock:
                    call, takes_place = fan.take(), not nested
                    self._busy += takes_place
            if call is not None:
                local.busy = True
                self._help(fan, call)
        finally:
            if takes_place:
                self._leave()
            local.busy = nested

    def _help(self, fan: FanOut, call: Call | None) -> None:
        while call is not None:
            fan.context.copy().run(*call)
            with self._lock:
                wanted = self._settle(fan)
                call = fan.take()
            if wanted:
                self._start(wanted)

    def _leave(self) -> None:
        """Give up the place of a caller that helped."""
        with self._lock:
            self._give_back(1)
            wanted = self._reserve(1)
        if wanted and not self._start(wanted):
            # As above: others may be waiting for calls that nobody else would make.
            with self._lock:
                self._busy += 1
            self._drain()

    def _wait(self, fan: FanOut, until: float | None) -> bool:
        with self._lock:
            if fan.finished():
                return True
            latch = fan.latch = threading.Lock()
            latch.acquire()
        left = -1 if until is None else min(max(0.0, until - time.monotonic()), threading.TIMEOUT_MAX)
        if latch.acquire(timeout=left):
            return True
        with self._lock:
            fan.late = not fan.finished()
            return not fan.late

    def _serve(self) -> None:
        """Make calls on a thread of the pool."""
        self._local.busy = True
        self._drain(self._around)

    def _drain(self, around: Around | None = None) -> None:
        """Make calls as long as there are any, in a place that was reserved."""
        with self._lock:
            item = self._next_or_leave()
            # Each thread wakes two more: no one pays for waking all.
            wanted = self._reserve(2)
        while item is not None:
            if wanted:
                self._start(wanted)
            fan, call = item
            fan.call(call, around)
            with self._lock:
                wanted = self._settle(fan)
                finished = fan.finished()
                item = self._next()
            if finished:
                fan.announce()
            del fan, call
            if item is None:
                # Only now: `close` waits for what is announced.
                with self._lock:
                    item = self._next_or_leave()

    def _start(self, wanted: int) -> bool:
        """Start threads in reserved places; False where none can be had, as when the interpreter is leaving."""
        started = 0
        try:
            executor = self._executor or self._open()
            while started < wanted:
                executor.submit(self._serve)
                started += 1
        except RuntimeError:
            # Told by what is returned.
            pass
        finally:
            if started < wanted:
                with self._lock:
                    self._give_back(wanted - started)
        return started > 0

    def _open(self) -> ThreadPoolExecutor:
        with self._starting:
            if self._executor is None:
                if self._closed:
                    raise RuntimeError("this pool is closed")
                self._executor = daemon_executor(self.max_workers, self._name)
                close_at_exit(self)
            return self._executor

    def close_at_exit(self) -> None:
        """Let running calls finish for `exit_timeout` seconds."""
        self.close(self._exit_timeout)
