"""The executor socket: where event handlers run."""

from __future__ import annotations

from contextvars import copy_context
from threading import get_ident
from typing import Any, Protocol, TypeAlias

from cqrs_sync.threads.running import running_calls

#: A function and its arguments. The function must not raise.
Call: TypeAlias = "tuple[Any, ...]"


class CallSource(Protocol):
    """Calls for an executor. A call may add further calls while it runs."""

    def next_call(self) -> Call | None:
        """Return the next call, or None if there is none now. Two threads never call this at the same time."""

    def call_failed(self, call: Call, error: BaseException, /) -> None:
        """Note that the executor could not make a call, and why."""

    def finished_late(self) -> None:
        """
        Note that all calls have finished after their caller stopped waiting.

        The executor calls this in the caller's context.
        """


class Executor(Protocol):
    """
    Runs calls, in the caller's thread or in others.

    `cqrs_sync.testing.contracts.executor` tests these promises.
    """

    def run(self, source: CallSource, /, *, timeout: float | None = None, may_help: bool = True) -> bool:
        """
        Run every call of `source`, each in its own copy of the caller's context.

        Returns True once all calls have finished. Returns False after `timeout` seconds: the remaining calls run
        all the same, then the executor calls `source.finished_late`. With `may_help` the waiting thread may run
        some of the calls itself.
        """

    def close(self, timeout: float = 5.0) -> None:
        """Wait up to `timeout` seconds for running calls, then give up the threads."""


class SameThread:
    """Runs calls in the caller's thread, one after the other."""

    def run(self, source: CallSource, /, *, timeout: float | None = None, may_help: bool = True) -> bool:
        """Run every call of `source` in order. Ignores the timeout."""
        del timeout, may_help
        next_call, groups, thread = source.next_call, running_calls.groups, get_ident()
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
        """Do nothing: there are no threads."""
