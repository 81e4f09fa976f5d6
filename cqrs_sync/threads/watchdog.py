"""Log what still runs at its deadline, with the stack of its thread. One thread watches for the whole process."""

from __future__ import annotations

import gc
import heapq
import itertools
import logging
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from contextlib import suppress
from types import FrameType
from typing import Any

from cqrs_sync.lifecycle import reset_in_child

logger: logging.Logger = logging.getLogger(__name__)


class _Watchdog:
    def __init__(self) -> None:
        # A child continues to count: it may leave blocks that its parent entered before the fork.
        self._numbers = itertools.count()
        self.reset_in_child()

    def reset_in_child(self) -> None:
        # Used directly, not through the condition: an interrupt inside its `__enter__` would leave the lock held.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._reading = threading.Lock()
        self._watches: list[tuple[float, int, int, str]] = []
        self._cancelled: set[int] = set()
        self._thread: threading.Thread | None = None

    def watch(self, title: str, timeout: float) -> int:
        number = next(self._numbers)
        if self._thread is None:
            # Before this thread takes the lock: another thread may fork while it is held.
            reset_in_child(self)
        with self._lock:
            heapq.heappush(self._watches, (time.monotonic() + timeout, number, threading.get_ident(), title))
            if self._thread is None:
                self._thread = self._start()
            if self._watches[0][1] == number:
                self._changed.notify()
        return number

    def unwatch(self, number: int) -> None:
        with self._lock:
            self._cancelled.add(number)
            # Most requests finish in time: without this their entries would pile up until the deadline.
            if len(self._cancelled) > 64 + len(self._watches) // 2:
                self._watches = [watch for watch in self._watches if watch[1] not in self._cancelled]
                heapq.heapify(self._watches)
                self._cancelled.clear()

    def _start(self) -> threading.Thread | None:
        thread = threading.Thread(target=self._run, name="cqrs-watchdog", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # No thread can be started, for instance at exit. The request runs without a watchdog.
            return None
        return thread

    def _run(self) -> None:
        while True:
            watch = self._next_due()
            try:
                self._report(watch)
            except Exception:
                # A logging handler raises, as a rule, and then this call raises as well.
                with suppress(Exception):
                    logger.exception("%s has not finished at its deadline, and its stack cannot be logged", watch[3])

    def _next_due(self) -> tuple[float, int, int, str]:
        with self._lock:
            while True:
                if not self._watches:
                    self._changed.wait()
                elif self._watches[0][1] in self._cancelled:
                    self._cancelled.discard(heapq.heappop(self._watches)[1])
                elif (left := self._watches[0][0] - time.monotonic()) > 0:
                    self._changed.wait(min(left, threading.TIMEOUT_MAX))
                else:
                    return heapq.heappop(self._watches)

    def _report(self, watch: tuple[float, int, int, str]) -> None:
        _, _, thread, title = watch
        stack = self.stacks([thread])[thread]
        logger.warning("%s has not finished at its deadline and still runs, at:\n%s", title, stack)

    def stacks(self, threads: Iterable[int]) -> dict[int, str]:
        with self._reading:
            # CPython 3.11 hangs if a garbage collection starts while it reads the frames (gh-106883).
            was_enabled = gc.isenabled()
            try:
                gc.disable()
                frames = sys._current_frames()  # noqa: SLF001 -- documented, for this
            finally:
                if was_enabled:
                    gc.enable()
        return {thread: _format(frames.get(thread)) for thread in threads}


def _format(frame: FrameType | None) -> str:
    return "(the thread has ended)" if frame is None else "".join(traceback.format_stack(frame))


_watchdog = _Watchdog()


def watch(message: Any, timeout: float) -> int:
    """Log the stack of this thread in `timeout` seconds. Returns a number for `unwatch`."""
    return _watchdog.watch(type(message).__qualname__, timeout)


def unwatch(number: int) -> None:
    """Cancel a watch."""
    _watchdog.unwatch(number)


def stacks_of(threads: Iterable[int]) -> dict[int, str]:
    """Return the stack of each of these threads as text. A thread is named by its `threading.get_ident()`."""
    return _watchdog.stacks(threads)
