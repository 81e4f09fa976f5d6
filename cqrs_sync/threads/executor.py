"""The executor socket: where event handlers run."""

from __future__ import annotations

from contextvars import copy_context
from threading import get_ident
from typing import Any, Protocol, TypeAlias

from cqrs_sync.threads.running import running_calls

#: A function and its arguments; it must not raise.
Call: TypeAlias = "tuple[Any, ...]"


class Work(Protocol):
    """Calls to be made; more may come while they are made."""

    def next_call(self) -> Call | None:
        """Return a call nobody has yet, None where there is none now; never called by two threads at once."""

    def call_failed(self, call: Call, error: BaseException, /) -> None:
        """Note that a call could not be made, and why."""

    def finished_late(self) -> None:
        """All calls are made, after the caller had stopped waiting for them; called in the caller's context."""


class Executor(Protocol):
    """
    Makes calls, in the caller's thread or in others.

    `cqrs_sync.testing.contracts.executor` holds one to these promises.
    """

    def run(self, work: Work, /, *, until: float | None = None, helping: bool = True) -> bool:
        """
        Make every call of `work`, each in its own copy of the caller's context.

        True once all are finished, False where they are not `until` (by
        `time.monotonic`): then the rest is made all the same, and `finished_late`
        called. `helping` allows calls in the thread that waits.
        """

    def close(self, timeout: float = 5.0) -> None:
        """Let running calls finish for `timeout` seconds, and let go of the threads."""


class SameThread:
    """Runs calls one after the other in the caller's thread."""

    def run(self, work: Work, /, *, until: float | None = None, helping: bool = True) -> bool:
        """Make every call of `work`, in the order they came."""
        del until, helping
        next_call, groups, thread = work.next_call, running_calls.groups, get_ident()
        is_outermost = thread not in groups
        try:
            if is_outermost:
                groups[thread] = None
            while (call := next_call()) is not None:
                copy_context().run(*call)
        finally:
            if is_outermost:
                groups.pop(thread, None)
        return True

    def close(self, timeout: float = 5.0) -> None:
        """Nothing to let go of."""
