"""Tell of handlers that run for too long while others make progress."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from cqrs_sync.consumer import Consumer, InFlightMessage, StallDetector
from cqrs_sync.threads.running import running_calls
from cqrs_sync.threads.watchdog import stacks_of
from cqrs_sync.workers.vitals import running_of

logger = logging.getLogger(__name__)

#: Seconds between two looks.
_EVERY = 0.5


class Overdue:
    """
    Names messages that are handled for more than `stall` seconds, with the stack of their thread.

    Each is named once, and again each time it has taken twice as long. Where nothing is finished at all the
    process is stuck, and says so itself.
    """

    def __init__(self, consumer: Consumer, stall: float) -> None:
        self._consumer = consumer
        self._stall = stall
        self._watches: dict[InFlightMessage, _Watch] = {}
        #: What is wrong, as of the last look; empty where nothing is.
        self.trouble = ""

    def look(self) -> float:
        """Look once; returns the seconds until the next look."""
        running = self._consumer.running()
        # Before their time is taken: where none of them is ever finished, the process is stuck first.
        is_alive = self._consumer.health(self._stall).is_alive
        watches = self._watches = {item: self._watches.get(item) or _Watch(self._stall) for item in running}
        late = [item for item, watch in watches.items() if watch.look(item.begun)]
        self.trouble = f"{len(late)} handler(s) run for more than {self._stall:g} s" if late else ""
        due = [item for item in late if watches[item].is_due]
        if due and is_alive:
            for item in due:
                watches[item].was_told()
            self._tell(due)
        return _EVERY

    def _tell(self, due: Sequence[InFlightMessage]) -> None:
        begun = {item: (item.thread, item.begun) for item in due}
        for item, (thread, since) in begun.items():
            if thread is None:
                continue
            # Its own thread first, then those in which the handlers of its events run.
            stacks = stacks_of([thread, *running_calls.helpers_of(thread)])
            if (item.thread, item.begun) != (thread, since):
                # It was finished a moment ago: its thread is somewhere else.
                continue
            told = running_of(self._consumer, item)
            logger.warning(
                "%s runs for %.0f s: %r %r; what has its key waits, others go on; it is at:\n%s",
                *(", ".join(told.handlers) or "a message", told.seconds, told.type, told.id),
                "and a handler that it waits for is at:\n".join(stacks.values()),
            )


class _Watch:
    """For how long a message is handled, and what was told of that."""

    def __init__(self, stall: float) -> None:
        self._stall = self._next = stall
        self._standstill = StallDetector()
        self._seconds = 0.0

    @property
    def is_due(self) -> bool:
        """Whether it is to be told of now."""
        return self._seconds > self._next

    def look(self, begun: float) -> bool:
        """Look once; True where it takes too long."""
        self._seconds = self._standstill.look(begun, self._stall)
        if self._seconds <= self._stall:
            # It is another attempt.
            self._next = self._stall
        return self._seconds > self._stall

    def was_told(self) -> None:
        """Let it be told of again when it has taken twice as long."""
        self._next = 2 * self._seconds
