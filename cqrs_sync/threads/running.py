"""Which threads run calls of executors at this moment, and which thread waits for each call."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from cqrs_sync.lifecycle import reset_in_child

if TYPE_CHECKING:
    from cqrs_sync.threads.pool import CallGroup


class RunningCalls:
    """
    Knows which threads run calls of a `ThreadPool` or of `SameThread` at this moment.

    A thread is named by its `threading.get_ident()`. The executors write `groups` themselves, which costs some
    tens of nanoseconds a call. Calls of other executors are not known here.
    """

    def __init__(self) -> None:
        #: For each thread, the group of the outermost call it runs; None if `SameThread` runs the call.
        self.groups: dict[int, CallGroup | None] = {}

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
