"""Note SIGTERM and SIGINT, and do nothing else."""

from __future__ import annotations

import os
import signal
import threading
import time
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, Self

#: Seconds between two looks: a signal that the system gives to another thread does not wake this one.
_STEP = 0.2


class Signals:
    """
    Notes the signals that ask a process to stop, while its block runs.

    Afterwards the previous handlers are in force again. Outside of the main thread, where Python has no signals, it
    notes none.
    """

    def __init__(self) -> None:
        # Not an Event: the code that the signal interrupts may hold its lock. This queue is reentrant.
        self._noted: SimpleQueue[int] = SimpleQueue()
        self._before: dict[int, Any] = {}

    def wait(self, timeout: float) -> int | None:
        """Wait at most `timeout` seconds for the next signal; None if none came."""
        until = time.monotonic() + timeout
        while True:
            left = until - time.monotonic()
            try:
                return self._noted.get(timeout=max(0.0, min(left, _STEP)))
            except Empty:
                if left <= _STEP:
                    return None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None is a handler that was not installed from Python, and cannot be restored.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._noted.empty():
            self._noted.put(number)
        else:
            # The last signal was not read: the main thread may wait for a terminal that takes no output.
            os._exit(128 + number)
