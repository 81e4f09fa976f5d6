"""Bring a request to its handler and events to theirs, until no event is left."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextvars import copy_context
from typing import Any, cast

from cqrs_sync import context
from cqrs_sync.container import Container
from cqrs_sync.context import Lineage
from cqrs_sync.emitter import EventEmitter
from cqrs_sync.errors import BrokerNotConfigured, EventCycle, Failure
from cqrs_sync.failures import Collect, FailurePolicy, log_failures
from cqrs_sync.invocation import Invocation, compile_invocation
from cqrs_sync.messages import Event, NotificationEvent, R, Request
from cqrs_sync.middleware import MiddlewareChain
from cqrs_sync.registry import Binding, EventMap, Phase, RequestMap
from cqrs_sync.runs import Run, Staged, Target
from cqrs_sync.threads import Executor, SameThread
from cqrs_sync.transactions import NoTransactions, Transactions

logger = logging.getLogger(__name__)


class EventDispatcher:
    """
    Dispatches events to their handlers, follow-up events included, and has notification events emitted.

    It closes nothing of what it is given.
    """

    def __init__(
        self,
        event_map: EventMap,
        container: Container,
        *,
        emitter: EventEmitter | None = None,
        threads: Executor | None = None,
        transactions: Transactions | None = None,
        middleware: MiddlewareChain | None = None,
        failures: FailurePolicy | None = None,
        max_depth: int = 16,
    ) -> None:
        self.emitter = emitter
        self.threads = threads or SameThread()
        self.failures = failures or Collect()
        self._max_depth = max_depth
        self._event_map = event_map
        self._container = container
        self._middleware = middleware or MiddlewareChain()
        self._transactions = transactions or NoTransactions()
        self._targets: dict[type, tuple[Target, ...]] = {}
        self._inline: dict[type, tuple[Invocation[list[Event]], ...]] = {}
        event_map.on_change(self._forget)

    def dispatch(self, *events: Event, emit: bool = True) -> None:
        """
        Dispatch events to their handlers, then emit those that are notifications.

        Inside a transaction it returns at once, and all this happens when that commits.
        Raises EventsFailed, as the failure policy says.
        """
        self.conclude([self.stage(events, emit=emit)], None)

    def stage(self, raised: Iterable[Event], *, emit: bool = True) -> Staged:
        """
        Do what belongs inside the transaction: inline handlers, and the bytes of notifications.

        What raises here fails the handler that raised the events.
        """
        scope = context.current.get()
        staged = Staged({}, None) if scope is None else Staged(scope[1], scope[2])
        self._check_depth(staged.lineage)
        waiting = deque((event, staged.lineage) for event in raised)
        seen: set[int] = set()
        while waiting:
            event, parent = waiting.popleft()
            if id(event) in seen:
                continue
            seen.add(id(event))
            staged.events.append(event)
            self._prepare(event, staged, emit=emit)
            for invoke in self._inline_of(type(event)):
                lineage = event, parent
                for follow_ups in invoke(event)[1]:
                    self._check_depth(lineage)
                    waiting.extend((follow_up, lineage) for follow_up in follow_ups)
        if self._transactions.active():
            staged.committed = False
            # Looked up at the commit: whoever no longer waits for it replaces `commit`.
            self._transactions.on_commit(lambda: staged.commit())  # noqa: PLW0108
        return staged

    def conclude(self, stages: Sequence[Staged], response: Any) -> None:
        """Dispatch and emit what has committed; what has not is left to its commit."""
        committed = [staged for staged in stages if staged.committed]
        if len(committed) < len(stages):
            for staged in stages:
                if not staged.committed:
                    self._leave_to_commit(staged)
        if committed:
            run, until = self._start(committed)
            if not self.threads.run(run, until=until, helping=not self._transactions.active()):
                run.leave()
            self._emit(run)
            if run.interruption is not None:
                log_failures(run.take_failures())
                raise run.interruption
            if failures := run.take_failures():
                self.failures.settle(failures, response)

    def targets_of(self, event_type: type) -> tuple[Target, ...]:
        """Return the handlers that run after the commit, ready to be called."""
        targets = self._targets.get(event_type)
        if targets is None:
            middlewares = self._middleware.of(event_type)
            targets = self._targets[event_type] = tuple(
                Target(binding.name, compile_invocation(binding, self._container, middlewares, self.stage))
                for binding in self._bindings(event_type, Phase.AFTER_COMMIT)
            )
        return targets

    def _inline_of(self, event_type: type) -> tuple[Invocation[list[Event]], ...]:
        inline = self._inline.get(event_type)
        if inline is None:
            middlewares = self._middleware.of(event_type)
            inline = self._inline[event_type] = tuple(
                compile_invocation(binding, self._container, middlewares, _as_raised)
                for binding in self._bindings(event_type, Phase.INLINE)
            )
        return inline

    def _bindings(self, event_type: type, phase: Phase) -> list[Binding]:
        return [binding for binding in self._event_map.find(event_type) if binding.phase is phase]

    def _prepare(self, event: Event, staged: Staged, *, emit: bool) -> None:
        if emit and isinstance(event, NotificationEvent):
            if self.emitter is None:
                raise BrokerNotConfigured(
                    f"{type(event).__qualname__} has nowhere to go: give bootstrap a broker, "
                    "cqrs_sync.memory.MemoryBroker() where nobody is to receive it"
                )
            staged.outgoing[id(event)] = self.emitter.prepare(event)
        elif not self._event_map.find(type(event)):
            logger.warning("no handler is bound to %s: it was raised for nobody", type(event).__qualname__)

    def _check_depth(self, lineage: Lineage | None) -> None:
        titles: list[str] = []
        while lineage is not None:
            event, lineage = lineage
            titles.append(type(event).__qualname__)
        if len(titles) > self._max_depth:
            shown = " -> ".join(reversed(titles[:6]))
            raise EventCycle(
                f"events raise each other without end: ... -> {shown}; "
                f"after {self._max_depth} follow-ups the rest was dropped, "
                "break the cycle or give bootstrap a larger max_depth"
            )

    def _start(self, stages: Sequence[Staged]) -> tuple[Run, float | None]:
        """Make a run; its handlers have until a little before the deadline, what is to be published has the rest."""
        until = context.deadline_at()
        if until is not None and any(staged.outgoing for staged in stages):
            until -= _reserve(until)
        run = Run(stages, self.targets_of, self.failures, self._leave_to_commit, self._finish_late, until=until)
        return run, until

    def _emit(self, run: Run) -> None:
        outgoing = run.take_outgoing()
        if not outgoing or self.emitter is None:
            return
        deadline = context.deadline_at()
        try:
            if deadline is None:
                self.emitter.publish(outgoing)
            else:
                # What a late handler has committed is announced all the same.
                with context.allowing(max(deadline - time.monotonic(), _LEAST_TO_PUBLISH)):
                    self.emitter.publish(outgoing)
        except Exception as error:  # noqa: BLE001 -- it goes to the failure policy
            run.add_failure(Failure("publish", None, error))

    def _leave_to_commit(self, staged: Staged) -> None:
        """Conclude events at their commit, with nobody left to be told of failures."""
        surroundings = copy_context()
        surroundings.run(context.forget_deadline)

        def conclude() -> None:
            run, until = self._start([staged])
            self.threads.run(run, until=until, helping=not self._transactions.active())
            self._finish_late(run)

        staged.commit = lambda: surroundings.run(conclude)

    def _finish_late(self, run: Run) -> None:
        self._emit(run)
        log_failures(run.take_failures())

    def _forget(self) -> None:
        self._targets.clear()
        self._inline.clear()


class RequestDispatcher:
    """Brings a request to its handler and what that raises to an EventDispatcher."""

    def __init__(
        self,
        request_map: RequestMap,
        container: Container,
        events: EventDispatcher,
        *,
        middleware: MiddlewareChain | None = None,
    ) -> None:
        self._request_map = request_map
        self._container = container
        self._events = events
        self._middleware = middleware or MiddlewareChain()
        self._invocations: dict[type, Invocation[Staged]] = {}

    def dispatch(self, request: Request[R]) -> R:
        """
        Run the request's handler in this thread and return its response.

        Raises what the handler raises; HandlerNotFound; EventsFailed, as the failure policy says.
        """
        request_type = type(request)
        invoke = self._invocations.get(request_type) or self._compile(request_type)
        response, stages = invoke(request)
        if stages:
            self._events.conclude(stages, response)
        return cast("R", response)

    def _compile(self, request_type: type) -> Invocation[Staged]:
        binding = self._request_map.find(request_type)
        middlewares = self._middleware.of(request_type)
        invocation = compile_invocation(binding, self._container, middlewares, self._events.stage)
        self._invocations[request_type] = invocation
        return invocation


def _as_raised(raised: list[Event]) -> list[Event]:
    return raised


def _reserve(deadline: float) -> float:
    """Seconds of the time that is left which are kept for publishing."""
    return min(1.0, max(0.0, deadline - time.monotonic()) / 10)


_LEAST_TO_PUBLISH = 0.1
