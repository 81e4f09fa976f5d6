"""The thread that talks to the broker: it receives messages, and acks those that are done."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from cqrs_sync.broker import Subscription
from cqrs_sync.consumer.inflight import InFlightMessage, KeyedQueue
from cqrs_sync.errors import ClosedError, ConfigurationError, CqrsError, describe_error
from cqrs_sync.retry import Backoff

logger = logging.getLogger(__name__)

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
        self._is_ending = self._must_rejoin = False
        self._deadline = 0.0
        self._backoff = Backoff(logger, _RECONNECT_FIRST, _RECONNECT_MOST)
        self._quiet_since: float | None = None
        #: Why it cannot receive; empty if it can.
        self.last_trouble = ""
        self._thread = threading.Thread(target=self._run, name="cqrs-receiver", daemon=True)
        #: The error that ended it, which no retry can mend.
        self.fatal_error: ConfigurationError | None = None
        #: When it last made a step, by `time.monotonic`.
        self.alive_at = time.monotonic()
        #: How many messages it has received.
        self.received = 0

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
