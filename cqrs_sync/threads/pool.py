"""SameThread | ThreadPool: run calls, carry context, never deadlock."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from contextlib import suppress
from contextvars import ContextVar, copy_context
from typing import Self

from cqrs_sync.lifecycle import close_at_exit, reset_in_child
from cqrs_sync.threads.executor import Call, Executor, SameThread, Work
from cqrs_sync.threads.fanout import Around, FanOut
from cqrs_sync.threads.running import running_calls
from cqrs_sync.threads.worker_threads import Daemons, Latch

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
        self.around = around
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
        # Threads that were woken and have not come yet.
        self._coming = 0
        self._local = threading.local()
        self._token = object()

    def run(self, work: Work, /, *, until: float | None = None, helping: bool = True) -> bool:
        """Make every call of `work`."""
        nested = getattr(self._local, "busy", False)
        context = copy_context()
        if not (inside := self._token in (outer := _waiting.get())):
            context.run(_waiting.set, (*outer, self._token))
        fan = FanOut(work, context, threading.get_ident())
        try:
            with self._lock:
                fan.look_ahead()
                call = self._take_if(fan, self._helps(nested or inside, helping=helping and until is None), nested)
                self._enqueue(fan)
            if fan.queued and self._daemons is None and not self._open() and call is None:
                # No thread can be had, as at exit: the caller is the last who can do it.
                with self._lock:
                    call = self._take_if(fan, True, nested)
            if call is not None:
                self._help(fan, call, nested=nested)
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
                    daemons.ended = True
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

    # -- with `self._lock` held. A signal handler may raise wherever a call ends: what counts places is changed,
    # and noted by whoever has them, with no call in between.
    def _helps(self, stuck: bool, *, helping: bool) -> bool:
        """Tell whether a caller makes calls; `stuck` where the pool may be full of those who wait for him."""
        free = self._busy < self.max_workers
        if helping or self._closed:
            return free or stuck or self._closed
        # He is not to, but without him there might be nobody.
        return stuck and not (free and (self._daemons is None or self._daemons.sleepers))

    def _take_if(self, fan: FanOut, helps: bool, nested: bool) -> Call | None:
        """Take the first call of a caller who helps, and a place unless he has one."""
        call = fan.take() if helps else None
        if call is not None and not nested:
            self._busy += 1
            fan.held = 1
        return call

    def _enqueue(self, fan: FanOut) -> None:
        """Offer the calls of a fan-out, and wake a thread for them."""
        if fan.ahead is not None and not fan.queued:
            fan.queued = True
            self._queue.append(fan)
            if not self._coming:
                self._wake(1)

    def _wake(self, most: int) -> None:
        """Wake threads for queued calls."""
        sleepers = () if self._daemons is None else self._daemons.sleepers
        while most and sleepers and self._queue and self._busy < self.max_workers:
            most -= 1
            latch = sleepers[-1]
            del sleepers[-1]
            self._busy += 1
            self._coming += 1
            latch.release()

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

    def _next_or_sleep(self, latch: Latch | None) -> tuple[FanOut, Call] | None:
        """Take a call; where there is none, give the place up."""
        item = self._next()
        if item is None:
            self._busy -= 1
            if latch is not None and self._daemons is not None:
                self._daemons.sleepers.append(latch)
            if self._busy <= 1:
                self._idle.notify_all()
        return item

    def _settle(self, fan: FanOut) -> None:
        """Count a call as finished, and offer those it brought."""
        fan.running -= 1
        if fan.ahead is None:
            fan.look_ahead()
        self._enqueue(fan)

    # -- without it
    def _help(self, fan: FanOut, call: Call | None, *, nested: bool) -> None:
        """Make calls in the thread that waits for them."""
        self._local.busy = True
        thread, groups = threading.get_ident(), running_calls.groups
        groups.setdefault(thread, fan)
        while call is not None:
            fan.context.copy().run(*call)
            with self._lock:
                self._settle(fan)
                call = fan.take()
        if groups.get(thread) is fan:
            del groups[thread]
        if fan.held:
            self._leave(fan)
        self._local.busy = nested

    def _leave(self, fan: FanOut) -> None:
        """Give up the place of a caller who helped."""
        with self._lock:
            alone = self._daemons is None and bool(self._queue)
            if not alone:
                self._busy -= fan.held
                fan.held = 0
                if self._busy <= 1:
                    self._idle.notify_all()
                if not self._coming:
                    self._wake(1)
        if alone:
            # No thread would make what others may be waiting for.
            fan.held = 0
            self._drain()

    def _withdraw(self, fan: FanOut, *, nested: bool) -> None:
        """Drop what nobody has started: the caller was interrupted."""
        thread = threading.get_ident()
        if running_calls.groups.get(thread) is fan:
            del running_calls.groups[thread]
        with self._lock:
            fan.abandon()
        if fan.held:
            self._leave(fan)
        self._local.busy = nested

    def _wait(self, fan: FanOut, until: float | None) -> bool:
        with self._lock:
            if fan.finished():
                return True
            latch = threading.Lock()
            latch.acquire()
            fan.latch = latch
        left = -1 if until is None else min(max(0.0, until - time.monotonic()), threading.TIMEOUT_MAX)
        if latch.acquire(timeout=left):
            return True
        with self._lock:
            fan.late = not fan.finished()
            fan.caller = None
            return not fan.late

    def _serve(self, latch: Latch) -> None:
        """Make calls on a thread of the pool that was woken."""
        self._local.busy = True
        self._drain(latch)

    def _drain(self, latch: Latch | None = None) -> None:
        """Make calls as long as there are any, in a place that is taken already."""
        around = None if latch is None else self.around
        with self._lock:
            self._coming -= latch is not None
            item = self._next_or_sleep(latch)
            # Each thread wakes two more: no one pays for waking all.
            self._wake(2)
        while item is not None:
            fan, call = item
            fan.call(call, around)
            with self._lock:
                self._settle(fan)
                finished = fan.finished()
                item = self._next()
            if finished:
                fan.announce()
            del fan, call
            if item is None:
                # Only now: `close` waits for what is announced.
                with self._lock:
                    item = self._next_or_sleep(latch)

    def _open(self) -> bool:
        """Start threads; False where none can be had, as when the interpreter is leaving."""
        with self._starting:
            if self._daemons is None and not self._closed:
                with suppress(RuntimeError):
                    daemons = Daemons(self._serve, self.max_workers, self._name)
                    close_at_exit(self)
                    with self._lock:
                        self._daemons = daemons
                        self._wake(1)
            return self._daemons is not None

    def close_at_exit(self) -> None:
        """Let running calls finish for `exit_timeout` seconds."""
        self.close(self._exit_timeout)
