"""Bring a request to its handler, and events to theirs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

from cqrs_sync import context
from cqrs_sync.dispatch.handler_call import HandlerCall, Invoke, compile_call
from cqrs_sync.dispatch.routing import Routing
from cqrs_sync.dispatch.run import EventRunner
from cqrs_sync.dispatch.staging import PendingEvents, Staging
from cqrs_sync.errors import ConfigurationError, Failure
from cqrs_sync.failures import events_failed, log_failures
from cqrs_sync.inbox import IdempotentRequest, idempotency_key
from cqrs_sync.messages import Event, R, Request
from cqrs_sync.middleware import Middleware
from cqrs_sync.wiring import Wiring

logger: logging.Logger = logging.getLogger(__name__)

_get, _enter = context.current.get, context.current.set


class EventDispatcher:
    """Stages events inside their transaction, and runs their handlers after its commit."""

    def __init__(self, wiring: Wiring, wake_relay: Callable[[], object] = lambda: None) -> None:
        """Call `wake_relay` after each commit to the outbox; it must not raise."""
        self._wake_relay = wake_relay
        self.use(wiring)

    def use(self, wiring: Wiring) -> None:
        """Use these parts from now on. `cqrs_sync.testing.record` exchanges some of them for a while."""
        self.wiring = wiring
        routing = Routing(wiring)
        self._received, self._durable = routing.received, routing.durable
        staging = Staging(wiring, routing.routes, self._wake_relay)
        self._runner = EventRunner(wiring, routing.routes, staging)
        self.stage: Callable[..., PendingEvents] = staging.stage

    def dispatch(self, *events: Event, emit: bool = True) -> None:
        """
        Dispatch events to their handlers, then publish notification events.

        Inside a transaction it returns at once, and all this happens at the commit.
        Raises EventsFailed, as the failure policy says.
        """
        scope = _get()
        try:
            _enter(scope or (context.outside, {}, None))
            pending = self.stage(list(events), emit=emit)
        finally:
            _enter(scope)
        self.run_committed((pending,), None)

    def durable_call(self, event_type: type, name: str) -> HandlerCall:
        """Return the durable handler of this stable name. Raises HandlerNotFound if it is not bound to these events."""
        if self._durable.version != self.wiring.event_map.version:
            self._durable.refresh()
        return self._durable[event_type, name]

    def run_handler(self, call: HandlerCall, event: Event, /) -> None:
        """
        Run one handler in this thread, and dispatch what it raises. No caller waits for these events.

        Raises what the handler raises. Failures after it are logged: they are no reason to run the handler again.
        """
        scope = _get()
        raised: list[Event] = []
        try:
            _enter((raised, {} if scope is None else scope[1], (event, None)))
            _, batches = call.invoke(event, raised, self.stage)
        finally:
            _enter(scope)
        for pending in batches:
            if pending.committed:
                self._runner.run_unattended(pending)
            else:
                self._runner.run_at_commit(pending)

    def handle_received(self, event: Event, key: str, /) -> None:
        """
        Run the handlers of an event from a broker, whatever their phase. `key` identifies the message.

        They run in the calling thread, one after the other. With an inbox each handler has its own transaction, which
        contains the receipt, and handlers with a receipt for this key are skipped. Events that a handler raises are
        dispatched after its commit; failures after that are logged.

        Raises EventsFailed with the handlers that failed, after all have run. With an inbox only those run again.
        """
        if self._received.version != self.wiring.event_map.version:
            self._received.refresh()
        calls = self._received[type(event)]
        if not calls:
            logger.warning("%s was received, but no handler is bound to it", type(event).__qualname__)
        if self.wiring.observer is not None:
            self.wiring.observer([event])
        if self.wiring.inbox is None:
            failures = self._run_each(calls, event)
        else:
            with idempotency_key(key):
                failures = self._run_each(calls, event)
        if failures:
            raise events_failed(failures, None, f"{type(event).__qualname__} was received")

    def run_committed(self, batches: Sequence[PendingEvents], response: Any) -> None:
        """Run the events that are committed, for a caller who waits. The others run at their commit."""
        committed: list[PendingEvents] = []
        for pending in batches:
            if pending.committed:
                committed.append(pending)
            else:
                self._runner.run_at_commit(pending)
        if not committed:
            return
        run = self._runner.run(committed)
        if run.interruption is not None:
            log_failures(run.take_failures())
            raise run.interruption
        if (run.failures or run.unattended) and (failures := run.take_failures()):
            self.wiring.failure_policy.report(failures, response)

    def _run_each(self, calls: Sequence[HandlerCall], event: Event) -> list[Failure]:
        failures: list[Failure] = []
        for call in calls:
            try:
                self.run_handler(call, event)
            except Exception as error:  # noqa: BLE001 -- the other handlers run all the same
                error.add_note(f"in {call.name}, handling {type(event).__qualname__}")
                failures.append(Failure(call.name, event, error))
        return failures


class RequestDispatcher:
    """Brings a request to its handler, and the handler's events to the EventDispatcher."""

    def __init__(self, wiring: Wiring, events: EventDispatcher) -> None:
        self._wiring = wiring
        self._events = events
        self._calls: dict[type, Invoke] = {}
        self._idempotent_calls: dict[type, Invoke] = {}

    def dispatch(self, request: Request[R], invoke: Invoke | None = None) -> R:
        """
        Run the request's handler in this thread and return its response.

        Raises what the handler raises; HandlerNotFound; EventsFailed, as the failure policy says.
        """
        if invoke is None:
            invoke = self._calls.get(type(request)) or self._compile(type(request))
        events = self._events
        scope = _get()
        raised: list[Event] = []
        try:
            # Set back by value, not by token: if a signal handler raises before the token is stored, the events and
            # attributes of this request would stay for all requests after it.
            _enter((raised, {}, None) if scope is None else (raised, scope[1], scope[2]))
            response, batches = invoke(request, raised, events.stage)
        finally:
            _enter(scope)
        if batches:
            events.run_committed(batches, response)
        return cast("R", response)

    def dispatch_once(self, request: Request[R], key: str) -> R:
        """
        Run the handler the first time a request of this class comes with this key; answer from the inbox after that.

        Raises what `dispatch` raises; IdempotencyKeyConflict if the key came with another request; SerializationError
        for a request or a response that cannot become JSON; ConfigurationError without an inbox; ValueError for an
        invalid key.
        """
        request_type = type(request)
        invoke = self._idempotent_calls.get(request_type)
        if invoke is None:
            inbox = self._wiring.inbox
            if inbox is None:
                raise ConfigurationError(
                    f"{request_type.__qualname__} was sent with an idempotency key, and this mediator has no inbox: "
                    "give bootstrap an inbox"
                )
            invoke = self._compiled(request_type, IdempotentRequest(inbox, request_type))
            self._idempotent_calls[request_type] = invoke
        with idempotency_key(key):
            return self.dispatch(request, invoke)

    def _compile(self, request_type: type) -> Invoke:
        invoke = self._calls[request_type] = self._compiled(request_type)
        return invoke

    def _compiled(self, request_type: type, *innermost: Middleware) -> Invoke:
        binding = self._wiring.request_map.find(request_type)
        middlewares = [*self._wiring.middleware.of(request_type), *innermost]
        return compile_call(binding, self._wiring.container, middlewares).invoke
