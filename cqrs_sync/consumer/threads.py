"""The threads of a consumer: one talks to the broker, and as many handle messages as wait for something, no more."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from cqrs_sync.broker import Subscription
from cqrs_sync.consumer.inflight import InFlightMessage, KeyedQueue
from cqrs_sync.consumer.processor import MessageProcessor
from cqrs_sync.errors import ClosedError, ConfigurationError, CqrsError, describe_error
from cqrs_sync.retry import Backoff
from cqrs_sync.threads.executor import Call, Executor
from cqrs_sync.threads.pool import DetachedCalls, SameThread, ThreadPool

logger: logging.Logger = logging.getLogger(__name__)

#: Seconds it waits for a message if others are in flight, and if none is.
_WAIT_BUSY, _WAIT_IDLE = 0.05, 0.5
#: Seconds between two signs of life while the queue is full.
_KEEP_ALIVE = 0.2
#: Messages it receives before it acks what is done.
_RECEIVE_MOST = 64
#: Seconds between attempts to reach the broker, at first and at most.
_RECONNECT_FIRST, _RECONNECT_MOST = 0.25, 5.0
#: Seconds without an error after which an outage is over although no message came: every client notices in less.
_QUIET_SECONDS = 1.5


class Receiver:
    """
    Receives from one subscription, in a thread of its own, as many messages as the queue takes.

    Handlers do not run in this thread: it keeps heartbeats and polls going. It makes a lost subscription anew.
    """

    def __init__(self, join: Callable[[], Subscription], queue: KeyedQueue, schedule: Callable[[], object]) -> None:
        """Subscribe with `join`; call `schedule` whenever the queue may have work."""
        self._join = join
        self._queue = queue
        self._schedule = schedule
        self._subscription: Subscription | None = None
        self._interrupted = threading.Event()
        self._is_ending = self._must_rejoin = self._was_ready = False
        self._deadline = 0.0
        self._backoff = Backoff(logger, _RECONNECT_FIRST, _RECONNECT_MOST)
        self._quiet_since: float | None = None
        #: Why it cannot receive; empty if it can.
        self.last_trouble: str = ""
        self._thread = threading.Thread(target=self._run, name="cqrs-receiver", daemon=True)
        #: The error that ended it, which no retry can mend.
        self.fatal_error: ConfigurationError | None = None
        #: When it last made a step, by `time.monotonic`.
        self.alive_at: float = time.monotonic()
        #: How many messages it has received.
        self.received: int = 0

    @property
    def is_connected(self) -> bool:
        """Whether the broker answers, as far as is known."""
        return self._subscription is not None and not self._backoff.failures

    @property
    def has_joined(self) -> bool:
        """Whether it is connected and the group has let it in."""
        subscription = self._subscription
        return subscription is not None and subscription.has_joined and self.is_connected

    def start(self) -> None:
        """Start the thread. Raises RuntimeError if the system has no thread left."""
        self._thread.start()

    def rejoin(self) -> None:
        """Close the subscription and make a new one; called by any thread."""
        self._must_rejoin = True
        self._interrupt()

    def request_stop(self, timeout: float) -> None:
        """Receive nothing more, ack what is done within `timeout` seconds, and end. Does not wait."""
        self._deadline = time.monotonic() + timeout
        self._is_ending = True
        self._interrupt()

    def join(self, timeout: float) -> bool:
        """Wait `timeout` seconds for the end of the thread; returns whether it has ended."""
        # A thread that was never started has ended.
        if self._thread.ident is not None:
            self._thread.join(max(0.0, timeout))
        return not self._thread.is_alive()

    def _interrupt(self) -> None:
        self._interrupted.set()
        self._queue.wakeup.set()

    def _run(self) -> None:
        while not (self._is_ending and self._is_over()):
            self.alive_at = time.monotonic()
            try:
                self._step()
            except ConfigurationError as error:
                logger.error("consumer stopped by a configuration error: %s", error)  # noqa: TRY400 -- the message says it all
                self.fatal_error = error
                break
            except CqrsError as error:
                self._on_failure(error)
            except BaseException:
                logger.exception("unexpected error in the receiver thread, subscribing again")
                self._close_subscription()
                self._on_failure(None)
        self._close_subscription()

    def _is_over(self) -> bool:
        is_finished = not self._queue.running() and not self._queue.done_deliveries
        return is_finished or time.monotonic() >= self._deadline

    def _step(self) -> None:
        self._interrupted.clear()
        self._queue.wakeup.clear()
        if self._must_rejoin:
            self._must_rejoin = False
            self._close_subscription()
        if self._subscription is None and not self._is_ending:
            self._subscription = self._join()
        self._ack()
        room, before = self._queue.room, self.received
        # While threads have enough to do, a message or two would cost more than they bring.
        if self._is_ending or room <= 0 or (room < self._queue.enough and self._queue.ready):
            self._wait()
        else:
            self._receive()
        if not self._was_ready and self.has_joined:
            self._was_ready = True
            logger.info("connected: receiving messages")
        if self._backoff.failures:
            self._end_outage_if_quiet(has_received=self.received > before)
        self._schedule()

    def _ack(self) -> None:
        done = self._queue.done_deliveries
        is_logged = logger.isEnabledFor(logging.DEBUG)
        while done:
            delivery = done.popleft()
            delivery.ack()
            if is_logged:
                logger.debug("%s: acked", delivery.message.title)

    def _wait(self) -> None:
        if self._subscription is not None:
            self._subscription.keep_alive()
        if not self._queue.is_worth_acking():
            self._queue.wakeup.wait(_KEEP_ALIVE)

    def _receive(self) -> None:
        assert self._subscription is not None
        room, timeout = min(_RECEIVE_MOST, self._queue.room), _WAIT_BUSY if len(self._queue) else _WAIT_IDLE
        deliveries = self._subscription.receive_many(room, timeout)
        if deliveries:
            self.received += len(deliveries)
            if logger.isEnabledFor(logging.DEBUG):
                for each in deliveries:
                    logger.debug("%s: received from %s", each.message.title, each.origin)
            for done in self._queue.put(map(InFlightMessage.of, deliveries)):
                done.ack()

    def _end_outage_if_quiet(self, *, has_received: bool) -> None:
        """End an outage once a message came, or after a while without errors: `keep_alive` may notice none."""
        now = time.monotonic()
        self._quiet_since = self._quiet_since or now
        if has_received or now - self._quiet_since >= _QUIET_SECONDS:
            self._backoff.record_success()
            self.last_trouble = ""
            logger.warning("receiving messages again")

    def _on_failure(self, error: CqrsError | None) -> None:
        self._quiet_since = None
        trouble = "unexpected error in the receiver thread, see the log" if error is None else describe_error(error)
        self.last_trouble = trouble
        if isinstance(error, ClosedError):
            self._close_subscription()
        pause = self._backoff.record_failure(logging.WARNING, "cannot receive messages, retrying: %s", trouble)
        until = time.monotonic() + pause
        # Messages in flight are handled meanwhile.
        while (left := until - time.monotonic()) > 0 and not self._interrupted.is_set():
            self._schedule()
            self._interrupted.wait(min(left, _KEEP_ALIVE))

    def _close_subscription(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            try:
                self._ack()
                subscription.close()
            except Exception as error:  # noqa: BLE001 -- it is left all the same
                logger.warning("the subscription could not be closed cleanly: %s", error)


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
        self.processed: int = 0

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
