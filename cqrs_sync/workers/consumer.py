"""A process that consumes: until a signal, until its time is over, or until it is to be replaced."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs

from cqrs_sync.consumer import Consumer
from cqrs_sync.errors import ConfigurationError
from cqrs_sync.messages import publication_of
from cqrs_sync.workers.health import HealthFile, HealthPort
from cqrs_sync.workers.overdue import Overdue
from cqrs_sync.workers.purge import purging_receipts
from cqrs_sync.workers.signals import Signals
from cqrs_sync.workers.silence import Silence
from cqrs_sync.workers.vitals import Lookout, Vitals, tell_of_what_runs
from cqrs_sync.workers.worker import Deadline, Errand, Pace, Reports, Screen, done_by, leave

logger = logging.getLogger(__name__)

#: Seconds between two looks at whether there is a reason to end.
_STEP = 0.2
#: Of the grace, this many seconds at most are kept to close the mediator, and to name what was not finished.
_MARGIN = 1.0
#: Seconds that a consumer which is stuck is given to finish what is not.
_STUCK_GRACE = 3.0


@attrs.frozen
class ConsumeOptions:
    """How a consuming process works; durations are seconds."""

    #: What is under way when it is told to stop may take so long.
    grace: float = 25.0
    #: End after so long, after so many messages, and where this process takes so many bytes of memory.
    lasts: float | None = None
    max_messages: int | None = None
    max_memory: int | None = None
    #: What makes no progress for so long is stuck.
    stall: float = 300.0
    health_file: Path | None = None
    health_host: str = "127.0.0.1"
    health_port: int | None = None
    #: Forget receipts of the inbox that are older, now and then.
    purge_after: float | None = None


@attrs.frozen
class Consuming:
    """How far a consuming process is."""

    vitals: Vitals
    #: Messages that were settled, over the last seconds.
    per_second: float
    #: Since it began.
    seconds: float


@attrs.frozen
class _Reason:
    """Why it ends."""

    words: str
    status: int = 0
    is_stuck: bool = False


class ConsumerProcess:
    """
    Consumes in a process of its own; call `run` once, in the main thread.

    At the end what runs is finished and settled, the rest given back, and the mediator closed. A handler that is
    not finished within the grace is named in the log with its stack, and the process ends all the same, with
    status 1; a second signal ends it at once, with 128 and its number. A consumer that is stuck is
    told of in the same way, and ends with 1. A broker that cannot be reached is waited for.
    """

    def __init__(self, consumer: Consumer, options: ConsumeOptions, screen: Screen[Consuming]) -> None:
        self._consumer = consumer
        self._options = options
        self._screen = screen
        self._overdue = Overdue(consumer, options.stall)
        self._lookout = Lookout(consumer, options.stall, lambda: self._overdue.trouble)
        self._pace = Pace(screen.every)
        self._reports = Reports(screen, self._progress)
        self._file = None if options.health_file is None else HealthFile(options.health_file, self._lookout.look)
        self._is_finished = self._has_told = False

    def run(self) -> int:
        """
        Consume; return the exit status: 0, 1 where it was stuck, 2 where the broker refuses what the group needs.

        Raises ConfigurationError for options that cannot be. The process should leave soon after: it is
        ended at the end of the grace where the interpreter does not manage to.
        """
        with Signals() as signals, self._consuming():
            reason = self._work(signals)
            return self._end(signals, reason)

    @contextmanager
    def _consuming(self) -> Iterator[None]:
        options, consumer = self._options, self._consumer
        if options.max_memory is not None:
            # Here it says whether it can be told at all.
            _check_room(resident(), options.max_memory)
        with ExitStack() as ending:
            if options.health_port is not None:
                port = HealthPort(options.health_host, options.health_port, self._lookout.look)
                ending.callback(port.end)
                port.start()
                logger.info("health: %s/live and /ready", port.url)
            if self._file is not None:
                ending.callback(self._file.end)
                self._file.start()
            if options.purge_after is not None:
                receipts = purging_receipts(consumer.mediator, options.purge_after, consumer.group.delays)
                purging = Errand("cqrs-purge", lambda: receipts.do(purging.pause), receipts.release_connection)
                ending.callback(purging.end)
                purging.start()
            looks = {"cqrs-silence": Silence(consumer, options.stall).look, "cqrs-overdue": self._overdue.look}
            errands = [Errand(name, look, lambda: None) for name, look in looks.items()]
            _receive(consumer)
            for errand in errands:
                ending.callback(errand.end)
                errand.start()
            self._reports.start()
            yield

    def _work(self, signals: Signals) -> _Reason:
        """Wait for a reason to end."""
        begun = time.monotonic()
        until = None if self._options.lasts is None else begun + self._options.lasts
        while (reason := self._reason(until)) is None:
            number = signals.wait(_STEP if until is None else max(0.0, min(_STEP, until - time.monotonic())))
            if number is not None:
                return _Reason(signal.Signals(number).name)
        return reason

    def _reason(self, until: float | None) -> _Reason | None:
        options = self._options
        if self._consumer.fatal_error is not None:
            # Whoever receives has said why.
            return _Reason("it cannot go on", status=2)
        health = self._consumer.health(options.stall)
        if not health.is_alive:
            return _Reason(f"it is stuck: {health.trouble}", status=1, is_stuck=True)
        if until is not None and time.monotonic() >= until:
            return _Reason(f"{options.lasts:g} s are over")
        settled = self._consumer.counts.settled
        if options.max_messages is not None and settled >= options.max_messages:
            return _Reason(f"{settled} messages are enough")
        if options.max_memory is not None and (taken := resident()) >= options.max_memory:
            return _Reason(f"it takes {taken / 2**20:.0f} MiB of memory")
        return None

    def _end(self, signals: Signals, reason: _Reason) -> int:
        grace = min(self._options.grace, _STUCK_GRACE) if reason.is_stuck else self._options.grace
        self._lookout.is_ending = True
        begun = time.monotonic()
        # What never waits takes a moment as well.
        until = begun + max(grace, _MARGIN)
        deadline = Deadline(until, self._last_words)
        deadline.start()
        logger.log(
            logging.ERROR if reason.is_stuck else logging.INFO,
            "%s: ending within %g s, %d handler(s) run",
            *(reason.words, grace, len(self._consumer.running())),
        )
        if reason.is_stuck:
            self._tell()
        is_closed = done_by(lambda: self._stop(begun + grace), until - _MARGIN / 4, signals, words=self._cut_short)
        if not self._is_finished:
            leave(reason.status or 1, words=self._last_words)
        if not is_closed:
            logger.warning("all messages are settled, but the mediator could not be closed within the grace")
        self._lookout.has_ended = True
        self._reports.finish(until - _MARGIN / 8 - time.monotonic())
        self._screen.close()
        logger.info("ended: %d handled in %.1f s", self._consumer.counts.handled, self._progress().seconds)
        deadline.met(reason.status)
        return reason.status

    def _stop(self, until: float) -> None:
        margin = min(_MARGIN, (until - time.monotonic()) / 2)
        self._is_finished = self._consumer.close(max(0.0, until - margin - time.monotonic()))
        if self._is_finished:
            self._consumer.mediator.close(max(0.1, until - margin / 2 - time.monotonic()))

    def _progress(self) -> Consuming:
        return Consuming(self._lookout.look(), *self._pace.at(self._consumer.counts.settled))

    def _last_words(self) -> None:
        self._goodbye()
        self._tell()

    def _cut_short(self) -> None:
        self._goodbye()
        words = "a second signal: ended at once, %d handler(s) are left running; what they have in hand comes again"
        logger.warning(words, len(self._consumer.running()))

    def _goodbye(self) -> None:
        if self._file is not None:
            self._file.end()
        self._screen.close()

    def _tell(self) -> None:
        if not self._has_told:
            self._has_told = True
            tell_of_what_runs(self._consumer, self._options.stall)


def _receive(consumer: Consumer) -> None:
    consumer.start()
    logger.info("consuming %s for the group %r", ", ".join(consumer.group.topics), consumer.group.name)
    _warn_of_topics_without_events(consumer)


def _warn_of_topics_without_events(consumer: Consumer) -> None:
    """Name topics of the group that no bound event has: one of them may be misspelled, or lack an import."""
    types = consumer.mediator.wiring.event_map.types.values()
    known = sorted({topic for event in types if (topic := publication_of(event).topic)})
    for topic in consumer.group.topics:
        if topic not in known:
            logger.warning(
                "no event that is bound here has the topic %r (theirs: %s): the group is bound to it on the broker all "
                "the same, and handles only what comes from there under the name of an event that is bound",
                *(topic, ", ".join(map(repr, known)) or "none"),
            )


def _check_room(taken: int, most: int) -> None:
    """Raise ConfigurationError where a process would end before its first message, over and over again."""
    if taken >= most:
        words = f"takes {taken / 2**20:.0f} MiB before it receives anything, and is to end at {most / 2**20:.0f} MiB"
        raise ConfigurationError(f"this process {words}: --max-memory has to be larger by what handlers take")


_STATM = Path("/proc/self/statm")


def resident() -> int:
    """
    Return the bytes of memory that this process occupies; where the system tells no more, the most it ever did.

    Raises ConfigurationError where the system tells nothing.
    """
    try:
        return int(_STATM.read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return _peak()


def _peak() -> int:
    try:
        import resource  # noqa: PLC0415 -- not every system has it
    except ImportError as error:
        raise ConfigurationError("this system does not tell how much memory a process takes") from error
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
