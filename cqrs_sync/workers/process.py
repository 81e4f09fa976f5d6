"""A process that relays until it is told to stop: signals, a grace, and an end in time."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import attrs

from cqrs_sync.errors import CqrsError
from cqrs_sync.relay import Relay
from cqrs_sync.watchdog import stacks_of

logger = logging.getLogger(__name__)

#: Seconds between two looks at whether there is something to do besides.
_STEP = 0.2
#: Messages that are purged at a time.
_CHUNK = 1000
#: Seconds between two purges.
_PURGED_EVERY = 60.0


@attrs.frozen
class RelayOptions:
    """How a relay process works; durations are seconds."""

    publishers: int = 2
    shortest_poll: float = 0.05
    longest_poll: float = 4.0
    lease: float = 30.0
    batch: int = 500
    #: What is under way when it is told to stop may take so long.
    grace: float = 25.0
    #: Deliver what is due, and end.
    drain: bool = False
    #: Delete delivered messages that are older, now and then.
    purge_after: float | None = None


class RelayProcess:
    """
    Relays until SIGTERM or SIGINT, or until nothing is due.

    Signal handlers only set a flag. What is under way at the end is finished and settled; what waits for
    a thread is given back. A handler that is not finished within the grace is named in the log with
    its stack, and the process ends all the same. A second signal ends it at once.
    """

    def __init__(self, relay: Relay, options: RelayOptions, report: Callable[[Relay, bool], object]) -> None:
        """Call `report` with the relay now and then, and with True at the end."""
        self._relay = relay
        self._options = options
        self._report = report
        self._stop = threading.Event()
        self._signals = 0
        self._purged = 0.0

    def run(self) -> int:
        """Relay; return the exit status: 0, or 1 where a handler had to be left."""
        options = self._options
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._relay.start(
                publishers=options.publishers,
                poll=(options.shortest_poll, options.longest_poll),
                lease=options.lease,
                batch=options.batch,
            )
            # In steps: a signal that another thread gets wakes nobody, and is seen at the next one.
            while not self._stop.wait(_STEP):
                self._report(self._relay, False)
                self._purge()
                if options.drain and self._is_drained():
                    break
            return self._end()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._signals += 1
        self._stop.set()
        if self._signals > 1:
            os._exit(128 + number)

    def _end(self) -> int:
        ended = self._relay.stop(self._options.grace)
        self._report(self._relay, True)
        if ended and not self._relay.running:
            return 0
        frames: Any = {thread.ident: thread.name for thread in threading.enumerate() if thread.name.startswith("cqrs")}
        for thread, stack in stacks_of(frames).items():
            logger.error("%s was not finished within the grace, and is left, at:\n%s", frames[thread], stack)
        return 1

    def _is_drained(self) -> bool:
        try:
            due = self._relay.next_due()
        except CqrsError:
            return False
        return due is None or due > 0

    def _purge(self) -> None:
        if self._options.purge_after is None or time.monotonic() - self._purged < _PURGED_EVERY:
            return
        self._purged = time.monotonic()
        try:
            while self._relay.outbox.purge(self._options.purge_after, limit=_CHUNK) == _CHUNK:
                if self._stop.is_set():
                    return
        except CqrsError as error:
            logger.warning("delivered messages could not be purged: %s", error)


def leave(status: int) -> None:
    """End the process with this status, also where a handler never returns."""
    sys.stdout.flush()
    sys.stderr.flush()
    logging.shutdown()
    os._exit(status)
