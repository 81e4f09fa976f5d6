"""One run: the events of a request, the calls they ask for, and what became of them."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.context import Flow, Lineage, current
from cqrs_sync.errors import DeadlineExceeded, EventCycle, Failure, HandlerOverran
from cqrs_sync.failures import FailurePolicy
from cqrs_sync.fanout import Call
from cqrs_sync.invocation import Invocation
from cqrs_sync.messages import Event


class Staged:
    """
    Events that were raised and are to be dispatched once their transaction has committed.

    All that can fail without other threads or a broker has been done.
    """

    __slots__ = ("commit", "committed", "events", "flow", "lineage", "outgoing")

    def __init__(self, flow: Flow, lineage: Lineage | None) -> None:
        self.events: list[Event] = []
        #: The messages of notification events, by the identity of the event.
        self.outgoing: dict[int, OutgoingMessage] = {}
        #: What messages that follow from these events carry.
        self.flow = flow
        #: The event whose handler raised these, None for those of a request.
        self.lineage = lineage
        self.committed = True
        #: Called at the commit, replaced by whoever no longer waits for it.
        self.commit: Callable[[], object] = self._note_commit

    def _note_commit(self) -> None:
        self.committed = True


@attrs.frozen(eq=False)
class Target:
    """A handler that runs after the commit, ready to be called."""

    name: str
    invoke: Invocation[Staged]


class Run:
    """The events of a request and what they ask for, as work for an executor."""

    def __init__(
        self,
        stages: Sequence[Staged],
        targets_of: Callable[[type], tuple[Target, ...]],
        policy: FailurePolicy,
        leave_to_commit: Callable[[Staged], object],
        finish_late: Callable[[Run], object],
        *,
        until: float | None = None,
    ) -> None:
        self._stages = list(stages)
        self._targets_of = targets_of
        self._policy = policy
        self._until = until
        self._leave_to_commit = leave_to_commit
        self._finish_late = finish_late
        self._next_stage = 0
        self._calls = self._iterate()
        self._failures: list[Failure] = []
        self._lock = threading.Lock()
        self._seen: set[int] | None = None
        # Who runs what; kept only where there is a deadline.
        self._running: dict[int, tuple[Target, Event]] = {}
        self._stopped = False
        self._cycle = False
        self._unattended = False
        #: What a handler raised that is no Exception, such as SystemExit.
        self.interruption: BaseException | None = None
        self._outgoing = [message for staged in stages for message in staged.outgoing.values()]

    # -- work for an executor

    def next_call(self) -> Call | None:
        """Return the next call; breadth first, follow-up events come last."""
        call = next(self._calls, None)
        if call is None and self._next_stage < len(self._stages):
            # The iteration had ended before a handler raised more.
            self._calls = self._iterate()
            call = next(self._calls, None)
        return call

    def finished_late(self) -> None:
        """All handlers are finished, after the caller has left at its deadline."""
        self._finish_late(self)

    # -- for the dispatcher

    def take_outgoing(self) -> list[OutgoingMessage]:
        """Take the messages that are to be published by now."""
        with self._lock:
            outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def take_failures(self) -> list[Failure]:
        """Take the failures there are by now."""
        with self._lock:
            failures, self._failures = self._failures, []
        return failures

    def add_failure(self, failure: Failure) -> None:
        """Note a failure."""
        with self._lock:
            self._failures.append(failure)

    def leave(self) -> None:
        """Note as failures what is not finished at the deadline; it goes on with nobody waiting."""
        self._unattended = True
        running = dict(self._running)
        frames = sys._current_frames()  # noqa: SLF001 -- documented, for this
        for thread, (target, event) in running.items():
            self.add_failure(Failure(target.name, event, _overran(target, event, frames.get(thread))))
        if not running:
            error = DeadlineExceeded("handlers had not started at the deadline; they will run, with nobody waiting")
            self.add_failure(Failure("events", None, error))

    # -- calls

    def _iterate(self) -> Iterator[Call]:
        while self._next_stage < len(self._stages):
            staged = self._stages[self._next_stage]
            self._next_stage += 1
            for event in staged.events:
                for target in self._targets_of(type(event)):
                    if self._stopped or (self._cycle and staged.lineage is not None):
                        return
                    yield self._invoke, target, event, staged

    def _invoke(self, target: Target, event: Event, staged: Staged) -> None:
        flow = staged.flow
        if staged.outgoing and (message := staged.outgoing.get(id(event))) is not None:
            flow = {**flow, "causationid": message.id}
        # In a context of its own: there is nothing to set back.
        current.set(([], flow, (event, staged.lineage)))
        try:
            if self._until is None:
                _, stages = target.invoke(event)
            else:
                _, stages = self._invoke_watched(target, event, self._until)
        except Exception as error:  # noqa: BLE001 -- every failure goes to the policy
            self._fail(target, event, error)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise
            self.interruption = error
        else:
            for follow_up in stages:
                self._follow(follow_up)

    def _invoke_watched(self, target: Target, event: Event, until: float) -> tuple[Any, Sequence[Staged]]:
        thread = threading.get_ident()
        self._running[thread] = target, event
        try:
            return target.invoke(event)
        finally:
            del self._running[thread]
            late = time.monotonic() - until
            if late > 0 and not self._unattended:
                self.add_failure(Failure(target.name, event, _finished_late(target, event, late)))

    def _fail(self, target: Target, event: Event, error: Exception) -> None:
        if isinstance(error, EventCycle):
            # One report of a cycle will do: it would come from every branch of it.
            known, self._cycle = self._cycle, True
            if known:
                return
        error.add_note(f"in {target.name}, handling {type(event).__qualname__}")
        failure = Failure(target.name, event, error)
        self.add_failure(failure)
        if not self._policy.goes_on(failure):
            self._stopped = True

    def _follow(self, staged: Staged) -> None:
        """Join follow-up events to this run, each instance once."""
        if not staged.committed:
            self._leave_to_commit(staged)
            return
        with self._lock:
            if self._seen is None:
                self._seen = {id(event) for known in self._stages for event in known.events}
            seen = self._seen
            staged.events = [event for event in staged.events if id(event) not in seen]
            seen.update(map(id, staged.events))
            self._outgoing.extend(staged.outgoing[id(event)] for event in staged.events if id(event) in staged.outgoing)
            self._stages.append(staged)


def _finished_late(target: Target, event: Event, late: float) -> HandlerOverran:
    return HandlerOverran(f"{target.name} was finished with {type(event).__qualname__} {late:.1f} s after the deadline")


def _overran(target: Target, event: Event, frame: Any) -> HandlerOverran:
    stack = "".join(traceback.format_stack(frame)) if frame is not None else "(its thread is gone)"
    title = type(event).__qualname__
    return HandlerOverran(f"{target.name} was not finished with {title} at the deadline; it goes on, at:\n{stack}")
