"""The threads that handle what is in hand: as many as it takes, and no more."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from cqrs_sync.consumer.inflight import InFlightMessage, KeyedQueue
from cqrs_sync.consumer.outage import Outage
from cqrs_sync.retry import Backoff
from cqrs_sync.threads.executor import Call, Executor
from cqrs_sync.threads.pool import SameThread, ThreadPool

logger = logging.getLogger(__name__)

#: The share of a core this process uses from which on more threads would only wait for the interpreter; and
#: seconds of computing per message from which on that is no matter: much of it may be outside of the interpreter.
_BUSY, _HEAVY = 0.85, 0.002
#: Seconds over which that is looked at.
_LOOK = 0.02
#: Seconds after which a message that could be taken waits too long.
_WAITS_TOO_LONG = 0.005
#: A thread serves so many messages, or for so many seconds, until what is around calls is entered anew.
_SERVED, _SERVED_FOR = 200, 1.0
#: Seconds for which no thread is called in where the last one could not serve, at first and at most.
_FIRST, _CEILING = 0.1, 5.0


class Scheduler:
    """
    Serves queue on an executor.

    While handlers wait for something each thread calls another one, up to `concurrency`. Where the interpreter is busy
    with quick ones, threads leave until one is left: more would only wait for each other. During an
    outage there is one.
    """

    def __init__(
        self,
        queue: KeyedQueue,
        process: Callable[[InFlightMessage], float | None],
        threads: Executor,
        concurrency: int | None,
        outage: Outage,
    ) -> None:
        """Let `process` handle messages: it returns None where one is done, else the seconds to wait."""
        self._queue = queue
        self._process = process
        # The thread that receives is not to be kept.
        self._own = ThreadPool(1, name="cqrs-consumer") if isinstance(threads, SameThread) else None
        self._threads = self._own or threads
        most = int(getattr(self._threads, "max_workers", 1))
        self._most = most if concurrency is None else min(most, concurrency)
        self._outage = outage
        self._lock = threading.Lock()
        self._serving = 0
        self._trouble = Backoff(logger, _FIRST, _CEILING)
        #: No thread is called in before.
        self._rests_until = 0.0
        self._load = _Load()
        #: Messages that were processed to, whatever became of them.
        self.processed = 0

    @property
    def room(self) -> int:
        """How many messages may be handled at a time now."""
        return 1 if self._outage.is_on else self._most

    def serve_what_waits(self) -> None:
        """Let threads serve: one where none does, more where what could be taken waits for too long."""
        if not self._queue.may_take(self.room):
            return
        if self._serving == 0:
            self._call_in(1)
        elif time.monotonic() - self._queue.taken_at > _WAITS_TOO_LONG:
            self._call_in(self._queue.ready)

    def close(self, timeout: float) -> None:
        """Let go of threads of its own."""
        if self._own is not None:
            self._own.close(timeout)

    def _call_in(self, wanted: int) -> None:
        if time.monotonic() < self._rests_until:
            # Whoever receives comes by again.
            return
        with self._lock:
            wanted = min(wanted, self._most - self._serving)
            self._serving += max(0, wanted)
        for _ in range(wanted):
            serving = _Serving(self._serve, self._served)
            # Not waited for.
            if self._threads.run(serving, timeout=0, may_help=False):
                serving.finished_late()

    def _serve(self) -> None:
        """Handle messages until there are none, for a while at most; on the pool."""
        queue, load, until = self._queue, self._load, time.monotonic() + _SERVED_FOR
        thread = threading.get_ident()
        for _ in range(_SERVED):
            item = queue.take(self.room, self._outage.doubts if self._outage.is_on else None)
            if item is None:
                break
            if queue.ready and self._serving < self._most and not load.is_high:
                self._call_in(1)
            item.thread = thread
            self._process_one(item)
            self.processed += 1
            if load.look() > until or (load.is_high and self._serving > 1):
                break

    def _process_one(self, item: InFlightMessage) -> None:
        try:
            pause = self._process(item)
        except BaseException:
            logger.exception("a message could not be processed to, it is tried again")
            pause = 1.0
        if pause is None:
            self._queue.done(item)
        else:
            self._queue.again(item, pause)

    def _served(self, error: BaseException | None) -> None:
        """Note that a thread has served, or why it could not."""
        with self._lock:
            self._serving -= 1
        if error is not None:
            words = "a thread could not serve, what is around its calls cannot be entered; it is tried again: %s"
            self._rests_until = time.monotonic() + self._trouble.failed(logging.WARNING, words, error)
        elif self._trouble.is_over():
            self._rests_until = 0.0
            logger.warning("threads serve again")
        if self._serving == 0 and self._queue.may_take(self.room):
            self._call_in(1)


class _Load:
    """How busy the interpreter is, as of the last look."""

    def __init__(self) -> None:
        self.is_high = False
        self._looked_at = time.monotonic()
        self._used = time.process_time()
        self._count = 0

    def look(self) -> float:
        """Count a message, and return the present moment, by `time.monotonic`."""
        now = time.monotonic()
        self._count += 1
        took = now - self._looked_at
        if took > _LOOK:
            # Threads may do this at once: a wrong figure is put right by the next look.
            self._looked_at, used = now, time.process_time()
            computed, self._used = used - self._used, used
            count, self._count = max(1, self._count), 0
            self.is_high = computed > took * _BUSY and computed / count < _HEAVY
        return now


class _Serving:
    """One call for an executor: a thread serves for a while."""

    def __init__(self, serve: Callable[[], object], served: Callable[[BaseException | None], object]) -> None:
        self._call: Call | None = (serve,)
        self._served = served
        self._error: BaseException | None = None

    def next_call(self) -> Call | None:
        call, self._call = self._call, None
        return call

    def call_failed(self, call: Call, error: BaseException, /) -> None:
        """Note that what is around calls could not be entered."""
        del call
        self._error = error

    def finished_late(self) -> None:
        """It has served, or could not."""
        self._served(self._error)
