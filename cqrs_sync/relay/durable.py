"""Run durable handlers with the events the outbox keeps for them."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from cqrs_sync import context
from cqrs_sync.broker import IncomingMessage
from cqrs_sync.dispatch.dispatcher import EventDispatcher
from cqrs_sync.errors import HandlerNotFound, UnknownMessageType
from cqrs_sync.outbox import Claimed, Outbox, Outcome, Verdict
from cqrs_sync.registry import EventMap
from cqrs_sync.relay.settlement import Claims, Settlement
from cqrs_sync.retry import Retries
from cqrs_sync.serializer import Serializer
from cqrs_sync.threads.executor import Call, Executor
from cqrs_sync.threads.pool import SameThread, ThreadPool
from cqrs_sync.threads.watchdog import stacks_of

logger = logging.getLogger(__name__)

#: Seconds until an event is tried again that this build does not know: so many, and more with each, up to the last.
_UNKNOWN, _EACH_UNKNOWN, _LONGEST_UNKNOWN = 30.0, 0.1, 600.0
#: Seconds until a handler is called again that could not be called, as where the pool's `around` failed.
_NOT_CALLED = 2.0
#: Seconds after which a handler that is still running is reported with its stack.
_SLOW = 60.0


class DurableHandlerWorker:
    """
    Claims deliveries for durable handlers, as many as the pool has threads, and runs them there.

    What runs is claimed for as long as it runs: the lease is renewed. A handler that
    never returns keeps its place.
    """

    def __init__(
        self,
        outbox: Outbox,
        dispatcher: EventDispatcher,
        event_map: EventMap,
        *,
        serializer: Serializer,
        retries: Retries,
        lease: float,
        claims: Claims,
    ) -> None:
        self._outbox = outbox
        self._dispatcher = dispatcher
        self._event_map = event_map
        self._serializer = serializer
        self._retries = retries
        self._lease = lease
        self._claims = claims
        self._settlement = Settlement(claims)
        self._finished: deque[Outcome] = deque()
        self._running: dict[int, _Running] = {}
        self._own: ThreadPool | None = None
        # What a pool was given and has not finished yet, with what is around each call.
        self._given: set[_Calls] = set()
        self._renewed = time.monotonic()
        self._unknown: set[str] = set()
        self._deferred = 0
        #: Called when a handler is finished.
        self.wake: Callable[[], object] = lambda: None
        self._finishing = self._ending = False

    def deliver(self) -> float | None:
        """Settle what is finished, and start as many handlers as there is room for."""
        self._settle_finished()
        self._renew()
        free = self._capacity() - len(self._running)
        names = self._event_map.durable_names
        if free > 0 and names and not self._ending:
            claimed = self._claims.claim(free, self._lease, handlers=names)
            if claimed:
                self._start(claimed)
                return 0
        if self._running or (self._finishing and self._given):
            return min(self._lease / 3, 1.0)
        return None if self._finishing else self._settlement.next_due()

    def finish(self, *, drain: bool) -> None:
        """Run what there is, or begin nothing more: what waits for a thread is given back."""
        self._finishing = True
        self._ending = not drain

    def release_connection(self) -> None:
        """Give up the database connection of this thread, and threads of its own."""
        own, self._own = self._own, None
        if own is not None:
            own.close(0.1)
        self._outbox.release_connection()

    def _capacity(self) -> int:
        return int(getattr(self._dispatcher.wiring.threads, "max_workers", 1))

    def _threads(self) -> Executor:
        """Return where handlers run: never in this thread, which renews their claims."""
        threads = self._dispatcher.wiring.threads
        if not isinstance(threads, SameThread):
            return threads
        if self._own is None:
            self._own = ThreadPool(1, name="cqrs-relay-handlers", around=self._with_its_connection)
        return self._own

    @contextmanager
    def _with_its_connection(self) -> Iterator[None]:
        """Give up, after a call, the database connection of a thread that nobody else looks after."""
        try:
            yield
        finally:
            self._outbox.release_connection()

    def _start(self, claimed: Sequence[Claimed]) -> None:
        calls: list[Call] = []
        for each in claimed:
            policy = self._retries.of(each.target)
            if each.attempts > policy.attempts:
                self._finished.append(self._settlement.exhausted(each, policy))
            elif self._is_last(each) and any(self._is_last(other.claimed) for other in self._running.values()):
                # One at a time: what ends its process is not to take others along that had bad luck before.
                self._finished.append(Outcome(each, Verdict.AGAIN, after=_NOT_CALLED, counted=False))
            else:
                self._running[each.number] = _Running(each)
                calls.append((self._run, each))
        if calls:
            # Not waited for: this thread settles and renews.
            given = _Calls(calls, self._done_with)
            self._given.add(given)
            if self._threads().run(given, timeout=0, may_help=False):
                self._given.discard(given)

    def _is_last(self, claimed: Claimed) -> bool:
        return claimed.attempts == self._retries.of(claimed.target).attempts > 1

    def _done_with(self, given: _Calls) -> None:
        """Note that a pool has finished all of this, with what is around each call."""
        self._given.discard(given)
        self.wake()

    def _run(self, claimed: Claimed) -> None:
        """Run one handler; called on the pool, and must not raise."""
        running = self._running[claimed.number]
        running.thread = threading.get_ident()
        self._claims.started(claimed)
        try:
            outcome = Outcome(claimed, Verdict.AGAIN, counted=False) if self._ending else self._attempt(claimed)
        except BaseException as error:  # noqa: BLE001 -- also what is no Exception is a failure of this handler
            outcome = self._settlement.failed(claimed, error, self._retries.of(claimed.target))
        self._finished.append(outcome)
        self.wake()

    def not_called(self, claimed: Claimed, error: BaseException) -> None:
        """Note that the pool could not call a handler: that is no fault of the handler."""
        self._finished.append(Outcome.failed(claimed, error, after=_NOT_CALLED, counted=False))
        self.wake()

    def _attempt(self, claimed: Claimed) -> Outcome:
        message = claimed.message
        known = self._event_map.stored_type(message.type)
        incoming = IncomingMessage(
            topic=message.topic,
            body=message.body,
            content_type=message.content_type,
            key=message.key,
            attributes=message.attributes,
        )
        try:
            event, attributes = self._serializer.load(incoming, {} if known is None else {message.type: known})
            target = claimed.target
            self._check_bound(target, type(event))
        except (UnknownMessageType, HandlerNotFound) as error:
            return self._not_known_here(claimed, error)
        context.forget_deadline()
        with context.resuming(attributes):
            self._dispatcher.run_durable(target, event)
        return Outcome(claimed, Verdict.DONE)

    def _check_bound(self, name: str, event_type: type) -> None:
        if self._dispatcher.routes.durable_target(event_type, name) is None:
            raise HandlerNotFound(f"no durable handler named {name!r} is bound to {event_type.__qualname__}")

    def _not_known_here(self, claimed: Claimed, error: Exception) -> Outcome:
        """Leave it to a build that knows it: that costs no attempt."""
        what = f"{claimed.message.type} for {claimed.target}"
        if what not in self._unknown:
            self._unknown.add(what)
            logger.warning("%s waits for a process that knows it: %s", what, error)
        # Where there are thousands, looking at each of them twice a minute would leave no time for the others.
        self._deferred += 1
        after = min(_LONGEST_UNKNOWN, _UNKNOWN + self._deferred * _EACH_UNKNOWN)
        return Outcome.failed(claimed, error, after=after, counted=False)

    def _settle_finished(self) -> None:
        outcomes = list(self._finished)
        if not outcomes:
            return
        # One attempt: what is not settled stays here, and is renewed meanwhile.
        self._settlement.settle(outcomes, time.monotonic())
        for outcome in outcomes:
            self._finished.popleft()
            self._running.pop(outcome.claimed.number, None)

    def _renew(self) -> None:
        now = time.monotonic()
        if not self._running or now - self._renewed < self._lease / 3:
            if not self._running:
                self._renewed = now
            return
        self._renewed = now
        self._claims.renew({running.claimed.token for running in self._running.values()}, self._lease)
        for running in self._running.values():
            running.report_if_slow(now)


class _Running:
    """A handler that was started, or waits on the pool to be."""

    def __init__(self, claimed: Claimed) -> None:
        self.claimed = claimed
        self.thread: int | None = None
        self._report_at = time.monotonic() + _SLOW

    def report_if_slow(self, now: float) -> None:
        if self.thread is None or now < self._report_at:
            return
        self._report_at = now + _SLOW
        stack = stacks_of([self.thread])[self.thread]
        logger.warning(
            "%s still runs with %s %s, at:\n%s",
            *(self.claimed.target, self.claimed.message.type, self.claimed.message.id, stack),
        )


class _Calls:
    """Calls for an executor; nobody waits for them."""

    def __init__(self, calls: Sequence[Call], done: Callable[[_Calls], object]) -> None:
        self._calls = deque(calls)
        self._done = done

    def next_call(self) -> Call | None:
        return self._calls.popleft() if self._calls else None

    def call_failed(self, call: Call, error: BaseException, /) -> None:
        """Note that a handler could not be called."""
        function, claimed = call
        runner: DurableHandlerWorker = function.__self__
        runner.not_called(claimed, error)

    def finished_late(self) -> None:
        """All are finished."""
        self._done(self)
