"""A process that relays: until a signal, until its time is over, or until nothing is due."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import attrs

from cqrs_sync.outbox import Outbox
from cqrs_sync.relay import Relay
from cqrs_sync.workers.held import Held
from cqrs_sync.workers.purge import Purging
from cqrs_sync.workers.signals import Signals
from cqrs_sync.workers.stuck import tell_of_what_is_stuck
from cqrs_sync.workers.worker import Deadline, Errand, Gauge, Pace, Progress, Reports, Screen, done_by, leave

logger = logging.getLogger(__name__)

#: Seconds between two looks at whether there is something to show.
_STEP = 0.2
#: Seconds between two looks at whether anything is due, where it ends when nothing is.
_LOOK = 0.1
#: Of the grace, this many seconds at most are kept to name what was not finished.
_MARGIN = 1.0


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
    #: End after so long.
    lasts: float | None = None
    #: Deliver what is due, and end.
    drain: bool = False
    #: Delete delivered messages that are older, now and then.
    purge_after: float | None = None


class RelayProcess:
    """
    Relays in a process of its own; call `run` once, in the main thread.

    At the end what is under way is finished and settled, what waits for a thread is given back. What
    is not finished within the grace is named in the log with its stack, and the process ends all
    the same, with status 1; a second signal ends it at once, with 128 and its number. A
    database or a broker that cannot be reached is waited for.
    """

    def __init__(self, relay: Relay, options: RelayOptions, screen: Screen[Progress]) -> None:
        self._relay = relay
        self._options = options
        self._screen = screen
        # It passes on what it does not note.
        self._held = Held(relay.outbox)
        self._gauge = Gauge(relay.outbox, screen.every)
        self._pace = Pace(screen.every)
        self._reports = Reports(screen, self._progress)
        self._drained = threading.Event()
        self._ending = self._has_ended = False

    def run(self) -> int:
        """
        Relay; return the exit status: 0, or 1 where its time was over and something was still due.

        Raises ConfigurationError for options that cannot be. The process should leave soon after: it is
        ended at the end of the grace where the interpreter does not manage to.
        """
        with Signals() as signals, self._relaying():
            number = self._work(signals)
            return self._end(signals, number)

    @contextmanager
    def _relaying(self) -> Iterator[None]:
        options, outbox = self._options, self._relay.outbox
        self._relay.outbox = cast(Outbox, self._held)
        errands = self._errands()
        try:
            self._relay.start(
                publishers=options.publishers,
                poll=(options.shortest_poll, _STEP if options.drain else options.longest_poll),
                lease=options.lease,
                batch=options.batch,
            )
            logger.info("relaying, with %d publisher(s)", options.publishers)
            for errand in errands:
                errand.start()
            self._reports.start()
            yield
        finally:
            for errand in errands:
                errand.end()
            self._relay.outbox = outbox

    def _errands(self) -> list[Errand]:
        release_connection = self._held.release_connection
        errands = [Errand("cqrs-gauge", self._gauge.look, release_connection)]
        if self._options.drain:
            draining = Errand("cqrs-drain", lambda: self._look_whether_drained(draining.pause), release_connection)
            errands.append(draining)
        elif (messages := self._purging()) is not None:
            purging = Errand("cqrs-purge", lambda: messages.do(purging.pause), release_connection)
            errands.append(purging)
        return errands

    def _work(self, signals: Signals) -> int | None:
        """Wait for a reason to end; return the signal, None where it is another reason."""
        until = None if self._options.lasts is None else time.monotonic() + self._options.lasts
        while not self._drained.is_set():
            left = _STEP if until is None else until - time.monotonic()
            if left <= 0:
                break
            number = signals.wait(min(left, _STEP))
            if number is not None:
                return number
        return None

    def _end(self, signals: Signals, number: int | None) -> int:
        grace, under_way = self._options.grace, len(self._held.under_way())
        logger.info("%s: ending within %g s, %d deliveries are under way", self._reason(number), grace, under_way)
        self._ending = True
        begun = time.monotonic()
        until = begun + grace
        deadline = Deadline(max(until, begun + _MARGIN), self._last_words)
        deadline.start()
        if not self._stopped(signals, until):
            leave(1, words=self._last_words)
        status = 1 if self._options.drain and number is None and not self._drained.is_set() else 0
        if status:
            logger.error("%g s are over, and something is still due", self._options.lasts)
        self._count(until)
        self._has_ended = True
        self._reports.finish(max(until, begun + _MARGIN) - _MARGIN / 8 - time.monotonic())
        self._screen.close()
        progress = self._progress()
        logger.info("ended: %d delivered in %.1f s", progress.delivered, progress.seconds)
        deadline.met(status)
        return status

    def _reason(self, number: int | None) -> str:
        if number is not None:
            return signal.Signals(number).name
        return "nothing is due" if self._drained.is_set() else f"{self._options.lasts:g} s are over"

    def _stopped(self, signals: Signals, until: float) -> bool:
        """Stop the relay; False where something was not finished. A signal ends the process."""
        timeout = until - time.monotonic() - min(_MARGIN, self._options.grace / 2)
        # A thread that asks a database that does not answer holds nothing, and is left.
        done_by(lambda: self._relay.close(timeout), until - _MARGIN / 4, signals, words=self._cut_short)
        return not self._held.under_way()

    def _count(self, until: float) -> None:
        """Count what is left; it counts as unknown where that takes too long."""
        counting = threading.Thread(target=self._gauge.try_to_look, name="cqrs-count", daemon=True)
        counting.start()
        counting.join(max(0.0, min(_MARGIN, until - time.monotonic()) - _MARGIN / 8))
        if counting.is_alive():
            self._gauge.backlog = None

    def _progress(self) -> Progress:
        progress = self._pace.progress(self._relay.delivered, self._gauge.backlog)
        return attrs.evolve(progress, is_ending=self._ending, has_ended=self._has_ended)

    def _cut_short(self) -> None:
        self._screen.close()
        words = "a second signal: ended at once, %d deliveries are left under way; another process makes them again"
        logger.warning(words, len(self._held.under_way()))

    def _last_words(self) -> None:
        self._screen.close()
        tell_of_what_is_stuck(self._held)

    def _look_whether_drained(self, pause: Callable[[float], bool]) -> float | None:
        before = self._held.at_rest()
        due = self._relay.next_due()
        if before is None or before != self._held.at_rest() or due == 0:
            return _LOOK
        if (messages := self._purging()) is not None:
            messages.do(pause)
        self._drained.set()
        return None

    def _purging(self) -> Purging | None:
        after = self._options.purge_after
        return None if after is None else Purging(self._relay.outbox, after, "delivered message")
