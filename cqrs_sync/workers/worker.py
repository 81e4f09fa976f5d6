"""The base of long-lived processes: signals, grace, a hard exit, periodic tasks, and reports of progress."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import attrs

from cqrs_sync.errors import CqrsError
from cqrs_sync.retry import LogThrottle
from cqrs_sync.threads.executor import running_calls
from cqrs_sync.threads.watchdog import stacks_of

logger: logging.Logger = logging.getLogger(__name__)

P = TypeVar("P")
P_contra = TypeVar("P_contra", contravariant=True)

#: Seconds between two looks for a reason to stop, and for whether the stop is done.
_STEP, _STOP_STEP = 0.2, 0.05
#: Of the grace, this many seconds at most are kept to close the rest and to log what was not finished.
MARGIN = 1.0
#: Seconds that a worker that is stuck has to finish what is not.
_STUCK_GRACE = 3.0
#: Seconds that the last log lines may take: their reader may be gone.
_LAST_WORDS = 1.0
#: Seconds until a periodic task that failed runs again.
_RETRY = 2.0
#: Seconds over which a rate is measured, at least.
_WINDOW = 5.0


@attrs.frozen
class WorkerOptions:
    """How a worker runs; durations are seconds."""

    #: What is in flight when it is told to stop may take so long.
    grace: float = 25.0
    #: Stop after this time.
    max_runtime: float | None = None
    #: Delete delivered messages or receipts that are older, about every minute.
    purge_after: float | None = None


@attrs.frozen
class StopReason:
    """Why a worker stops, and its exit status if everything is finished."""

    text: str
    status: int = 0
    is_signal: bool = False
    is_stuck: bool = False


class Display(Protocol[P_contra]):
    """Shows the progress of a worker."""

    @property
    def every(self) -> float:
        """Seconds between two reports."""

    def show(self, progress: P_contra, /) -> None:
        """Show it; called by one thread."""

    def close(self) -> None:
        """Leave the terminal as it was. Any thread may call it, more than once."""


class Worker(ABC, Generic[P]):
    """
    A process that works until a signal, until its time is over, or until it has a reason of its own.

    Call `run` once, in the main thread. After SIGTERM or SIGINT the worker finishes and settles what is in flight, and
    gives back the rest. If something is not finished within the grace, it logs what, with its stack, and exits with
    status 1. A second signal ends the process at once, with status 128 plus the signal's number.
    """

    #: What happens to work that is left in flight.
    after_exit: ClassVar[str]

    def __init__(self, options: WorkerOptions, display: Display[P]) -> None:
        self._options = options
        self._display = display
        self._meter = RateMeter(display.every)
        self._reporter = ProgressReporter(display, self._progress)
        self._is_stopping = self._has_stopped = self._has_logged_unfinished = False

    def run(self) -> int:
        """
        Work; return the exit status.

        Raises ConfigurationError for invalid options. The process should exit soon after this returns: at the end of
        the grace it is ended, if the interpreter does not exit by itself.
        """
        with Signals() as signals, ExitStack() as resources:
            for task in self._start(resources):
                resources.callback(task.close)
                task.start()
            self._reporter.start()
            reason = self._wait(signals)
            return self._stop(signals, reason)

    @abstractmethod
    def _start(self, resources: ExitStack) -> list[PeriodicTask]:
        """Start the work, and return tasks to start after it; what is added to `resources` is closed at the end."""

    @abstractmethod
    def _reason_to_stop(self) -> StopReason | None:
        """Return a reason to stop now, None if there is none."""

    @abstractmethod
    def _close(self, timeout: float) -> None:
        """Finish and settle what is in flight and give back the rest, within `timeout` seconds."""

    @abstractmethod
    def _is_settled(self) -> bool:
        """Tell whether nothing is in flight any more."""

    @abstractmethod
    def _in_flight(self) -> str:
        """Describe what is in flight, for the log."""

    @abstractmethod
    def _log_unfinished(self) -> None:
        """Log what is in flight, with the stacks of its threads."""

    @abstractmethod
    def _finish(self, reason: StopReason, *, is_closed: bool, timeout: float) -> int:
        """Do what is left to do, within `timeout` seconds, once everything is settled; return the exit status."""

    @abstractmethod
    def _progress(self) -> P:
        """Return how far the worker is."""

    @abstractmethod
    def _done(self) -> str:
        """Describe what the worker has done, for its last log line."""

    def _abandon(self) -> None:
        """Undo what others see of this process, before it is ended."""
        self._display.close()

    def _wait(self, signals: Signals) -> StopReason:
        """Wait for a reason to stop."""
        runtime = self._options.max_runtime
        until = None if runtime is None else time.monotonic() + runtime
        while (reason := self._reason_to_stop()) is None:
            left = _STEP if until is None else min(_STEP, until - time.monotonic())
            if left <= 0:
                return StopReason(f"{runtime:g} s are over")
            number = signals.wait(left)
            if number is not None:
                return StopReason(signal.Signals(number).name, is_signal=True)
        return reason

    def _stop(self, signals: Signals, reason: StopReason) -> int:
        grace = self._options.grace
        if reason.is_stuck:
            grace = min(grace, _STUCK_GRACE)
        # Even a stop that waits for nothing takes a moment.
        until = time.monotonic() + max(grace, MARGIN)
        self._is_stopping = True
        deadline = ExitDeadline(max(grace, MARGIN), self._last_words)
        deadline.start()
        level = logging.ERROR if reason.is_stuck else logging.INFO
        logger.log(level, "%s: stopping within %g s, %s", reason.text, grace, self._in_flight())
        if reason.is_stuck:
            self._log_unfinished_once()
        is_closed = run_until_done(
            lambda: self._close(grace), until - MARGIN / 4 - time.monotonic(), signals, self._on_second_signal
        )
        if not self._is_settled():
            force_exit(reason.status or 1, self._last_words)
        status = self._finish(reason, is_closed=is_closed, timeout=until - MARGIN / 8 - time.monotonic())
        self._has_stopped = True
        self._reporter.close(until - MARGIN / 8 - time.monotonic())
        self._display.close()
        logger.info("stopped: %s in %.1f s", self._done(), self._meter.seconds)
        deadline.allow_exit(status)
        return status

    def _on_second_signal(self) -> None:
        self._abandon()
        logger.warning("second signal: exiting at once, %s; %s", self._in_flight(), self.after_exit)

    def _last_words(self) -> None:
        self._abandon()
        self._log_unfinished_once()

    def _log_unfinished_once(self) -> None:
        if not self._has_logged_unfinished:
            self._has_logged_unfinished = True
            self._log_unfinished()


class PeriodicTask:
    """
    Runs an action again and again in a daemon thread, whatever goes wrong.

    The action returns the seconds until its next run, None if it is done. It may wait for a database as long as it
    likes: nothing waits for it. Other parts of a worker report that a database cannot be reached.
    """

    def __init__(
        self, name: str, action: Callable[[], float | None], release_connection: Callable[[], object] = lambda: None
    ) -> None:
        """Call `release_connection` in the same thread before long pauses and at the end."""
        self._action = action
        self._release_connection = release_connection
        self._throttle = LogThrottle()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread. Raises RuntimeError if the system has none left."""
        self._thread.start()

    def close(self) -> None:
        """Do not run the action again; a run that has begun is not waited for."""
        self._closed.set()

    def pause(self, seconds: float) -> bool:
        """Wait within the action; True if the task was closed."""
        return self._closed.wait(seconds)

    def _run(self) -> None:
        pause: float | None = 0.0
        while pause is not None and not self._closed.wait(pause):
            pause = self._run_once()
        self._release_connection()

    def _run_once(self) -> float | None:
        try:
            pause = self._action()
            if pause is not None and pause > _RETRY:
                self._release_connection()
        except CqrsError as error:
            logger.debug("%s: %s", self._thread.name, error)
        except Exception:
            suffix = self._throttle.due()
            if suffix is not None:
                logger.exception("periodic task %s failed, retrying in %g s%s", self._thread.name, _RETRY, suffix)
        else:
            return pause
        return _RETRY


class RateMeter:
    """Counts per second, over the last seconds."""

    def __init__(self, every: float) -> None:
        """Measure over a window that is not shorter than `every` seconds, the pause between two reports."""
        self._window = max(every, _WINDOW)
        self._begun = time.monotonic()
        self._samples: deque[tuple[float, int]] = deque([(self._begun, 0)])

    @property
    def seconds(self) -> float:
        """Seconds since the meter was made."""
        return time.monotonic() - self._begun

    def rate(self, count: int) -> float:
        """Note a count; return how much it grew per second."""
        now = time.monotonic()
        self._samples.append((now, count))
        while len(self._samples) > 2 and now - self._samples[1][0] >= self._window:
            self._samples.popleft()
        then, before = self._samples[0]
        return (count - before) / max(now - then, 0.001)


class ProgressReporter(Generic[P]):
    """
    Shows the progress of a worker every few seconds, in a daemon thread.

    Its reader may block it for hours: nothing waits for that.
    """

    def __init__(self, display: Display[P], progress: Callable[[], P]) -> None:
        self._display = display
        self._progress = progress
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cqrs-reports", daemon=True)

    def start(self) -> None:
        """Show it from now on. Raises RuntimeError if the system has no thread left."""
        self._thread.start()

    def close(self, timeout: float) -> None:
        """Show it once more, and wait at most `timeout` seconds for that."""
        self._closed.set()
        self._thread.join(max(0.0, timeout))

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                self._display.show(self._progress())
                self._closed.wait(self._display.every)
            self._display.show(self._progress())
        except (OSError, ValueError) as error:
            # The reader is gone. The work continues without it.
            logger.warning("no more reports, their reader is gone: %s", error)
        except Exception:
            logger.exception("no more reports, one of them failed")


def run_until_done(
    action: Callable[[], object], timeout: float, signals: Signals, on_signal: Callable[[], object]
) -> bool:
    """
    Run an action in a daemon thread; True if it is done within `timeout` seconds. Otherwise it is left alone.

    A signal meanwhile ends this process at once, after `on_signal`.
    """
    until = time.monotonic() + timeout
    thread = threading.Thread(target=action, name="cqrs-stop", daemon=True)
    thread.start()
    while thread.is_alive() and time.monotonic() < until:
        number = signals.wait(_STOP_STEP)
        if number is not None:
            force_exit(128 + number, on_signal)
    return not thread.is_alive()


def force_exit(status: int, before_exit: Callable[[], object] = lambda: None) -> None:
    """End this process now. It waits only for `before_exit`, and for that a second at most."""
    thread = threading.Thread(target=_flush_after, args=(before_exit,), name="cqrs-last-words", daemon=True)
    with suppress(RuntimeError):
        thread.start()
        thread.join(_LAST_WORDS)
    os._exit(status)


def _flush_after(action: Callable[[], object]) -> None:
    with suppress(Exception):
        action()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()


class ExitDeadline:
    """
    Watchdog threads: `os._exit` if the process outlives its grace, `timeout` seconds after it was made.

    Until `allow_exit` is called it exits with status 1. After that it only ends a process whose interpreter is exiting
    and does not come to an end, because a thread or an exit hook of the application blocks it: with the status that
    `allow_exit` was given.
    """

    def __init__(self, timeout: float, before_exit: Callable[[], object]) -> None:
        """Call `before_exit` before it exits with status 1."""
        self._until = time.monotonic() + timeout
        self._before_exit = before_exit
        self._status: int | None = None
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=target, name="cqrs-deadline", daemon=True)
            for target in (self._run, self._make_sure)
        ]

    def start(self) -> None:
        """Start to watch. Raises RuntimeError if the system has no thread left."""
        # Both now: Python 3.12 starts no thread any more once the interpreter exits.
        for thread in self._threads:
            thread.start()

    def allow_exit(self, status: int) -> None:
        """Note that everything is done, and that the process should exit with this status."""
        self._status = status

    def _run(self) -> None:
        threading.Event().wait(max(0.0, self._until - time.monotonic()))
        if self._status is None or not threading.main_thread().is_alive():
            self._is_over.set()
            _flush_after(self._before_exit if self._status is None else _log_what_blocks_exit)
            self._exit()

    def _make_sure(self) -> None:
        self._is_over.wait()
        # The last words may hang as well.
        threading.Event().wait(_LAST_WORDS)
        self._exit()

    def _exit(self) -> None:
        os._exit(1 if self._status is None else self._status)


def log_stacks(threads: Iterable[int | None], prefixes: tuple[str, ...]) -> None:
    """
    Log the stacks of these threads, of all that run handlers, and of those whose names begin with one of the prefixes.

    `threads` are those of the work that was not finished: an executor of the application does not say what it runs.
    """
    running = {*threads, *running_calls.threads()}
    names = {
        thread.ident: thread.name
        for thread in threading.enumerate()
        if thread.ident is not None and (thread.ident in running or thread.name.startswith(prefixes))
    }
    for thread, stack in stacks_of(names).items():
        logger.error("thread %s is still running, its stack:\n%s", names[thread], stack)


def _log_what_blocks_exit() -> None:
    names = [thread.name for thread in threading.enumerate() if not thread.daemon and thread.is_alive()]
    main = threading.main_thread()
    # Daemon threads do not block an exit: an exit hook does, which runs in the main thread, or one of these threads.
    stack = stacks_of([main.ident or 0])[main.ident or 0]
    logger.error(
        "everything is settled, but the process does not exit; threads that block it: %s; the main thread's stack:\n%s",
        ", ".join(names) or "none",
        stack,
    )


#: Seconds between two looks: a signal that the system gives to another thread does not wake this one.
_STEP = 0.2


class Signals:
    """
    Notes the signals that ask a process to stop, while its block runs.

    Afterwards the previous handlers are in force again. Outside of the main thread, where Python has no signals, it
    notes none.
    """

    def __init__(self) -> None:
        # Not an Event: the code that the signal interrupts may hold its lock. This queue is reentrant.
        self._noted: SimpleQueue[int] = SimpleQueue()
        self._before: dict[int, Any] = {}

    def wait(self, timeout: float) -> int | None:
        """Wait at most `timeout` seconds for the next signal; None if none came."""
        until = time.monotonic() + timeout
        while True:
            left = until - time.monotonic()
            try:
                return self._noted.get(timeout=max(0.0, min(left, _STEP)))
            except Empty:
                if left <= _STEP:
                    return None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None is a handler that was not installed from Python, and cannot be restored.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._noted.empty():
            self._noted.put(number)
        else:
            # The last signal was not read: the main thread may wait for a terminal that takes no output.
            os._exit(128 + number)
