"""How far a process is, for those who watch it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

import attrs

from cqrs_sync.errors import CqrsError
from cqrs_sync.outbox import Backlog, Outbox

logger = logging.getLogger(__name__)

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


P = TypeVar("P")
P_contra = TypeVar("P_contra", contravariant=True)


class Screen(Protocol[P_contra]):
    """Shows how far a process is."""

    @property
    def every(self) -> float:
        """Seconds between two reports."""

    def show(self, progress: P_contra, /) -> None:
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
        self._outbox.release_connection()


class Pace:
    """Deliveries per second, over a while."""

    def __init__(self, every: float) -> None:
        self._window = max(every, _WINDOW)
        self._begun = time.monotonic()
        self._samples: deque[tuple[float, int]] = deque([(self._begun, 0)])

    def progress(self, delivered: int, backlog: Backlog | None) -> Progress:
        """Tell how far it is."""
        rate, seconds = self.at(delivered)
        return Progress(delivered, rate, seconds, backlog)

    def at(self, count: int) -> tuple[float, float]:
        """Take note of a count; returns how many a second that are, and the seconds since the beginning."""
        now = time.monotonic()
        self._samples.append((now, count))
        while len(self._samples) > 2 and now - self._samples[1][0] >= self._window:
            self._samples.popleft()
        then, before = self._samples[0]
        return (count - before) / max(now - then, 0.001), now - self._begun


class Reports(Generic[P]):
    """
    Shows how far a process is, again and again, in a thread of its own.

    Whoever reads may take nothing for hours: nobody waits for that.
    """

    def __init__(self, screen: Screen[P], look: Callable[[], P]) -> None:
        """Show what `look` returns."""
        self._screen = screen
        self._look = look
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cqrs-reports", daemon=True)

    def start(self) -> None:
        """Show it from now on. Raises RuntimeError where the system gives no thread."""
        self._thread.start()

    def finish(self, timeout: float) -> None:
        """Show it for the last time; waits `timeout` seconds for that."""
        self._ended.set()
        self._thread.join(max(0.0, timeout))

    def _run(self) -> None:
        try:
            while not self._ended.is_set():
                self._screen.show(self._look())
                self._ended.wait(self._screen.every)
            self._screen.show(self._look())
        except (OSError, ValueError) as error:
            # Who has watched is gone, which is no reason to do nothing more.
            logger.warning("reports can be written no more: %s", error)
        except Exception:
            logger.exception("reports are written no more")
