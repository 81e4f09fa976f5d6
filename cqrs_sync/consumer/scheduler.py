"""Decide how many threads handle messages: as many as wait for something, and no more."""

from __future__ import annotations

import logging
import threading
import time

from cqrs_sync.consumer.inflight import InFlightMessage, KeyedQueue
from cqrs_sync.consumer.processor import MessageProcessor
from cqrs_sync.retry import Backoff
from cqrs_sync.threads.executor import Call, Executor
from cqrs_sync.threads.pool import DetachedCalls, SameThread, ThreadPool

logger = logging.getLogger(__name__)

#: Above this share of a core another thread would only wait for the interpreter lock, unless a message takes so many
#: seconds of computing: much of that may run outside of the interpreter.
_CPU_SHARE_HIGH, _CPU_SECONDS_HEAVY = 0.85, 0.002
#: Seconds over which the load is measured.
_SAMPLE = 0.02
#: Seconds a message may wait for a thread before another thread is started.
_WAITS_TOO_LONG = 0.005
#: A thread handles this many messages, or for this many seconds, before it enters the pool's `around` anew.
_TURN_MESSAGES, _TURN_SECONDS = 200, 1.0
#: Seconds until a thread is started again after one could not handle messages, at first and at most.
_RESTART_FIRST, _RESTART_MOST = 0.1, 5.0


class Scheduler:
    """
    Runs the processor on an executor, for the messages of a queue.

    While handlers wait for something, each thread starts another one, up to `concurrency`. If quick handlers keep the
    interpreter busy, threads end until one is left: more would only wait for each other. While the circuit is
    open there is one.
    """

    def __init__(
        self, queue: KeyedQueue, processor: MessageProcessor, threads: Executor, concurrency: int | None
    ) -> None:
        self._queue = queue
        self._processor = processor
        # `SameThread` would run handlers in the thread that receives.
        self._own = ThreadPool(1, name="cqrs-consumer") if isinstance(threads, SameThread) else None
        self._threads = self._own or threads
        pool_size = int(getattr(self._threads, "max_workers", 1))
        self._most = pool_size if concurrency is None else min(pool_size, concurrency)
        self._circuit = processor.circuit
        self._lock = threading.Lock()
        self._active = 0
        self._backoff = Backoff(logger, _RESTART_FIRST, _RESTART_MOST)
        # No thread is started before.
        self._not_before = 0.0
        self._load = _Load()
        #: How many attempts there were, whatever came of them.
        self.processed = 0

    @property
    def limit(self) -> int:
        """How many messages may be handled at a time now."""
        return 1 if self._circuit.is_open else self._most

    def schedule(self) -> None:
        """Start threads: one if none is active, more if a message has waited too long for one."""
        if not self._queue.has_work(self.limit):
            return
        if self._active == 0:
            self._spawn(1)
        elif time.monotonic() - self._queue.last_get > _WAITS_TOO_LONG:
            self._spawn(self._queue.ready)

    def close(self, timeout: float) -> None:
        """Close the pool, if the scheduler made its own."""
        if self._own is not None:
            self._own.close(timeout)

    def _spawn(self, count: int) -> None:
        if time.monotonic() < self._not_before:
            # The receiver calls `schedule` again.
            return
        with self._lock:
            count = min(count, self._most - self._active)
            self._active += max(0, count)
        for _ in range(count):
            DetachedCalls([(self._work,)], self._not_called, self._on_end).start(self._threads)

    def _work(self) -> None:
        """Handle messages until none is left, for a while at most; in a pool thread."""
        if self._backoff.record_success():
            self._not_before = 0.0
            logger.warning("pool threads handle messages again")
        queue, load, until = self._queue, self._load, time.monotonic() + _TURN_SECONDS
        thread = threading.get_ident()
        for _ in range(_TURN_MESSAGES):
            item = queue.get(self.limit, self._circuit.rank if self._circuit.is_open else None)
            if item is None:
                break
            if queue.ready and self._active < self._most and not load.is_high:
                self._spawn(1)
            item.thread = thread
            self._process(item)
            self.processed += 1
            if load.sample() > until or (load.is_high and self._active > 1):
                break

    def _process(self, item: InFlightMessage) -> None:
        try:
            delay = self._processor.process(item)
        except BaseException:
            logger.exception("a message could not be processed, trying again in 1 s")
            delay = 1.0
        if delay is None:
            self._queue.message_done(item)
        else:
            self._queue.schedule_retry(item, delay)

    def _not_called(self, _: Call, error: BaseException) -> None:
        words = "a pool thread cannot handle messages, trying again: the pool's `around` failed: %s"
        self._not_before = time.monotonic() + self._backoff.record_failure(logging.WARNING, words, error)

    def _on_end(self, _: DetachedCalls) -> None:
        """Note that a thread has ended its work, or could not begin it."""
        with self._lock:
            self._active -= 1
        if self._active == 0 and self._queue.has_work(self.limit):
            self._spawn(1)


class _Load:
    """How busy the interpreter was in the last sample."""

    def __init__(self) -> None:
        self.is_high = False
        self._sampled_at = time.monotonic()
        self._used = time.process_time()
        self._count = 0

    def sample(self) -> float:
        """Count a message; returns the present moment by `time.monotonic`."""
        now = time.monotonic()
        self._count += 1
        took = now - self._sampled_at
        if took > _SAMPLE:
            # Several threads may do this at once: the next sample corrects a wrong figure.
            self._sampled_at, used = now, time.process_time()
            computed, self._used = used - self._used, used
            count, self._count = max(1, self._count), 0
            self.is_high = computed > took * _CPU_SHARE_HIGH and computed / count < _CPU_SECONDS_HEAVY
        return now
