"""Threads that sleep until they are woken, and do not keep the process alive."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias
from weakref import WeakMethod, finalize

logger: logging.Logger = logging.getLogger(__name__)

#: A lock that a thread sleeps on. Releasing it wakes the thread.
Latch: TypeAlias = threading.Lock


class WorkerThreads:
    """
    The threads of a `concurrent.futures.ThreadPoolExecutor`. Each calls a method whenever it is woken.

    The method receives the thread's latch, and puts it back into `sleepers` before it returns. `submit` does not
    wake the threads: an exception of a signal handler in there would leave its locks held, and it takes ten times
    as long. The threads end with `close`, or when the object that has the method is garbage.
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
