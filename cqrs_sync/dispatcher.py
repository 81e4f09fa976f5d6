"""Bring a request to its handler and events to theirs, until no event is left."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Any, cast

from cqrs_sync import context
from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.container import Container
from cqrs_sync.context import Flow, Lineage
from cqrs_sync.emitter import EventEmitter
from cqrs_sync.errors import BrokerNotConfigured, EventCycle, Failure
from cqrs_sync.failures import Collect, FailurePolicy, log_failures
from cqrs_sync.invocation import Invocation, compile_invocation
from cqrs_sync.lifecycle import reset_in_child
from cqrs_sync.messages import Event, NotificationEvent, R, Request
from cqrs_sync.middleware import MiddlewareChain
from cqrs_sync.registry import EventMap, RequestMap
from cqrs_sync.routes import Routes
from cqrs_sync.runs import Run
from cqrs_sync.staging import InlineTarget, Staged
from cqrs_sync.threads import Executor, SameThread
from cqrs_sync.transactions import NoTransactions, Transactions

logger = logging.getLogger(__name__)

get, enter, leave = context.current.get, context.current.set, context.current.reset


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
        #: Told of the events of each handler before they are dispatched; for tests.
        self.observer: Callable[[Sequence[Event]], object] | None = None
        self._max_depth = max_depth
        self._transactions = transactions or NoTransactions()
        self._transactional = not isinstance(self._transactions, NoTransactions)
        #: What is to be done with events of each type.
        self.routes = Routes(event_map, container, middleware or MiddlewareChain(), self.stage)
        #: Guards what handlers of one request add while others run.
        self.lock = threading.Lock()
        reset_in_child(self)

    def dispatch(self, *events: Event, emit: bool = True) -> None:
        """
        Dispatch events to their handlers, then emit those that are notifications.

        Inside a transaction it returns at once, and all this happens when that commits.
        Raises EventsFailed, as the failure policy says.
        """
        scope = get()
        try:
            enter(scope or (context.outside, {}, None))
            staged = self.stage(list(events), emit=emit)
        finally:
            enter(scope)
        self.conclude((staged,), None)

    def stage(self, raised: list[Event], *, emit: bool = True) -> Staged:
        """
        Do what belongs inside the transaction: inline handlers, and the bytes of notifications.

        What raises here fails the handler that raised the events.
        """
        _, flow, lineage = get() or (raised, {}, None)
        if lineage is not None:
            self._check_depth(lineage)
        staged = Staged(raised, flow, lineage)
        routes = self.routes
        if len(raised) > 1 and len(set(map(id, raised))) < len(raised):
            staged.events = list({id(event): event for event in raised}.values())
        for event in staged.events:
            if not routes[type(event)].plain:
                self._stage_with_care(staged, emit=emit)
                break
        if self._transactional and self._transactions.active():
            self._transactions.on_commit(staged.await_commit())
        return staged

    def conclude(self, stages: Sequence[Staged], response: Any) -> None:
        """Dispatch and emit what has committed; what has not is left to its commit."""
        committed: list[Staged] = []
        for staged in stages:
            if staged.committed:
                committed.append(staged)
            else:
                self.leave_to_commit(staged)
        if not committed:
            return
        run = self._run(committed)
        if run.interruption is not None:
            log_failures(run.take_failures())
            raise run.interruption
        if (run.failures or run.unattended) and (failures := run.take_failures()):
            self.failures.settle(failures, response)

    def leave_to_commit(self, staged: Staged, /) -> None:
        """Conclude events at their commit, with nobody left to be told of failures."""
        surroundings = copy_context()
        surroundings.run(context.forget_deadline)
        staged.commit = lambda: surroundings.run(self._conclude_unattended, staged)

    def conclude_late(self, run: Run, /) -> None:
        """Conclude a run whose caller has left at its deadline."""
        context.forget_deadline()
        run.finish()
        if self.emitter is not None:
            self._emit(run, self.emitter)
        self._log(run, run.take_late_failures())

    def _conclude_unattended(self, staged: Staged) -> None:
        run = self._run([staged])
        self._log(run, run.take_failures())

    def _log(self, run: Run, failures: Sequence[Failure]) -> None:
        log_failures(failures)
        if run.interruption is not None:
            logger.error("a handler raised what is no Exception, and nobody waits for it", exc_info=run.interruption)

    def _run(self, stages: list[Staged]) -> Run:
        """Run the handlers, then publish, for which a little of the time before the deadline is kept."""
        until = context.deadline_at()
        if until is not None and any(staged.outgoing for staged in stages):
            until -= _reserve(until)
        run = Run(stages[:1], self, until)
        for staged in stages[1:]:
            # Of a middleware, or of a handler that a middleware called again.
            run.follow(staged)
        helping = not (self._transactional and self._transactions.active())
        if self.threads.run(run, until=until, helping=helping):
            run.finish()
        else:
            run.leave()
        if self.emitter is not None:
            self._emit(run, self.emitter)
        return run

    def _stage_with_care(self, staged: Staged, *, emit: bool) -> None:
        """Stage events of which some are notifications, have inline handlers, or no handler at all."""
        waiting = deque((event, staged.lineage, staged.flow) for event in staged.events)
        events: dict[int, Event] = {}
        outgoing: dict[int, OutgoingMessage] = {}
        while waiting:
            event, parent, flow = waiting.popleft()
            if id(event) in events:
                continue
            events[id(event)] = event
            route = self.routes[type(event)]
            if emit and route.notification:
                message = outgoing[id(event)] = self._prepare(cast("NotificationEvent", event), flow)
                flow = {**flow, "causationid": message.id}
            elif not route.targets and not route.inline:
                logger.warning("no handler is bound to %s: it was raised for nobody", type(event).__qualname__)
            for target in route.inline:
                waiting.extend(self._call_inline(target, event, (event, parent), flow))
        staged.events = list(events.values())
        staged.outgoing = outgoing

    def _call_inline(
        self, target: InlineTarget, event: Event, lineage: Lineage, flow: Flow
    ) -> list[tuple[Event, Lineage | None, Flow]]:
        raised: list[Event] = []
        token = context.current.set((raised, flow, lineage))
        try:
            _, batches = target.invoke(event, raised)
        except Exception as error:
            error.add_note(f"in {target.name}, inline, handling {type(event).__qualname__}")
            raise
        finally:
            context.current.reset(token)
        if batches:
            self._check_depth(lineage)
        return [(follow_up, lineage, flow) for batch in batches for follow_up in batch]

    def _prepare(self, event: NotificationEvent, flow: Flow) -> OutgoingMessage:
        if self.emitter is None:
            raise BrokerNotConfigured(
                f"{type(event).__qualname__} has nowhere to go: give bootstrap a broker, "
                "cqrs_sync.memory.MemoryBroker() where nobody is to receive it"
            )
        token = enter((context.outside, flow, None))
        try:
            return self.emitter.prepare(event)
        finally:
            leave(token)

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

    def _emit(self, run: Run, emitter: EventEmitter) -> None:
        outgoing = run.take_outgoing()
        if not outgoing:
            return
        deadline = context.deadline_at()
        try:
            if deadline is None:
                emitter.publish(outgoing)
            else:
                # What a late handler has committed is announced all the same.
                with context.allowing(max(deadline - time.monotonic(), _LEAST_TO_PUBLISH)):
                    emitter.publish(outgoing)
        except Exception as error:  # noqa: BLE001 -- it goes to the failure policy
            run.add_failure(Failure("publish", None, error))

    def reset_in_child(self) -> None:
        """Replace the lock, which another thread of the parent may have held."""
        self.lock = threading.Lock()


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
        invoke = self._invocations.get(type(request)) or self._compile(type(request))
        scope = get()
        raised: list[Event] = []
        try:
            # Set back to what it was, not by a token: a signal handler may raise before that is kept, and what this
            # request carries would be carried by all that come after it.
            enter((raised, {}, None) if scope is None else (raised, scope[1], scope[2]))
            response, stages = invoke(request, raised)
        finally:
            enter(scope)
        if stages:
            self._events.conclude(stages, response)
        return cast("R", response)

    def _compile(self, request_type: type) -> Invocation[Staged]:
        binding = self._request_map.find(request_type)
        middlewares = self._middleware.of(request_type)
        invocation = compile_invocation(binding, self._container, middlewares, self._events.stage)
        self._invocations[request_type] = invocation
        return invocation


def _reserve(deadline: float) -> float:
    """Seconds of the time that is left which are kept for publishing."""
    return min(1.0, max(0.0, deadline - time.monotonic()) / 10)


_LEAST_TO_PUBLISH = 0.1
