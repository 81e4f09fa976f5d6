"""Run durable handlers with the events that the outbox keeps for them."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cqrs_sync import context
from cqrs_sync.broker import IncomingMessage
from cqrs_sync.dispatch.dispatcher import EventDispatcher
from cqrs_sync.errors import HandlerNotFound, UnknownMessageType
from cqrs_sync.outbox import ClaimedDelivery, Outcome, OutcomeKind
from cqrs_sync.relay.settlement import ClaimTracker, Settlement
from cqrs_sync.relay.thread import RelayTask
from cqrs_sync.threads.executor import Call, Executor
from cqrs_sync.threads.pool import DetachedCalls, SameThread, ThreadPool
from cqrs_sync.threads.watchdog import stacks_of
from cqrs_sync.wiring import Wiring

logger: logging.Logger = logging.getLogger(__name__)

#: Seconds until an event of an unknown type is tried again: the first, so many more for each one, and at most.
_UNKNOWN, _EACH_UNKNOWN, _LONGEST_UNKNOWN = 30.0, 0.1, 600.0
#: Seconds until the next attempt if the pool could not call the handler, as when its `around` failed.
_NOT_CALLED = 2.0
#: Seconds after which a handler that still runs is logged with its stack.
_SLOW = 60.0


class DurableHandlerTask(RelayTask):
    """
    Claims as many deliveries for durable handlers as the pool has threads, and runs the handlers there.

    It renews the lease of a handler for as long as the handler runs. A handler that never returns keeps its thread.
    A handler that has finished wakes it: the next `step` settles the delivery.
    """

    def __init__(self, claims: ClaimTracker, wiring: Wiring, dispatcher: EventDispatcher, *, lease: float) -> None:
        super().__init__(claims)
        self._wiring = wiring
        self._dispatcher = dispatcher
        self._lease = lease
        self._settlement = Settlement(claims)
        self._finished: deque[Outcome] = deque()
        # Deliveries in the pool by number, and when a handler that still runs is logged next.
        self._running: dict[int, ClaimedDelivery] = {}
        self._log_at: dict[int, float] = {}
        self._own: ThreadPool | None = None
        # Calls that the pool has not finished, with what it does around each of them.
        self._calls: set[DetachedCalls] = set()
        self._renewed_at = time.monotonic()
        self._unknown: set[str] = set()
        self._unknown_count = 0

    def step(self) -> float | None:
        """Settle what has finished, and start as many handlers as there are free threads."""
        self._settle_finished()
        self._renew()
        free = int(getattr(self._wiring.threads, "max_workers", 1)) - len(self._running)
        names = self._wiring.event_map.durable_names
        if free > 0 and names and not self.is_ending:
            claimed = self.claims.claim(free, self._lease, handlers=names)
            if claimed:
                self._start(claimed)
                return 0
        if self._running or (self.is_finishing and self._calls):
            return min(self._lease / 3, 1.0)
        return None if self.is_finishing else self._settlement.next_due()

    def release_connection(self) -> None:
        """Release the database connection of the calling thread, and close the pool if the task made its own."""
        own, self._own = self._own, None
        if own is not None:
            own.close(0.1)
        super().release_connection()

    def _pool(self) -> Executor:
        """Return where handlers run: never in the task's own thread, which has to renew their leases."""
        threads = self._wiring.threads
        if not isinstance(threads, SameThread):
            return threads
        if self._own is None:
            self._own = ThreadPool(1, name="cqrs-relay-handlers", around=self._release_connection_after)
        return self._own

    @contextmanager
    def _release_connection_after(self) -> Iterator[None]:
        """Release the database connection of a pool thread after each call: no other code does so there."""
        try:
            yield
        finally:
            self.claims.outbox.release_connection()

    def _start(self, claimed: Sequence[ClaimedDelivery]) -> None:
        calls: list[Call] = []
        for each in claimed:
            policy = self._wiring.retry_of_handler(each.target)
            if each.attempts > policy.attempts:
                self._finish(self._settlement.exhausted_outcome(each, policy))
            elif self._is_last(each) and any(self._is_last(other) for other in self._running.values()):
                # Last attempts run one at a time: a handler that kills its process must not use up those of others.
                self._finish(Outcome(each, OutcomeKind.RETRY, after=_NOT_CALLED, counted=False))
            else:
                self._running[each.number] = each
                calls.append((self._run, each))
        if calls:
            # The task does not wait for the pool: it has to settle and renew meanwhile.
            batch = DetachedCalls(calls, self._not_called, self._calls_finished)
            self._calls.add(batch)
            batch.start(self._pool())

    def _is_last(self, claimed: ClaimedDelivery) -> bool:
        return claimed.attempts == self._wiring.retry_of_handler(claimed.target).attempts > 1

    def _run(self, claimed: ClaimedDelivery) -> None:
        """Run one handler in a pool thread."""
        # Whatever happens: its lease would be renewed for as long as it is not settled.
        outcome = Outcome.failed(claimed, "the outcome could not be worked out, see the log", after=_NOT_CALLED)
        try:
            self.claims.note_thread(claimed)
            outcome = self._outcome(claimed)
        finally:
            self._finish(outcome)

    def _outcome(self, claimed: ClaimedDelivery) -> Outcome:
        if self.is_ending:
            return Outcome(claimed, OutcomeKind.RETRY, counted=False)
        try:
            return self._attempt(claimed)
        except BaseException as error:  # noqa: BLE001 -- SystemExit and the like are failures of the handler as well
            policy = self._wiring.retry_of_handler(claimed.target)
            try:
                return self._settlement.failure_outcome(claimed, error, policy)
            except Exception as unusable:  # noqa: BLE001 -- an error whose text or `after` cannot be read
                return self._settlement.failure_outcome(claimed, unusable, policy)

    def _not_called(self, call: Call, error: BaseException) -> None:
        """Note that the pool could not call a handler. The handler is not at fault."""
        _, claimed = call
        self._finish(Outcome.failed(claimed, error, after=_NOT_CALLED, counted=False))

    def _finish(self, outcome: Outcome) -> None:
        """Leave the outcome to the next step. If the worker has ended, another process makes the delivery again."""
        self.claims.note_handled(outcome.claimed)
        self._finished.append(outcome)
        self.woken.set()

    def _calls_finished(self, batch: DetachedCalls) -> None:
        self._calls.discard(batch)
        self.woken.set()

    def _attempt(self, claimed: ClaimedDelivery) -> Outcome:
        message = claimed.message
        known = self._wiring.event_map.stored_type(message.type)
        types = {} if known is None else {message.type: known}
        incoming = IncomingMessage(
            message.topic, message.body, message.content_type, key=message.key, attributes=message.attributes
        )
        try:
            event, attributes = self._wiring.serializer.load(incoming, types)
            call = self._dispatcher.durable_call(type(event), claimed.target)
        except (UnknownMessageType, HandlerNotFound) as error:
            return self._defer_unknown(claimed, error)
        context.forget_deadline()
        begun = time.monotonic()
        with context.stored_attributes(attributes):
            self._dispatcher.run_handler(call, event)
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s: handled by %s in %.3f s", message.title, claimed.target, time.monotonic() - begun)
        return Outcome(claimed, OutcomeKind.DONE)

    def _defer_unknown(self, claimed: ClaimedDelivery, error: Exception) -> Outcome:
        """Leave a delivery to a build that knows its type or handler. That costs no attempt."""
        what = f"{claimed.message.type} for {claimed.target}"
        if what not in self._unknown:
            self._unknown.add(what)
            logger.warning("deferred %s until a process with its type and handler claims it: %s", what, error)
        # With thousands of them, two attempts a minute at each would leave no time for other deliveries.
        self._unknown_count += 1
        after = min(_LONGEST_UNKNOWN, _UNKNOWN + self._unknown_count * _EACH_UNKNOWN)
        return Outcome.failed(claimed, error, after=after, counted=False)

    def _settle_finished(self) -> None:
        outcomes = list(self._finished)
        if not outcomes:
            return
        # One attempt: if it fails, the next step settles them, and renews their leases meanwhile.
        self._settlement.settle(outcomes, timeout=0)
        for outcome in outcomes:
            self._finished.popleft()
            self._running.pop(outcome.claimed.number, None)
            self._log_at.pop(outcome.claimed.number, None)

    def _renew(self) -> None:
        now = time.monotonic()
        if not self._running or now - self._renewed_at < self._lease / 3:
            if not self._running:
                self._renewed_at = now
            return
        self._renewed_at = now
        self.claims.renew({claimed.token for claimed in self._running.values()}, self._lease)
        for each in self.claims.in_flight():
            claimed = each.claimed
            log_at = self._log_at.get(claimed.number, each.since + _SLOW)
            if each.thread is not None and claimed.number in self._running and now >= log_at:
                self._log_at[claimed.number] = now + _SLOW
                words, stack = "%s still handles %s, at:\n%s", stacks_of([each.thread])[each.thread]
                logger.warning(words, claimed.target, claimed.message.title, stack)
