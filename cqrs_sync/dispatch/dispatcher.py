"""Bring a request to its handler and events to theirs, until no event is left."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextvars import copy_context
from typing import Any, cast

from cqrs_sync import context
from cqrs_sync.dispatch.handler_call import Invocation, compile_invocation
from cqrs_sync.dispatch.run import Run
from cqrs_sync.dispatch.stager import Stager
from cqrs_sync.dispatch.staging import Staged, Target
from cqrs_sync.errors import ConfigurationError, Failure, HandlerNotFound
from cqrs_sync.failures import failed, log_failures
from cqrs_sync.idempotency import RequestGuard, once_for
from cqrs_sync.lifecycle import reset_in_child
from cqrs_sync.messages import Event, R, Request
from cqrs_sync.middleware import Middleware
from cqrs_sync.wiring import Wiring

logger = logging.getLogger(__name__)

#: Seconds that publishing is given at least.
_LEAST_TO_PUBLISH = 0.1

get, enter = context.current.get, context.current.set


class EventDispatcher:
    """
    Dispatches events to their handlers, follow-up events included, and has notification events emitted.

    It closes nothing of what it is given.
    """

    def __init__(self, wiring: Wiring) -> None:
        #: Guards what handlers of one request add while others run.
        self.lock = threading.Lock()
        reset_in_child(self)
        self.use(wiring)

    def use(self, wiring: Wiring) -> None:
        """Use these parts from now on. `cqrs_sync.testing.record` exchanges some of them for a while."""
        self.wiring = wiring
        #: Does with events what belongs inside the transaction.
        self.stager = Stager(wiring)
        #: What is to be done with events of each type.
        self.routes = self.stager.routes
        self.failures = wiring.failures
        self.observer = wiring.observer

    def stage(self, raised: list[Event], *, emit: bool = True) -> Staged:
        """Do what belongs inside the transaction."""
        return self.stager.stage(raised, emit=emit)

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

    def run_durable(self, name: str, event: Event, /) -> None:
        """
        Run one durable handler with an event that was stored, and dispatch what it raises.

        Raises what the handler raises; HandlerNotFound where none of this stable name is bound
        to the event. What fails after the handler is logged: the handler is not to run again for it.
        """
        target = self.routes.durable_target(type(event), name)
        if target is None:
            raise HandlerNotFound(f"no durable handler named {name!r} is bound to {type(event).__qualname__}")
        self._run_alone(target, event)

    def handle_received(self, event: Event, key: str, /) -> None:
        """
        Run the handlers of an event that came from elsewhere, whatever their phase; `key` names it.

        In the calling thread, one after the other. With an inbox each has a transaction of its own with the inbox's
        row in it, and those that are done for this key are left out. What a handler raises is dispatched
        after its commit; what fails then is logged.

        Raises EventsFailed for those that failed, when all have had their turn; an inbox lets only those run again.
        """
        targets = self.routes.received(type(event))
        if not targets:
            logger.warning("no handler is bound to %s: it came for nobody", type(event).__qualname__)
        if self.observer is not None:
            self.observer([event])
        if self.wiring.inbox is None:
            failures = self._run_each(targets, event)
        else:
            with once_for(key):
                failures = self._run_each(targets, event)
        if failures:
            raise failed(failures, None, f"{type(event).__qualname__} was received")

    def _run_each(self, targets: Sequence[Target], event: Event) -> list[Failure]:
        failures: list[Failure] = []
        for target in targets:
            try:
                self._run_alone(target, event)
            except Exception as error:  # noqa: BLE001 -- the others have their turn
                error.add_note(f"in {target.name}, handling {type(event).__qualname__}")
                failures.append(Failure(target.name, event, error))
        return failures

    def _run_alone(self, target: Target, event: Event) -> None:
        """Run one handler in this thread, with nobody who waits for what it raises."""
        scope = get()
        raised: list[Event] = []
        try:
            enter((raised, {} if scope is None else scope[1], (event, None)))
            _, stages = target.invoke(event, raised)
        finally:
            enter(scope)
        for staged in stages:
            if staged.committed:
                self._conclude_unattended(staged)
            else:
                self.leave_to_commit(staged)

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
        self._emit(run)
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
            until -= context.reserve(until)
        run = Run(stages[:1], self, until)
        for staged in stages[1:]:
            # Of a middleware, or of a handler that a middleware called again.
            run.follow(staged)
        timeout = None if until is None else until - time.monotonic()
        if self.wiring.threads.run(run, timeout=timeout, may_help=not self.stager.transaction_is_open()):
            run.finish()
        else:
            run.leave()
        self._emit(run)
        return run

    def _emit(self, run: Run) -> None:
        emitter = self.wiring.emitter
        if self.wiring.outbox is not None or not (outgoing := run.take_outgoing()):
            # What is in an outbox is published from there.
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

    def __init__(self, wiring: Wiring, events: EventDispatcher) -> None:
        self._wiring = wiring
        self._events = events
        self._invocations: dict[type, Invocation[Staged]] = {}
        self._guarded: dict[type, Invocation[Staged]] = {}

    def dispatch(self, request: Request[R], invoke: Invocation[Staged] | None = None) -> R:
        """
        Run the request's handler in this thread and return its response.

        Raises what the handler raises; HandlerNotFound; EventsFailed, as the failure policy says.
        """
        if invoke is None:
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

    def dispatch_once(self, request: Request[R], key: str) -> R:
        """
        Do the same the first time that this key comes with a request of this class, and answer from the inbox later.

        Raises what `dispatch` raises; AlreadyUsed where the key came with another request; SerializationError for a
        request or a response that cannot become JSON; ConfigurationError without an inbox; ValueError for what
        cannot be a key.
        """
        request_type = type(request)
        invoke = self._guarded.get(request_type)
        if invoke is None:
            inbox = self._wiring.inbox
            if inbox is None:
                raise ConfigurationError(f"{request_type.__qualname__} is to be done once: give bootstrap an inbox")
            guard = RequestGuard(inbox, request_type)
            invoke = self._guarded[request_type] = self._compiled(request_type, guard)
        with once_for(key):
            return self.dispatch(request, invoke)

    def _compile(self, request_type: type) -> Invocation[Staged]:
        invocation = self._invocations[request_type] = self._compiled(request_type)
        return invocation

    def _compiled(self, request_type: type, *innermost: Middleware) -> Invocation[Staged]:
        binding = self._wiring.request_map.find(request_type)
        middlewares = [*self._wiring.middleware.of(request_type), *innermost]
        return compile_invocation(binding, self._wiring.container, middlewares, self._events.stage)
