"""ThreadPool: run the calls of many callers on a bounded number of threads, without deadlocks."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, suppress
from contextvars import Context, ContextVar, copy_context
from importlib import import_module
from typing import Self, TypeAlias
from weakref import WeakMethod, finalize

from cqrs_sync.lifecycle import close_at_exit, reset_in_child
from cqrs_sync.threads.executor import Call, CallSource, Executor, SameThread, running_calls

__all__ = ["CallGroup", "DetachedCalls", "Executor", "SameThread", "ThreadPool"]

logger: logging.Logger = logging.getLogger(__name__)

#: Makes the context manager that surrounds each call on a pool thread.
Around: TypeAlias = Callable[[], AbstractContextManager[object]]

# Pools that run a call which waits for the current call, directly or not: the token of each pool in this process.
_waiting_pools: ContextVar[tuple[object, ...]] = ContextVar("cqrs_sync.waiting_pools", default=())


class ThreadPool:
    """
    Runs calls on at most `max_workers` threads at a time, those of all callers together.

    The threads are those of a `concurrent.futures.ThreadPoolExecutor`. Everything else is this class's own: the
    queue, the limit and the wake-up, which take a tenth of the time of `submit` and a future.

    A caller that waits runs calls of its own that no thread has started, as long as the limit allows one more.
    So no pool size can deadlock, and a few quick handlers cost less than it takes to wake a thread. The caller does
    not help if its thread has an open transaction or if it has a timeout. It helps even then if it runs on this
    pool itself and no other thread is free.

    `around` makes a context manager that surrounds each call on a pool thread, for instance one that closes
    database connections. If it cannot be entered, the call counts as failed. The first call starts the threads; a
    forked child starts its own. Close a pool that you make. After `close` calls run in their caller's thread.
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
        # Not when the threads start: a child that another thread forks during the import could never start its own.
        import_module("concurrent.futures.thread")
        self.max_workers = max_workers
        self._name = name
        self.around = around
        self._exit_timeout = exit_timeout
        self._closed = False
        self.reset_in_child()
        reset_in_child(self)

    def reset_in_child(self) -> None:
        """Start over: the child does not have the parent's threads, and nothing releases the locks they held."""
        self._lock = threading.Lock()
        self._starting = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._threads: WorkerThreads | None = None
        # Groups with a call that no thread has started. They take turns.
        self._queue: deque[CallGroup] = deque()
        # Slots in use: pool threads that are awake, and callers that help.
        self._busy = 0
        # Pool threads that were woken and have not asked for a call yet.
        self._waking = 0
        self._local = threading.local()
        self._token = object()

    @property
    def busy_count(self) -> int:
        """How many of its `max_workers` are in use now: pool threads that are awake, and callers that help."""
        return self._busy

    @property
    def queued_count(self) -> int:
        """How many callers have a call that waits for a thread."""
        return len(self._queue)

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed, even if calls still run."""
        return self._closed

    def run(self, source: CallSource, /, *, timeout: float | None = None, may_help: bool = True) -> bool:
        """
        Run every call of `source`, each in its own copy of the caller's context.

        Returns False if they have not finished after `timeout` seconds; they run all the same.
        Raises what `source.next_call` raised, once the calls before it have finished.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        has_slot = getattr(self._local, "has_slot", False)
        context = copy_context()
        if not (is_nested := self._token in (outer := _waiting_pools.get())):
            context.run(_waiting_pools.set, (*outer, self._token))
        group = CallGroup(source, context, threading.get_ident())
        try:
            with self._lock:
                group.fetch()
                helps = self._may_help(has_slot or is_nested, may_help=may_help and timeout is None)
                call = self._start_in_caller(group, has_slot=has_slot) if helps else None
                self._enqueue(group)
            if group.is_queued and self._threads is None and not self._start_threads() and call is None:
                # No thread can be started, for instance at exit: only the caller is left to run the calls.
                with self._lock:
                    call = self._start_in_caller(group, has_slot=has_slot)
            if call is not None:
                self._help(group, call, has_slot=has_slot)
            finished = self._wait(group, deadline)
        except BaseException:
            self._cancel(group, has_slot=has_slot)
            raise
        if finished and group.error is not None:
            raise group.error
        return finished

    def close(self, timeout: float = 5.0) -> None:
        """
        Wait up to `timeout` seconds for running calls, then give up the threads.

        A call that has not finished continues, on a thread that does not keep the process alive.
        """
        deadline = time.monotonic() + timeout
        threads: WorkerThreads | None = None
        with self._lock:
            self._closed = True
            own = getattr(self._local, "has_slot", False)
            while self._busy > own and (left := deadline - time.monotonic()) > 0:
                self._idle.wait(left)
            running = self._busy - own
            if running <= 0:
                # Not before: callers that still wait need the threads.
                threads, self._threads = self._threads, None
                if threads is not None:
                    threads.is_closed = True
        if threads is not None:
            threads.close(max(0.1, deadline - time.monotonic()))
        if running > 0:
            logger.warning("%d handler(s) still ran %.1f s after close(); they were left running", running, timeout)

    def close_at_exit(self) -> None:
        """Wait up to `exit_timeout` seconds for running calls."""
        self.close(self._exit_timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ThreadPool({self.max_workers})"

    # -- The caller holds `self._lock`. A signal handler may raise wherever a call returns: so each method changes the
    # count of slots, and notes who holds them, with no call in between.

    def _may_help(self, may_be_stuck: bool, *, may_help: bool) -> bool:
        """Tell whether a caller runs calls; `may_be_stuck` if every pool thread may wait for this caller."""
        has_room = self._busy < self.max_workers
        if may_help or self._closed:
            return has_room or may_be_stuck or self._closed
        # The caller should not help, but if every pool thread waits for it, helping is the only way forward.
        return may_be_stuck and not (has_room and (self._threads is None or self._threads.sleepers))

    def _start_in_caller(self, group: CallGroup, *, has_slot: bool) -> Call | None:
        """Start the first call in the caller's thread, which takes a slot unless it has one."""
        call = group.start_next()
        if call is not None and not has_slot:
            self._busy += 1
            group.caller_slots = 1
        return call

    def _enqueue(self, group: CallGroup) -> None:
        """Offer the next call of a group to the pool threads, and wake one."""
        if group.next_call is not None and not group.is_queued:
            group.is_queued = True
            self._queue.append(group)
            if not self._waking:
                self._wake(1)

    def _wake(self, limit: int) -> None:
        """Wake up to `limit` threads for queued calls."""
        sleepers = () if self._threads is None else self._threads.sleepers
        while limit and sleepers and self._queue and self._busy < self.max_workers:
            limit -= 1
            latch = sleepers[-1]
            del sleepers[-1]
            self._busy += 1
            self._waking += 1
            latch.release()

    def _next(self) -> tuple[CallGroup, Call] | None:
        """Start a call of the group whose turn it is."""
        while self._queue:
            group = self._queue.popleft()
            group.is_queued = False
            call = group.start_next()
            if group.next_call is not None:
                group.is_queued = True
                self._queue.append(group)
            if call is not None:
                return group, call
        return None

    def _next_or_sleep(self, latch: Latch | None) -> tuple[CallGroup, Call] | None:
        """Start a call; if there is none, give up the slot."""
        item = self._next()
        if item is None:
            self._busy -= 1
            if latch is not None and self._threads is not None:
                self._threads.sleepers.append(latch)
            if self._busy <= 1:
                self._idle.notify_all()
        return item

    def _finish(self, group: CallGroup) -> None:
        """Count a call as finished, and offer the calls it added."""
        group.running -= 1
        if group.next_call is None:
            group.fetch()
        self._enqueue(group)

    # -- Without the lock.

    def _help(self, group: CallGroup, call: Call | None, *, has_slot: bool) -> None:
        """Run calls in the thread that waits for them."""
        self._local.has_slot = True
        groups = running_calls.groups
        groups.setdefault(threading.get_ident(), group)
        while call is not None:
            group.context.copy().run(*call)
            with self._lock:
                self._finish(group)
                call = group.start_next()
        self._stop_helping(group, has_slot=has_slot)

    def _cancel(self, group: CallGroup, *, has_slot: bool) -> None:
        """Drop the calls that no thread has started: an exception interrupted the caller."""
        with self._lock:
            group.cancel()
        self._stop_helping(group, has_slot=has_slot)

    def _stop_helping(self, group: CallGroup, *, has_slot: bool) -> None:
        """Give up what a caller held while it ran calls."""
        thread = threading.get_ident()
        if running_calls.groups.get(thread) is group:
            del running_calls.groups[thread]
        if group.caller_slots:
            self._release_slot(group)
        self._local.has_slot = has_slot

    def _release_slot(self, group: CallGroup) -> None:
        with self._lock:
            must_drain = self._threads is None and bool(self._queue)
            if not must_drain:
                self._busy -= group.caller_slots
                group.caller_slots = 0
                if self._busy <= 1:
                    self._idle.notify_all()
                if not self._waking:
                    self._wake(1)
        if must_drain:
            # There is no pool thread to run what other callers may wait for.
            group.caller_slots = 0
            self._drain()

    def _wait(self, group: CallGroup, deadline: float | None) -> bool:
        with self._lock:
            if group.is_finished():
                return True
            latch = threading.Lock()
            latch.acquire()
            group.latch = latch
        left = -1 if deadline is None else min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
        if latch.acquire(timeout=left):
            return True
        with self._lock:
            if group.is_finished():
                return True
            group.caller = None
            return False

    def _serve(self, latch: Latch) -> None:
        """Run calls on a pool thread that was woken."""
        self._local.has_slot = True
        self._drain(latch)

    def _drain(self, latch: Latch | None = None) -> None:
        """Run calls as long as there are any. The thread has a slot, and a latch if it is a pool thread."""
        around = None if latch is None else self.around
        # A caller that drains the queue may run a call already, and is noted for that one.
        noted = None if threading.get_ident() in running_calls.groups else threading.get_ident()
        with self._lock:
            self._waking -= latch is not None
            item = self._next_or_sleep(latch)
            # Each thread wakes two more, so no thread pays for waking all of them.
            self._wake(2)
        while item is not None:
            group, call = item
            group.run_call(call, around, noted)
            with self._lock:
                self._finish(group)
                finished = group.is_finished()
                item = self._next()
            if finished:
                group.complete()
            del group, call
            if item is None:
                # Not before `complete`: `close` waits for it.
                with self._lock:
                    item = self._next_or_sleep(latch)

    def _start_threads(self) -> bool:
        """Start the threads. Returns False if none can be started, for instance at exit."""
        with self._starting:
            if self._threads is None and not self._closed:
                with suppress(RuntimeError):
                    threads = WorkerThreads(self._serve, self.max_workers, self._name)
                    close_at_exit(self)
                    with self._lock:
                        self._threads = threads
                        self._wake(1)
            return self._threads is not None


class CallGroup:
    """The calls of one caller: the next one, how many run, and who waits for them. The pool's lock guards it."""

    __slots__ = ("caller", "caller_slots", "context", "error", "is_queued", "latch", "next_call", "running", "source")

    def __init__(self, source: CallSource, context: Context, caller: int) -> None:
        #: None after the caller was interrupted.
        self.source: CallSource | None = source
        self.context: Context = context
        #: The thread that waits for the calls; None once it has stopped waiting.
        self.caller: int | None = caller
        #: The call that a thread may start next.
        self.next_call: Call | None = None
        self.running: int = 0
        self.is_queued: bool = False
        #: How many slots of the pool the caller has taken to help.
        self.caller_slots: int = 0
        self.latch: threading.Lock | None = None
        #: What the source raised when it was asked for a call.
        self.error: Exception | None = None

    def start_next(self) -> Call | None:
        """Count the next call as running and return it."""
        call = self.next_call
        if call is not None:
            self.running += 1
            self.fetch()
        return call

    def fetch(self) -> None:
        """Ask the source for the next call."""
        try:
            self.next_call = None if self.source is None else self.source.next_call()
        except Exception as error:  # noqa: BLE001 -- `run` raises it; on a pool thread it would leave the caller waiting
            self.next_call = None
            self.error = self.error or error

    def is_finished(self) -> bool:
        """Tell whether no call runs and none is left."""
        return self.running == 0 and self.next_call is None

    def cancel(self) -> None:
        """Drop the calls that no thread has started."""
        self.source = self.next_call = self.caller = None

    # -- Without the lock.

    def run_call(self, call: Call, around: Around | None, thread: int | None) -> None:
        """
        Run a call in its own context, and note that `thread` runs it.

        Never raises: an error must not end the thread.
        """
        try:
            if thread is not None:
                running_calls.groups[thread] = self
            self.context.copy().run(self._run, call, around)
        finally:
            if thread is not None:
                del running_calls.groups[thread]

    def _run(self, call: Call, around: Around | None) -> None:
        try:
            if around is None:
                call[0](*call[1:])
            else:
                self._run_inside(around, call)
        except BaseException:
            logger.exception("a call or the pool's `around` raised")

    def _run_inside(self, around: Around, call: Call) -> None:
        with ExitStack() as stack:
            try:
                stack.enter_context(around())
            except BaseException as error:  # noqa: BLE001 -- the source reports it
                source = self.source
                if source is not None:
                    source.call_failed(call, error)
            else:
                call[0](*call[1:])

    def complete(self) -> None:
        """Wake the caller; if it no longer waits, tell the source."""
        if self.caller is not None:
            if self.latch is not None:
                self.latch.release()
            return
        source = self.source
        try:
            if source is not None:
                self.context.run(source.finished_late)
        except BaseException:
            logger.exception("finished_late() raised after its caller timed out")
        if self.error is not None:
            words = "next_call() raised after its caller timed out: remaining calls dropped"
            logger.error(words, exc_info=self.error)


class DetachedCalls:
    """
    Calls that no caller waits for.

    `not_called` gets a call that the executor could not make, and why. `finished` is called after the last call.
    """

    def __init__(
        self,
        calls: Iterable[Call],
        not_called: Callable[[Call, BaseException], None],
        finished: Callable[[DetachedCalls], object],
    ) -> None:
        self._calls = deque(calls)
        self._finished = finished
        self.call_failed = not_called

    def start(self, executor: Executor) -> None:
        """Give the calls to the executor."""
        if executor.run(self, timeout=0, may_help=False):
            self.finished_late()

    def next_call(self) -> Call | None:
        """Return the next call."""
        return self._calls.popleft() if self._calls else None

    def finished_late(self) -> None:
        """Tell that all calls have finished."""
        self._finished(self)


#: A lock that a thread sleeps on. Releasing it wakes the thread.
Latch: TypeAlias = threading.Lock


class WorkerThreads:
    """
    The threads of a `concurrent.futures.ThreadPoolExecutor`. Each calls a method whenever it is woken.

    They do not keep the process alive. The method receives the thread's latch, and puts it back into `sleepers` before
    it returns. `submit` does not wake the threads: an exception of a signal handler in there would leave its locks
    held, and it takes ten times as long. The threads end with `close`, or when the object that has the method is
    garbage.
    """

    def __init__(self, method: Callable[[Latch], object], count: int, name: str) -> None:
        """
        Start `count` threads, or as many as the system allows.

        Raises RuntimeError if the system allows none, for instance because the interpreter exits.
        """
        # Not at the top: it would be a tenth of what importing the package costs.
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

        #: The latches of sleeping threads. The last one is woken first.
        self.sleepers: list[Latch] = []
        #: No thread sleeps again.
        self.is_closed: bool = False
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=name)
        weak_method = WeakMethod(method)
        finalize(weak_method().__self__, self.close, 0.0).atexit = False  # type: ignore[union-attr]
        # A thread that a daemon thread starts is a daemon itself.
        starter = threading.Thread(target=self._start, args=(weak_method, count), daemon=True)
        starter.start()
        starter.join()
        if not self.sleepers:
            raise RuntimeError("no thread can be started")
        if len(self.sleepers) < count:
            logger.warning("only %d of %d threads could be started for %s", len(self.sleepers), count, name)

    def close(self, timeout: float) -> None:
        """End the threads, sleeping ones at once, and wait up to `timeout` seconds for them."""
        deadline = time.monotonic() + timeout
        self.is_closed = True
        self._executor.shutdown(wait=False)
        sleepers, self.sleepers = self.sleepers, []
        for latch in sleepers:
            latch.release()
        for thread in self._threads if timeout > 0 else ():
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def _threads(self) -> list[threading.Thread]:
        return list(self._executor._threads)  # noqa: SLF001 -- it has no public list

    def _start(self, method: WeakMethod[Callable[[Latch], object]], count: int) -> None:
        # None of these calls ends before `close`, so each gets a thread.
        with suppress(RuntimeError):
            for _ in range(count):
                latch = threading.Lock()
                latch.acquire()
                self._executor.submit(self._serve, method, latch)
                self.sleepers.append(latch)
        # At exit, concurrent.futures joins its threads without a time limit. ThreadPool ends these with one.
        queues = getattr(sys.modules[type(self._executor).__module__], "_threads_queues", {})
        for thread in self._threads:
            queues.pop(thread, None)

    def _serve(self, method: WeakMethod[Callable[[Latch], object]], latch: Latch) -> None:
        while not self.is_closed:
            latch.acquire()
            serve = method()
            if serve is None:
                # `close` may come later and not find the latch of a thread that was just woken.
                return
            try:
                if not self.is_closed:
                    serve(latch)
            except BaseException:
                logger.exception("an unexpected error ends a thread of a pool")
                return
            del serve
