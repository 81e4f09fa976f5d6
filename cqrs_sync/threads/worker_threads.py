"""Threads that keep no process from leaving."""

from __future__ import annotations

import concurrent.futures.thread
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeAlias
from weakref import WeakMethod, finalize

logger = logging.getLogger(__name__)

#: A lock that a thread sleeps on: releasing it wakes the thread.
Latch: TypeAlias = threading.Lock


class Daemons:
    """
    The threads of a `concurrent.futures.ThreadPoolExecutor`, each of which calls a method whenever it is woken.

    The method is given the thread's latch, and puts it among the `sleepers` again.
    They are not woken by `submit`: what a signal handler raises in there would leave
    its locks held for ever, and it takes ten times as long. They end with `end()`,
    or when nobody holds the object whose method it is.
    """

    def __init__(self, method: Callable[[Latch], object], count: int, name: str) -> None:
        """
        Start `count` threads, fewer where the system gives no more.

        Raises RuntimeError where it gives none, as when the interpreter is leaving.
        """
        #: The latches of the threads that sleep, the last one to be woken first.
        self.sleepers: list[Latch] = []
        #: No thread is to sleep any more.
        self.ended = False
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=name)
        known = WeakMethod(method)
        finalize(known().__self__, self.end, 0.0).atexit = False  # type: ignore[union-attr]
        # A thread is a daemon where the one that starts it is.
        starter = threading.Thread(target=self._start, args=(known, count), daemon=True)
        starter.start()
        starter.join()
        if not self.sleepers:
            raise RuntimeError("no thread can be started")
        if len(self.sleepers) < count:
            logger.warning("only %d of %d threads could be started for %s", len(self.sleepers), count, name)

    def end(self, timeout: float) -> None:
        """End the threads, those that sleep at once; wait `timeout` seconds for it."""
        until = time.monotonic() + timeout
        self.ended = True
        self._executor.shutdown(wait=False)
        sleepers, self.sleepers = self.sleepers, []
        for latch in sleepers:
            latch.release()
        for thread in self._threads if timeout > 0 else ():
            if thread is not threading.current_thread():
                thread.join(max(0.0, until - time.monotonic()))

    @property
    def _threads(self) -> list[threading.Thread]:
        return list(self._executor._threads)  # noqa: SLF001 -- it does not tell otherwise

    def _start(self, method: WeakMethod[Callable[[Latch], object]], count: int) -> None:
        # None of these calls ends, so each is given a thread.
        with suppress(RuntimeError):
            for _ in range(count):
                latch = threading.Lock()
                latch.acquire()
                self._executor.submit(self._serve, method, latch)
                self.sleepers.append(latch)
        # At exit, concurrent.futures joins its threads without a limit; ours are ended with one.
        queues = getattr(concurrent.futures.thread, "_threads_queues", {})
        for thread in self._threads:
            queues.pop(thread, None)

    def _serve(self, method: WeakMethod[Callable[[Latch], object]], latch: Latch) -> None:
        while not self.ended:
            latch.acquire()
            alive = method()
            if alive is None:
                # `end` may be still to come, and finds no latch of a thread that was just woken.
                return
            try:
                if not self.ended:
                    alive(latch)
            except BaseException:
                logger.exception("what was meant not to raise did; a thread of a pool ends for it")
                return
            del alive
