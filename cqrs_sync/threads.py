"""SameThread | ThreadPool: run calls, carry context, never deadlock."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from contextvars import ContextVar, copy_context
from typing import Self

from cqrs_sync.daemons import Daemons
from cqrs_sync.executor import Call, Executor, SameThread, Work
from cqrs_sync.fanout import Around, FanOut, Places
from cqrs_sync.lifecycle import close_at_exit, reset_in_child

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
        self._daemons: Daemons | None = None
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
        fan = FanOut(work, context)
        try:
            with self._lock:
                fan.look_ahead()
                free = self._busy < self.max_workers
                # Whoever has the places of a full pool may be waiting for this caller, himself or over another pool.
                stuck = nested or inside
                helps = self._closed or (free or stuck if helping and until is None else stuck and not free)
                call = fan.take() if helps else None
                if call is not None and not nested:
                    self._busy += 1
                    fan.held = 1
                self._enqueue(fan, fan)
            self._make(fan, call, nested=nested)
            finished = self._wait(fan, until)
        except BaseException:
            self._withdraw(fan, nested=nested)
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
        daemons: Daemons | None = None
        with self._lock:
            self._closed = True
            mine = getattr(self._local, "busy", False)
            while self._busy > mine and (left := until - time.monotonic()) > 0:
                self._idle.wait(left)
            running = self._busy - mine
            if running <= 0:
                # Only then: whoever still waits for calls needs the threads that make them.
                daemons, self._daemons = self._daemons, None
        if daemons is not None:
            daemons.end(max(0.1, until - time.monotonic()))
        if running > 0:
            logger.warning("%d handler(s) still ran %.1f s after close(); they were left running", running, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ThreadPool({self.max_workers})"

    # -- with `self._lock` held
    def _enqueue(self, fan: FanOut, places: Places) -> None:
        """Offer the calls of a fan-out, and reserve a place for a thread that takes them."""
        if fan.ahead is not None and not fan.queued:
            fan.queued = True
            self._queue.append(fan)
            self._reserve(1, places)

    def _reserve(self, most: int, places: Places) -> None:
        """Reserve places for threads that take queued calls."""
        wanted = min(most, self.max_workers - self._busy) if self._queue else 0
        if wanted > 0:
            self._busy += wanted
            places.reserved += wanted

    def _release(self, places: Places) -> None:
        self._busy -= places.held + places.reserved
        places.held = places.reserved = 0
        if self._busy <= 1:
            self._idle.notify_all()

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

    def _settle(self, fan: FanOut, places: Places) -> None:
        """Count a call as finished, and offer those it brought."""
        fan.running -= 1
        if fan.ahead is None:
            fan.look_ahead()
        self._enqueue(fan, places)

    # -- without it
    def _make(self, fan: FanOut, call: Call | None, *, nested: bool) -> None:
        """Have calls of a fan-out made: by threads, and from `call` on by the one that waits for it."""
        if fan.reserved and not self._start(fan) and call is None:
            # No thread can be had, as at exit: the caller is the last who can do it.
            with self._lock:
                call = fan.take()
                if call is not None and not nested:
                    self._busy += 1
                    fan.held = 1
        if call is not None:
            self._local.busy = True
            self._help(fan, call)
            self._local.busy = nested
        if fan.held:
            self._leave(fan)

    def _help(self, fan: FanOut, call: Call | None) -> None:
        while call is not None:
            fan.context.copy().run(*call)
            with self._lock:
                self._settle(fan, fan)
                call = fan.take()
            if fan.reserved:
                self._start(fan)

    def _leave(self, fan: FanOut) -> None:
        """Give up the place of a caller that helped."""
        with self._lock:
            self._release(fan)
            self._reserve(1, fan)
        if fan.reserved and not self._start(fan):
            # As above: others may be waiting for calls that nobody else would make.
            with self._lock:
                self._busy += 1
            self._local.busy = True
            self._drain()
            self._local.busy = False

    def _withdraw(self, fan: FanOut, *, nested: bool) -> None:
        """Drop what nobody has started: the caller was interrupted."""
        self._local.busy = nested
        with self._lock:
            fan.abandon()
            if nested:
                self._release(fan)
        if not nested:
            self._leave(fan)

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
        places = Places(held=1)
        with self._lock:
            item = self._next_or_leave(places)
            # Each thread wakes two more: no one pays for waking all.
            self._reserve(2, places)
        while item is not None:
            if places.reserved:
                self._start(places)
            fan, call = item
            fan.call(call, around)
            with self._lock:
                self._settle(fan, places)
                finished = fan.finished()
                item = self._next()
            if finished:
                fan.announce()
            del fan, call
            if item is None:
                # Only now: `close` waits for what is announced.
                with self._lock:
                    item = self._next_or_leave(places)

    def _next_or_leave(self, places: Places) -> tuple[FanOut, Call] | None:
        """Take a call; where there is none, give the place up."""
        item = self._next()
        if item is None:
            self._release(places)
        return item

    def _start(self, places: Places) -> bool:
        """Wake threads for reserved places; False where none can be had, as when the interpreter is leaving."""
        try:
            wake = (self._daemons or self._open()).wake
        except RuntimeError:
            with self._lock:
                self._busy -= places.reserved
                places.reserved = 0
            return False
        while places.reserved:
            places.reserved -= 1
            wake(True)
        return True

    def _open(self) -> Daemons:
        with self._starting:
            if self._daemons is None:
                if self._closed:
                    raise RuntimeError("this pool is closed")
                self._daemons = Daemons(self._serve, self.max_workers, self._name)
                close_at_exit(self)
            return self._daemons

    def close_at_exit(self) -> None:
        """Let running calls finish for `exit_timeout` seconds."""
        self.close(self._exit_timeout)
