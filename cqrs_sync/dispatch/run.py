"""One run: the events of a request, the calls they ask for, and what became of them."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.context import current
from cqrs_sync.dispatch.handler_call import take_strays
from cqrs_sync.dispatch.staging import Route, Staged, Target
from cqrs_sync.errors import DeadlineExceeded, EventCycle, Failure, HandlerOverran
from cqrs_sync.failures import FailurePolicy
from cqrs_sync.messages import Event
from cqrs_sync.threads.executor import Call
from cqrs_sync.threads.watchdog import stacks_of


class Surroundings(Protocol):
    """What a run needs of the dispatcher that made it."""

    failures: FailurePolicy
    lock: threading.Lock
    observer: Callable[[Sequence[Event]], object] | None

    @property
    def routes(self) -> Mapping[type, Route]:
        """Return what is to be done with events of each type."""

    def stage(self, raised: list[Event], /) -> Staged:
        """Do what belongs inside the transaction."""

    def leave_to_commit(self, staged: Staged, /) -> None:
        """Conclude these events at their commit, which nobody waits for."""

    def conclude_late(self, run: Run, /) -> None:
        """Conclude a run that nobody waits for any more."""


class Run:
    """The events of a request and what they ask for, as work for an executor."""

    # Defaults that most runs never change: a run is made for each request with events.
    _seen: set[int] | None = None
    _taken = 0
    _recurring = 0
    _emitted = 0
    #: What has failed by now.
    failures: list[Failure] | None = None
    _stopped = False
    _cycle = False
    _settled = False
    #: The caller has left at its deadline.
    unattended = False
    #: What a handler raised that is no Exception, such as SystemExit.
    interruption: BaseException | None = None

    def __init__(self, stages: list[Staged], surroundings: Surroundings, until: float | None) -> None:
        self._stages = stages
        self._surroundings = surroundings
        self._until = until
        if until is not None:
            # Who runs what.
            self._running: dict[int, tuple[Target, Event]] = {}
            self._begun = 0
        #: Return the next call, None where there is none now: breadth first, follow-up events come last.
        self.next_call: Callable[[], Call | None] = self._calls().__next__

    def call_failed(self, call: Call, error: BaseException, /) -> None:
        """Note that a handler could not be called: that is a failure as any of its own."""
        _, target, event, _ = call
        if self._until is not None:
            with self._surroundings.lock:
                self._begun += 1
        self._fail(target, event, error)

    def finished_late(self) -> None:
        """All handlers are finished, after the caller has left at its deadline."""
        self._surroundings.conclude_late(self)

    def finish(self) -> None:
        """Take the run and its iteration apart: they hold each other, which is work for the garbage collector."""
        del self.next_call

    def take_outgoing(self) -> list[OutgoingMessage]:
        """Take the messages that are to be published by now."""
        # At a deadline, the caller and the last handler may do this at once.
        with self._surroundings.lock:
            fresh = self._stages[self._emitted :]
            self._emitted = len(self._stages)
        return [message for staged in fresh if staged.outgoing for message in staged.outgoing.values()]

    def take_failures(self) -> list[Failure]:
        """Take the failures there are by now, for whoever sent the request."""
        with self._surroundings.lock:
            self._settled = True
            failures, self.failures = self.failures, None
        return failures or []

    def take_late_failures(self) -> list[Failure]:
        """Take the failures that whoever sent the request can no longer take."""
        with self._surroundings.lock:
            if not self._settled:
                return []
            failures, self.failures = self.failures, None
        return failures or []

    def add_failure(self, failure: Failure) -> None:
        """Note a failure."""
        with self._surroundings.lock:
            if self.failures is None:
                self.failures = []
            self.failures.append(failure)

    def leave(self) -> None:
        """Note as failures what is not finished at the deadline; it goes on with nobody waiting."""
        count = 0 if self._stopped else self._count()
        with self._surroundings.lock:
            self.unattended = True
            running, ahead = dict(self._running), count - self._begun
        stacks = stacks_of(running)
        for thread, (target, event) in running.items():
            self.add_failure(Failure(target.name, event, _overran(target, event, stacks[thread])))
        if ahead > 0:
            error = f"{ahead} call(s) of handlers had not begun at the deadline; they will, with nobody waiting"
            self.add_failure(Failure("events", None, DeadlineExceeded(error)))

    def _count(self) -> int:
        routes = self._surroundings.routes
        return sum(len(routes[type(event)].targets) for staged in self._stages for event in staged.events)

    def _calls(self) -> Iterator[Call | None]:
        routes = self._surroundings.routes
        stages = self._stages
        invoke = self._invoke if self._until is None else self._invoke_watched
        while True:
            while self._taken < len(stages):
                staged = stages[self._taken]
                self._taken += 1
                if self._surroundings.observer is not None:
                    self._surroundings.observer(staged.events)
                for event in staged.events:
                    for target in routes[type(event)].targets:
                        if self._stopped and (not self._cycle or staged.lineage is not None):
                            break
                        yield invoke, target, event, staged
            # Asked again after a handler may have raised more.
            yield None

    def _invoke(self, target: Target, event: Event, staged: Staged) -> None:  # noqa: PLR0912 -- each spares events a call
        if self._stopped and (not self._cycle or staged.lineage is not None):
            # An executor may have had it ready before the failure.
            return
        raised: list[Event] = []
        flow = staged.flow
        if staged.outgoing and (message := staged.outgoing.get(id(event))) is not None:
            flow = {**flow, "causationid": message.id}
        # In a context of its own: there is nothing to set back.
        current.set((raised, flow, (event, staged.lineage)))
        try:
            if target.build is not None:
                # What most handlers are, without a further call: this is the cost of an event.
                handler = target.build()
                try:
                    handler.handle(event)
                finally:
                    if handler._raised:  # noqa: SLF001 -- as in `invocation`
                        raised.extend(take_strays(handler))
                if raised:
                    self.follow(self._surroundings.stage(raised))
            else:
                for follow_up in target.invoke(event, raised)[1]:
                    self.follow(follow_up)
        except BaseException as error:  # noqa: BLE001 -- every failure goes to the policy
            self._fail(target, event, error)

    def _invoke_watched(self, target: Target, event: Event, staged: Staged) -> None:
        thread = threading.get_ident()
        with self._surroundings.lock:
            self._begun += 1
            self._running[thread] = target, event
        try:
            self._invoke(target, event, staged)
        finally:
            # Either whoever leaves at the deadline reports it, or this does.
            with self._surroundings.lock:
                del self._running[thread]
                unattended = self.unattended
            late = time.monotonic() - (self._until or math.inf)
            if late > 0 and not unattended:
                self.add_failure(Failure(target.name, event, _finished_late(target, event, late)))

    def _fail(self, target: Target, event: Event, error: BaseException) -> None:
        if not isinstance(error, Exception):
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise error
            self.interruption = error
            return
        if isinstance(error, EventCycle):
            # One report of a cycle will do: it would come from every branch of it.
            known, self._cycle = self._cycle, True
            if known:
                return
            # What the request itself raised is handled all the same.
            self._stopped = True
        error.add_note(f"in {target.name}, handling {type(event).__qualname__}")
        failure = Failure(target.name, event, error)
        self.add_failure(failure)
        if not self._surroundings.failures.goes_on(failure):
            self._stopped, self._cycle = True, False

    def follow(self, staged: Staged) -> None:
        """Join follow-up events to this run, each instance once."""
        if not staged.committed:
            self._surroundings.leave_to_commit(staged)
            return
        with self._surroundings.lock:
            if self._seen is None:
                self._seen = {id(event) for known in self._stages for event in known.events}
            seen = self._seen
            if staged.outgoing:
                staged.outgoing = {key: message for key, message in staged.outgoing.items() if key not in seen}
            staged.events = [event for event in staged.events if id(event) not in seen]
            seen.update(map(id, staged.events))
            self._stages.append(staged)
            self._recurring += _recurring(staged)
        if self._recurring > _MOST_RECURRING:
            raise EventCycle(
                f"{_MOST_RECURRING} events followed from events of their own type, "
                f"the last one was {type(staged.events[0]).__qualname__}; the rest was dropped, break the cycle"
            )


_MOST_RECURRING = 10_000


def _recurring(staged: Staged) -> int:
    """Count events that follow, at any distance, from one of their own type."""
    types = {type(event) for event in staged.events}
    lineage = staged.lineage
    while lineage is not None:
        event, lineage = lineage
        if type(event) in types:
            return sum(type(each) is type(event) for each in staged.events)
    return 0


def _finished_late(target: Target, event: Event, late: float) -> HandlerOverran:
    return HandlerOverran(f"{target.name} was finished with {type(event).__qualname__} {late:.1f} s after the deadline")


def _overran(target: Target, event: Event, stack: str) -> HandlerOverran:
    title = type(event).__qualname__
    return HandlerOverran(f"{target.name} was not finished with {title} at the deadline; it goes on, at:\n{stack}")
