"""What a process does beside its work, now and then."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

import attrs

from cqrs_sync.errors import CqrsError
from cqrs_sync.outbox import Backlog, Outbox
from cqrs_sync.retry import LogThrottle, suppressed_suffix
from cqrs_sync.threads.watchdog import stacks_of
from cqrs_sync.workers.signals import Signals

logger = logging.getLogger(__name__)

#: Seconds until something is tried again that failed.
_AGAIN = 2.0


class Errand:
    """
    Does something again and again in a thread of its own, whatever goes wrong.

    `do` returns the seconds until it is to be done again, None where it is done for good. It may wait for a
    database as long as it likes: nobody waits for it. A database that cannot be reached is left to others to tell of.
    """

    def __init__(self, name: str, do: Callable[[], float | None], release_connection: Callable[[], object]) -> None:
        """Do it, with `release_connection` called in the same thread before long pauses and at the end."""
        self._do = do
        self._let_go = release_connection
        self._seldom = LogThrottle()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread. Raises RuntimeError where the system gives none."""
        self._thread.start()

    def end(self) -> None:
        """Do it no more; what is being done is left alone."""
        self._ended.set()

    def pause(self, seconds: float) -> bool:
        """Wait in between, called by `do`; True where it is to end."""
        return self._ended.wait(seconds)

    def _run(self) -> None:
        pause: float | None = 0.0
        while pause is not None and not self._ended.wait(pause):
            pause = self._once()
        self._let_go()

    def _once(self) -> float | None:
        try:
            pause = self._do()
            if pause is not None and pause > _AGAIN:
                self._let_go()
        except CqrsError as error:
            logger.debug("%s: %s", self._thread.name, error)
        except Exception:
            unsaid = self._seldom.due()
            if unsaid is not None:
                logger.exception("%s failed, and is tried again%s", self._thread.name, suppressed_suffix(unsaid))
        else:
            return pause
        return _AGAIN


#: Seconds that last words may take: who reads them may be gone as well.
_LAST_WORDS = 1.0
#: Seconds between two looks at whether something is done.
_LOOK = 0.05


def leave(status: int, *, words: Callable[[], object] = lambda: None) -> None:
    """End this process now, with a status; nothing is waited for but `words`, and those for a second at most."""
    saying = threading.Thread(target=_say, args=(words,), name="cqrs-last-words", daemon=True)
    with suppress(RuntimeError):
        saying.start()
        saying.join(_LAST_WORDS)
    os._exit(status)


def _say(words: Callable[[], object]) -> None:
    with suppress(Exception):
        words()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()


def done_by(do: Callable[[], object], until: float, signals: Signals, *, words: Callable[[], object]) -> bool:
    """
    Do it in a thread of its own; True where that is done by a moment by `time.monotonic`.

    What is not is left alone. A signal meanwhile is the second one: it ends this process at once, after `words`.
    """
    doing = threading.Thread(target=do, name="cqrs-stop", daemon=True)
    doing.start()
    while doing.is_alive() and time.monotonic() < until:
        number = signals.wait(_LOOK)
        if number is not None:
            leave(128 + number, words=words)
    return not doing.is_alive()


class Deadline:
    """
    The moment by which this process has ended, by `time.monotonic`.

    Until `met` says that everything is done, it ends it there with status 1. After that it does so only
    where the interpreter is leaving and does not come to an end: a thread or a hook of the application's
    keeps it. Then the status is the one that was given.
    """

    def __init__(self, until: float, words: Callable[[], object]) -> None:
        """Call `words` before the process is ended."""
        self._until = until
        self._words = words
        self._status: int | None = None
        self._thread = threading.Thread(target=self._run, name="cqrs-deadline", daemon=True)

    def start(self) -> None:
        """Start to watch. Raises RuntimeError where the system gives no thread."""
        self._thread.start()

    def met(self, status: int) -> None:
        """Everything is done; only leaving is left."""
        self._status = status

    def _run(self) -> None:
        threading.Event().wait(max(0.0, self._until - time.monotonic()))
        if self._status is None:
            leave(1, words=self._words)
        elif not threading.main_thread().is_alive():
            leave(self._status, words=_tell_who_keeps_it)


def _tell_who_keeps_it() -> None:
    names = [thread.name for thread in threading.enumerate() if not thread.daemon and thread.is_alive()]
    main = threading.main_thread()
    # Daemon threads keep nobody: it is a hook, which runs in the main thread, or one of the others.
    stack = stacks_of([main.ident or 0])[main.ident or 0]
    logger.error(
        "everything is settled, but the process does not end: threads that keep it: %s; the main thread is at:\n%s",
        *(", ".join(names) or "none", stack),
    )


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
