"""The calls of one caller: what is ahead, what runs, and who waits."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from contextvars import Context
from typing import TypeAlias

from cqrs_sync.threads.executor import Call, Work
from cqrs_sync.threads.running import running_calls

logger = logging.getLogger(__name__)

__all__ = ["Around", "Call", "FanOut", "Work"]

#: Makes what is entered around each call on a pool thread.
Around: TypeAlias = Callable[[], AbstractContextManager[object]]


class FanOut:
    """The calls of one caller: what is ahead, what runs, and who waits."""

    __slots__ = ("ahead", "caller", "context", "error", "held", "latch", "late", "queued", "running", "work")

    def __init__(self, work: Work, context: Context, caller: int) -> None:
        self.work = work
        self.context = context
        #: The thread that waits for these calls, by `threading.get_ident()`; None once it has stopped.
        self.caller: int | None = caller
        self.ahead: Call | None = None
        self.running = 0
        self.queued = False
        self.late = False
        #: How many places of the pool the caller has taken, to help.
        self.held = 0
        self.latch: threading.Lock | None = None
        #: What went wrong when the work was asked for calls.
        self.error: Exception | None = None

    def take(self) -> Call | None:
        """Start the next call."""
        call = self.ahead
        if call is not None:
            self.running += 1
            self.look_ahead()
        return call

    def look_ahead(self) -> None:
        """Ask for the next call."""
        try:
            self.ahead = self.work.next_call()
        except Exception as error:  # noqa: BLE001 -- the caller gets it; a thread that died of it would keep him waiting
            self.ahead = None
            self.error = self.error or error

    def call(self, call: Call, around: Around | None) -> None:
        """Make a call in a context of its own, on a thread that nobody's error may end."""
        thread, groups = threading.get_ident(), running_calls.groups
        # A caller that has to drain the queue may run a call already.
        is_outermost = thread not in groups
        try:
            if is_outermost:
                groups[thread] = self
            self.context.copy().run(self._call, call, around)
        finally:
            if is_outermost:
                del groups[thread]

    def _call(self, call: Call, around: Around | None) -> None:
        try:
            if around is None:
                call[0](*call[1:])
            else:
                self._call_inside(around, call)
        except BaseException:
            logger.exception("a call, or what is around it, raised")

    def _call_inside(self, around: Around, call: Call) -> None:
        with ExitStack() as stack:
            try:
                stack.enter_context(around())
            except BaseException as error:  # noqa: BLE001 -- whoever waits for the call gets it
                self.work.call_failed(call, error)
            else:
                call[0](*call[1:])

    def finished(self) -> bool:
        """Tell whether every call is made."""
        return self.running == 0 and self.ahead is None

    def announce(self) -> None:
        """Tell whoever waits that all calls are made."""
        if not self.late:
            if self.latch is not None:
                self.latch.release()
            return
        try:
            self.context.run(self.work.finished_late)
        except BaseException:
            logger.exception("what follows the last call raised; nobody waits for it")
        if self.error is not None:
            logger.error("calls were dropped, and nobody waits for them", exc_info=self.error)

    def abandon(self) -> None:
        """Drop what nobody has started: the caller was interrupted."""
        self.work = _NoWork()
        self.ahead = None
        self.caller = None


class _NoWork:
    def next_call(self) -> Call | None:
        return None

    def call_failed(self, call: Call, error: BaseException, /) -> None:
        pass

    def finished_late(self) -> None:
        pass
