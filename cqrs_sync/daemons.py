"""Threads that keep no process from leaving."""

from __future__ import annotations

import concurrent.futures.thread
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from weakref import WeakMethod, finalize

logger = logging.getLogger(__name__)


class Daemons:
    """
    The threads of a `concurrent.futures.ThreadPoolExecutor`, each of which calls a method whenever it is woken.

    They are not woken by `submit`: an interrupt in there leaves its locks held for
    ever, and a queue takes a tenth of the time. They end with `end()`, or when
    nobody holds the object whose method it is.
    """

    def __init__(self, method: Callable[[], object], count: int, name: str) -> None:
        """
        Start `count` threads, fewer where the system gives no more.

        Raises RuntimeError where it gives none, as when the interpreter is leaving.
        """
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._wakes: SimpleQueue[bool] = SimpleQueue()
        #: Wakes a thread with True, one that is busy afterwards; False ends them all.
        self.wake = self._wakes.put
        known = WeakMethod(method)
        finalize(known().__self__, self.wake, False).atexit = False  # type: ignore[union-attr]
        # A thread is a daemon where the one that starts it is.
        starter = threading.Thread(target=self._start, args=(count, partial(_serve, known, self._wakes)), daemon=True)
        starter.start()
        starter.join()
        started = len(self._threads)
        if started == 0:
            raise RuntimeError("no thread can be started")
        if started < count:
            logger.warning("only %d of %d threads could be started for %s", started, count, name)

    def end(self, timeout: float) -> None:
        """End the threads once they have called what they were woken for; wait `timeout` seconds for it."""
        until = time.monotonic() + timeout
        self.wake(False)
        self._executor.shutdown(wait=False)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, until - time.monotonic()))

    @property
    def _threads(self) -> list[threading.Thread]:
        return list(self._executor._threads)  # noqa: SLF001 -- it does not tell otherwise

    def _start(self, count: int, serve: Callable[[], object]) -> None:
        # None of these calls ends, so each is given a thread.
        with suppress(RuntimeError):
            for _ in range(count):
                self._executor.submit(serve)
        # At exit, concurrent.futures joins its threads without a limit; ours are ended with one.
        queues = getattr(concurrent.futures.thread, "_threads_queues", {})
        for thread in self._threads:
            queues.pop(thread, None)


def _serve(method: WeakMethod[Callable[[], object]], wakes: SimpleQueue[bool]) -> None:
    while wakes.get():
        alive = method()
        if alive is not None:
            alive()
        del alive
    # For the next one.
    wakes.put(False)
