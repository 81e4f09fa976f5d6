"""How far a relay process is, for those who watch it."""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from typing import Protocol

import attrs

from cqrs_sync.errors import CqrsError
from cqrs_sync.outbox import Backlog, Outbox

#: Seconds between two looks at the backlog, at least and at most.
_OFTEN, _SELDOM = 5.0, 20.0
#: Counting takes this share of the time at most: it reads the whole table of deliveries.
_SHARE = 0.05
#: Seconds over which deliveries per second are told, at least.
_WINDOW = 5.0


@attrs.frozen
class Progress:
    """How far a relay process is."""

    delivered: int
    #: Over the last seconds, or since the last report where that is longer ago.
    per_second: float
    #: Since the process began to relay.
    seconds: float
    #: None where it could not be counted.
    backlog: Backlog | None
    #: It was told to end, and finishes what is under way.
    is_ending: bool = False
    #: It has ended: nothing more is delivered here.
    has_ended: bool = False


class Screen(Protocol):
    """Shows how far a relay process is."""

    @property
    def every(self) -> float:
        """Seconds between two reports."""

    def show(self, progress: Progress, /) -> None:
        """Show it; called by one thread."""

    def close(self) -> None:
        """Leave the terminal as it was; may be called twice, and by any thread."""


class Gauge:
    """Counts what is not delivered, as often as that is cheap."""

    def __init__(self, outbox: Outbox, every: float) -> None:
        self._outbox = outbox
        self._every = min(max(every, _OFTEN), _SELDOM)
        #: What was counted last; None where that failed.
        self.backlog: Backlog | None = None

    def look(self) -> float:
        """Count; returns the seconds until it is worth doing again."""
        begun = time.monotonic()
        try:
            self.backlog = self._outbox.backlog()
        except BaseException:
            self.backlog = None
            raise
        return max(self._every, (time.monotonic() - begun) / _SHARE)

    def try_to_look(self) -> None:
        """Count once more, if that can be done."""
        with suppress(CqrsError):
            self.look()
        self._outbox.let_go()


class Pace:
    """Deliveries per second, over a while."""

    def __init__(self, every: float) -> None:
        self._window = max(every, _WINDOW)
        self._begun = time.monotonic()
        self._samples: deque[tuple[float, int]] = deque([(self._begun, 0)])

    def progress(self, delivered: int, backlog: Backlog | None) -> Progress:
        """Tell how far it is."""
        now = time.monotonic()
        self._samples.append((now, delivered))
        while len(self._samples) > 2 and now - self._samples[1][0] >= self._window:
            self._samples.popleft()
        then, before = self._samples[0]
        rate = (delivered - before) / max(now - then, 0.001)
        return Progress(delivered, rate, now - self._begun, backlog)
