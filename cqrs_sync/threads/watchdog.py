"""Report what is still running at its deadline, with its stack; one thread watches for the whole process."""

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

logger = logging.getLogger(__name__)


class _Watchdog:
    def __init__(self) -> None:
        # Not counted anew in a child: blocks that were entered before the fork are left there.
        self._numbers = itertools.count()
        self.reset_in_child()

    def reset_in_child(self) -> None:
        # Entered itself, not over the condition: an interrupt in there would leave it held for ever.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._looking = threading.Lock()
        self._watches: list[tuple[float, int, int, str]] = []
        self._over: set[int] = set()
        self._thread: threading.Thread | None = None

    def watch(self, title: str, timeout: float) -> int:
        number = next(self._numbers)
        if self._thread is None:
            # Before the lock is taken: a child may be forked while it is held.
            reset_in_child(self)
        with self._lock:
            heapq.heappush(self._watches, (time.monotonic() + timeout, number, threading.get_ident(), title))
            if self._thread is None:
                self._thread = self._start()
            if self._watches[0][1] == number:
                self._changed.notify()
        return number

    def forget(self, number: int) -> None:
        with self._lock:
            self._over.add(number)
            # Those in time are the rule: without this they would pile up until their deadline.
            if len(self._over) > 64 + len(self._watches) // 2:
                self._watches = [watch for watch in self._watches if watch[1] not in self._over]
                heapq.heapify(self._watches)
                self._over.clear()

    def _start(self) -> threading.Thread | None:
        thread = threading.Thread(target=self._run, name="cqrs-watchdog", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # No thread can be had, as at exit: a request is not to fail because nobody watches it.
            return None
        return thread

    def _run(self) -> None:
        while True:
            watch = self._due()
            try:
                self._report(watch)
            except Exception:
                # By a handler of that logger, as a rule: then this raises as well.
                with suppress(Exception):
                    logger.exception("%s was not finished at its deadline, and its stack cannot be logged", watch[3])

    def _due(self) -> tuple[float, int, int, str]:
        with self._lock:
            while True:
                if not self._watches:
                    self._changed.wait()
                elif self._watches[0][1] in self._over:
                    self._over.discard(heapq.heappop(self._watches)[1])
                elif (left := self._watches[0][0] - time.monotonic()) > 0:
                    self._changed.wait(min(left, threading.TIMEOUT_MAX))
                else:
                    return heapq.heappop(self._watches)

    def _report(self, watch: tuple[float, int, int, str]) -> None:
        _, _, thread, title = watch
        stack = self.stacks([thread])[thread]
        logger.warning("%s was not finished at its deadline; it goes on, and is at:\n%s", title, stack)

    def stacks(self, threads: Iterable[int]) -> dict[int, str]:
        with self._looking:
            # CPython 3.11 stops for ever where a collection begins while it looks at its threads (gh-106883).
            collecting = gc.isenabled()
            try:
                gc.disable()
                frames = sys._current_frames()  # noqa: SLF001 -- documented, for this
            finally:
                if collecting:
                    gc.enable()
        return {thread: _shown(frames.get(thread)) for thread in threads}


def _shown(frame: FrameType | None) -> str:
    return "(its thread is gone)" if frame is None else "".join(traceback.format_stack(frame))


_watchdog = _Watchdog()


def watch(message: Any, timeout: float) -> int:
    """Log where this thread is in `timeout` seconds, unless that is forgotten before."""
    return _watchdog.watch(type(message).__qualname__, timeout)


def forget(number: int) -> None:
    """Forget what `watch` has returned."""
    _watchdog.forget(number)


def stacks_of(threads: Iterable[int]) -> dict[int, str]:
    """Return where each of these threads is, told by `threading.get_ident()`, as text."""
    return _watchdog.stacks(threads)
