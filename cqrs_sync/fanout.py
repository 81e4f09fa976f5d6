"""The calls of one caller: what is ahead, what runs, and who waits."""

from __future__ import annotations

import threading
from contextvars import Context
from typing import Any, Protocol, TypeAlias

#: A function and its arguments; it must not raise.
Call: TypeAlias = "tuple[Any, ...]"


class Work(Protocol):
    """Calls to be made; more may come while they are made."""

    def next_call(self) -> Call | None:
        """Return a call nobody has yet, None where there is none now; never called by two threads at once."""

    def finished_late(self) -> None:
        """All calls are made, after the caller had stopped waiting for them."""


class FanOut:
    """The calls of one caller: what is ahead, what runs, and who waits."""

    __slots__ = ("ahead", "context", "latch", "late", "queued", "running", "work")

    def __init__(self, work: Work, context: Context, ahead: Call) -> None:
        self.work = work
        self.context = context
        self.ahead: Call | None = ahead
        self.running = 0
        self.queued = False
        self.late = False
        self.latch: threading.Lock | None = None

    def take(self) -> Call | None:
        """Start the next call."""
        call = self.ahead
        if call is not None:
            self.running += 1
            self.ahead = self.work.next_call()
        return call

    def finished(self) -> bool:
        """Tell whether every call is made."""
        return self.running == 0 and self.ahead is None

    def announce(self) -> None:
        """Tell whoever waits that all calls are made."""
        if self.late:
            self.work.finished_late()
        elif self.latch is not None:
            self.latch.release()

    def abandon(self) -> None:
        """Drop what nobody has started: the caller was interrupted."""
        self.work = _NoWork()
        self.ahead = None


class _NoWork:
    def next_call(self) -> Call | None:
        return None

    def finished_late(self) -> None:
        pass
