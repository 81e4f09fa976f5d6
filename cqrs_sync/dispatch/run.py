"""After the commit: event handlers run, then the handlers of the events they raise, then messages are published."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context

from cqrs_sync import context
from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.dispatch.handler_call import HandlerCall, drain_raised
from cqrs_sync.dispatch.routing import Prepared, Route
from cqrs_sync.dispatch.staging import PendingEvents, Staging
from cqrs_sync.errors import DeadlineExceeded, EventCycle, Failure, HandlerOverran
from cqrs_sync.failures import log_failures
from cqrs_sync.lifecycle import reset_in_child
from cqrs_sync.messages import Event
from cqrs_sync.threads.executor import Call
from cqrs_sync.threads.watchdog import stacks_of
from cqrs_sync.wiring import Wiring

logger: logging.Logger = logging.getLogger(__name__)

#: A late handler may still publish what it has committed, for this many seconds.
_SHORTEST_PUBLISH = 0.1
#: More events than these may not follow from events of their own type, in one run.
_MOST_RECURRING = 10_000

_enter, _deadline_at = context.current.set, context.deadline_at


class EventRunner:
    """Runs committed events, each batch with all that follows from it as one `EventRun`."""

    def __init__(self, wiring: Wiring, routes: Prepared[type, Route], staging: Staging) -> None:
        self.wiring = wiring
        self.routes = routes
        self.stage: Callable[..., PendingEvents] = staging.stage
        self._transaction_is_open = staging.transaction_is_open
        self._publishes = wiring.outbox is None and wiring.broker is not None
        #: Guards what the handlers of a run change. All runs share it: a lock for each run would not survive a fork.
        self.lock: threading.Lock = threading.Lock()
        reset_in_child(self)

    def run(self, batches: Sequence[PendingEvents]) -> EventRun:
        """
        Run the handlers of these events and of all events that follow, then publish; return the run.

        Returns at the deadline. Handlers get a little less time, so that some is left to publish.
        """
        until = _deadline_at()
        if until is not None and any(each.outgoing for each in batches):
            until -= context.reserve(until)
        run = EventRun(self, batches[0], until)
        for each in batches[1:]:
            # Of a middleware, or of a handler that a middleware has called again.
            run.add(each)
        timeout = None if until is None else until - time.monotonic()
        # A caller with an open transaction does not help: handlers must not run inside it.
        if not run.has_calls or self.wiring.threads.run(run, timeout=timeout, may_help=not self._transaction_is_open()):
            run.release()
        else:
            run.record_unfinished()
        self.publish(run)
        return run

    def run_at_commit(self, pending: PendingEvents) -> None:
        """Run events when their transaction commits. No caller waits then: failures are logged."""
        surroundings = copy_context()
        surroundings.run(context.forget_deadline)
        pending.at_commit = lambda: surroundings.run(self.run_unattended, pending)

    def run_unattended(self, pending: PendingEvents) -> None:
        """Run events without a caller who waits: failures are logged."""
        run = self.run([pending])
        run.log(run.take_failures())

    def publish(self, run: EventRun) -> None:
        """Publish the notification events of a run, unless an outbox has them: then the relay does."""
        if not self._publishes or not (outgoing := run.take_outgoing()):
            return
        until = _deadline_at()
        try:
            if until is None:
                self.wiring.emitter.publish(outgoing)
            else:
                with context.extended_deadline(max(until - time.monotonic(), _SHORTEST_PUBLISH)):
                    self.wiring.emitter.publish(outgoing)
        except Exception as error:  # noqa: BLE001 -- the failure policy gets it
            run.add_failure(Failure("publish", None, error))

    def reset_in_child(self) -> None:
        """Replace the lock: another thread of the parent may have held it."""
        self.lock = threading.Lock()


class EventRun:
    """Events and all that follows from them, as work for an executor; then what became of it."""

    # Defaults that most runs never change: each request with events makes a run.
    _seen: set[int] | None = None
    _started = 0
    _recurring = 0
    _emitted = 0
    _stopped = False
    _has_cycle = False
    _failures_taken = False
    #: What has failed so far.
    failures: list[Failure] | None = None
    #: The caller has left at its deadline.
    unattended: bool = False
    #: What a handler raised that is not an Exception, such as SystemExit.
    interruption: BaseException | None = None

    def __init__(self, runner: EventRunner, first: PendingEvents, until: float | None) -> None:
        self._runner = runner
        self._batches = [first]
        self._until = until
        self.has_calls: bool = self._has_calls(first)
        if until is not None:
            # What each thread runs.
            self._running: dict[int, tuple[HandlerCall, Event]] = {}
            self._begun = 0
        observer = runner.wiring.observer
        if observer is not None:
            observer(first.events)
        #: Returns the next call, None if there is none now. Breadth first: events of handlers come last.
        self.next_call: Callable[[], Call | None] = self._calls().__next__

    def call_failed(self, call: Call, error: BaseException, /) -> None:
        """Note that the executor could not make a call: it counts as a failure of the handler."""
        _, handler_call, event, _ = call
        if self._until is not None:
            with self._runner.lock:
                self._begun += 1
        self._fail(handler_call, event, error)

    def finished_late(self) -> None:
        """Publish, and log failures: all handlers are finished, after the caller has left at its deadline."""
        context.forget_deadline()
        self.release()
        self._runner.publish(self)
        with self._runner.lock:
            # The caller may not have taken its failures yet. Then it takes these as well.
            late = self._take_failures() if self._failures_taken else []
        self.log(late)

    def release(self) -> None:
        """Break the reference cycle of the run and its generator: otherwise the garbage collector has to."""
        del self.next_call

    def add(self, pending: PendingEvents) -> None:
        """Add events that follow, each instance once. Raises EventCycle for far too many."""
        if not pending.committed:
            self._runner.run_at_commit(pending)
            return
        with self._runner.lock:
            if self._seen is None:
                self._seen = {id(event) for known in self._batches for event in known.events}
            seen = self._seen
            if pending.outgoing:
                pending.outgoing = {key: message for key, message in pending.outgoing.items() if key not in seen}
            pending.events = [event for event in pending.events if id(event) not in seen]
            seen.update(map(id, pending.events))
            self._batches.append(pending)
            self.has_calls = self.has_calls or self._has_calls(pending)
            self._recurring += _recurring(pending)
        observer = self._runner.wiring.observer
        if observer is not None:
            observer(pending.events)
        if self._recurring > _MOST_RECURRING:
            raise EventCycle(
                f"{_MOST_RECURRING} events followed from events of their own type, the last one was "
                f"{type(pending.events[0]).__qualname__}. The rest was dropped: break the cycle"
            )

    def record_unfinished(self) -> None:
        """Note as failures what is not finished at the deadline. It continues, and no caller waits for it."""
        count = 0 if self._stopped else self._count()
        with self._runner.lock:
            self.unattended = True
            running, ahead = dict(self._running), count - self._begun
        stacks = stacks_of(running)
        for thread, (call, event) in running.items():
            error = HandlerOverran(
                f"{call.name} was still handling {type(event).__qualname__} at the deadline and continues; "
                f"its stack:\n{stacks[thread]}"
            )
            self.add_failure(Failure(call.name, event, error))
        if ahead > 0:
            late = DeadlineExceeded(f"{ahead} event handler(s) had not started at the deadline; they still run")
            self.add_failure(Failure("events", None, late))

    def take_outgoing(self) -> list[OutgoingMessage]:
        """Take the messages to publish so far."""
        # At a deadline, the caller and the last handler may do this at the same time.
        with self._runner.lock:
            fresh = self._batches[self._emitted :]
            self._emitted = len(self._batches)
        return [message for pending in fresh if pending.outgoing for message in pending.outgoing.values()]

    def add_failure(self, failure: Failure) -> None:
        """Add a failure."""
        with self._runner.lock:
            if self.failures is None:
                self.failures = []
            self.failures.append(failure)

    def take_failures(self) -> list[Failure]:
        """Take the failures so far, for the caller. Later ones are logged."""
        with self._runner.lock:
            self._failures_taken = True
            return self._take_failures()

    def log(self, failures: Sequence[Failure]) -> None:
        """Log failures that no caller waits for, and an interruption."""
        log_failures(failures)
        if self.interruption is not None:
            kind = type(self.interruption).__qualname__
            logger.error("an event handler raised %s and no caller waits for it", kind, exc_info=self.interruption)

    def _take_failures(self) -> list[Failure]:
        failures, self.failures = self.failures, None
        return failures or []

    def _has_calls(self, pending: PendingEvents) -> bool:
        """Tell whether a handler may have to run: one that was bound after the events were staged runs as well."""
        return pending.has_calls or pending.version != self._runner.wiring.event_map.version

    def _count(self) -> int:
        routes = self._runner.routes
        return sum(len(routes[type(event)].after_commit) for pending in self._batches for event in pending.events)

    def _calls(self) -> Iterator[Call | None]:
        routes, event_map = self._runner.routes, self._runner.wiring.event_map
        batches = self._batches
        invoke = self._invoke if self._until is None else self._invoke_watched
        while True:
            while self._started < len(batches):
                pending = batches[self._started]
                self._started += 1
                for event in pending.events:
                    if routes.version != event_map.version:
                        routes.refresh()
                    for call in routes[type(event)].after_commit:
                        if self._stopped and not self._runs_after_cycle(pending):
                            break
                        yield invoke, call, event, pending
            # The executor asks again when a handler may have raised more.
            yield None

    def _runs_after_cycle(self, pending: PendingEvents) -> bool:
        """A cycle stops follow-up events only: events of the request itself are still handled."""
        return self._has_cycle and pending.lineage is None

    def _invoke(self, call: HandlerCall, event: Event, pending: PendingEvents) -> None:
        if self._stopped and not self._runs_after_cycle(pending):
            # The executor had taken the call before the failure.
            return
        raised: list[Event] = []
        flow = pending.flow
        if pending.outgoing and (message := pending.outgoing.get(id(event))) is not None:
            flow = {**flow, "causationid": message.id}
        # Never set back: the executor makes each call in its own context.
        _enter((raised, flow, (event, pending.lineage)))
        try:
            if call.build is None:
                for follow_up in call.invoke(event, raised, self._runner.stage)[1]:
                    self.add(follow_up)
                return
            # What `invoke` would do, without calling it: with that call an event takes 10 % more instructions.
            handler = call.build()
            try:
                handler.handle(event)
            finally:
                if handler._raised:  # noqa: SLF001 -- as in `handler_call`
                    raised.extend(drain_raised(handler))
            if raised:
                self.add(self._runner.stage(raised))
        except BaseException as error:  # noqa: BLE001 -- the failure policy gets it
            self._fail(call, event, error)

    def _invoke_watched(self, call: HandlerCall, event: Event, pending: PendingEvents) -> None:
        thread = threading.get_ident()
        with self._runner.lock:
            self._begun += 1
            self._running[thread] = call, event
        try:
            self._invoke(call, event, pending)
        finally:
            # Either `record_unfinished` reports a late handler, or this does.
            with self._runner.lock:
                del self._running[thread]
                unattended = self.unattended
            late = time.monotonic() - (self._until or math.inf)
            if late > 0 and not unattended:
                error = HandlerOverran(
                    f"{call.name} finished with {type(event).__qualname__} {late:.1f} s after the deadline"
                )
                self.add_failure(Failure(call.name, event, error))

    def _fail(self, call: HandlerCall, event: Event, error: BaseException) -> None:
        if not isinstance(error, Exception):
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise error
            self.interruption = error
            return
        if isinstance(error, EventCycle):
            # Each branch of a cycle would report it: once is enough.
            known, self._has_cycle = self._has_cycle, True
            if known:
                return
            self._stopped = True
        error.add_note(f"in {call.name}, handling {type(event).__qualname__}")
        failure = Failure(call.name, event, error)
        self.add_failure(failure)
        if not self._runner.wiring.failure_policy.should_continue(failure):
            self._stopped, self._has_cycle = True, False


def _recurring(pending: PendingEvents) -> int:
    """Count events that follow, at any distance, from an event of their own type."""
    types = {type(event) for event in pending.events}
    lineage = pending.lineage
    while lineage is not None:
        event, lineage = lineage
        if type(event) in types:
            return sum(type(each) is type(event) for each in pending.events)
    return 0
