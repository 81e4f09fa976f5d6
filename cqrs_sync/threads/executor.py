"""The executor socket: where event handlers run, and which threads run and wait for calls at this moment."""

from __future__ import annotations

import threading
from contextvars import copy_context
from threading import get_ident
from typing import Any, Final, Protocol, TypeAlias

from cqrs_sync.lifecycle import reset_in_child


class AwaitedCalls(Protocol):
    """Calls that a thread waits for."""

    @property
    def caller(self) -> int | None:
        """The thread that waits; None once it has stopped waiting."""


class RunningCalls:
    """
    Knows which threads run calls of a `ThreadPool` or of `SameThread` at this moment.

    A thread is named by its `threading.get_ident()`. The executors write `groups` themselves, which costs some
    tens of nanoseconds a call. Calls of other executors are not known here.
    """

    def __init__(self) -> None:
        #: For each thread, the group of the outermost call it runs; None if `SameThread` runs the call.
        self.groups: dict[int, AwaitedCalls | None] = {}

    def threads(self) -> set[int]:
        """Return the threads that run a call now."""
        return set(self.groups)

    def helpers_of(self, thread: int) -> set[int]:
        """Return the threads that run calls this thread waits for, and the threads that those wait for in turn."""
        callers = {each: group.caller for each, group in self.groups.copy().items() if group is not None}
        found, added = {thread}, {thread}
        while added:
            added = {each for each, caller in callers.items() if caller in added} - found
            found |= added
        return found - {thread}

    def reset_in_child(self) -> None:
        """Forget the threads of the parent. The thread that forked still runs its call."""
        own = threading.get_ident()
        for thread in [each for each in self.groups if each != own]:
            del self.groups[thread]


#: One for the process.
running_calls: Final = RunningCalls()
reset_in_child(running_calls)


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
