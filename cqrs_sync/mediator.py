"""The front door: send requests, send events, receive messages."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

from cqrs_sync import context
from cqrs_sync.broker import IncomingMessage
from cqrs_sync.dispatch.dispatcher import EventDispatcher, RequestDispatcher
from cqrs_sync.errors import Closed
from cqrs_sync.inbox import key_of
from cqrs_sync.messages import Event, R, Request
from cqrs_sync.relay import Relay
from cqrs_sync.threads.watchdog import unwatch, watch
from cqrs_sync.wiring import Wiring

M = TypeVar("M")
T = TypeVar("T")


class EventMediator:
    """Brings events to their handlers: one's own, and those received from a broker."""

    def __init__(self, wiring: Wiring, dispatcher: EventDispatcher) -> None:
        #: All parts of the mediator.
        self.wiring = wiring
        #: Dispatches events sent here, and those that requests raise.
        self.dispatcher = dispatcher
        self._receive = wiring.middleware.wrap(IncomingMessage, self._handle)
        self._closed = False

    def send(self, event: Event, /, *, timeout: float | None = None) -> None:
        """
        Dispatch an event as if a handler had raised it, and emit it if it is a notification.

        Raises EventsFailed as the failure policy says. `timeout` is that of `RequestMediator.send`.
        """
        self._check_open()
        if timeout is None:
            self.dispatcher.dispatch(event)
        else:
            _within(timeout, self.dispatcher.dispatch, event)

    def receive(self, message: IncomingMessage, /) -> None:
        """
        Handle a message from a broker; returns when all its handlers have succeeded.

        It is not published again. What its handlers raise carries its correlation id
        and trace, and its id as causation. Raises MalformedMessage and
        UnknownMessageType for what is no event bound here, EventsFailed for handlers.

        With an inbox each handler has its effect once, however often the message comes: see
        `EventDispatcher.handle_received`. After a failure, call it again; those that succeeded do not run then.
        """
        self._check_open()
        self._receive(message)

    def close(self) -> None:
        """Refuse further events; the threads and the broker belong to whoever made them."""
        self._closed = True

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("this mediator is closed")

    def _handle(self, message: IncomingMessage) -> None:
        event, attributes = self.wiring.serializer.load(message, self.wiring.event_map.types)
        before = context.current.get()
        try:
            context.follow(attributes)
            self.dispatcher.handle_received(event, key_of(attributes))
        finally:
            # Here and not in a block of its own, as in `_within`.
            context.current.set(before)


class RequestMediator:
    """
    Brings requests to their handlers.

    `send` may be called from any thread, in handlers too. `close()` or leaving the
    `with` block closes the threads and the broker that were given to `bootstrap`.
    """

    def __init__(self, wiring: Wiring, dispatcher: EventDispatcher, relay: Relay | None = None) -> None:
        #: All parts of this mediator, to look at.
        self.wiring = wiring
        #: For events that no request raises, and for messages received from a broker.
        self.events = EventMediator(wiring, dispatcher)
        #: Delivers what the outbox keeps; None without an outbox.
        self.relay = relay
        requests = RequestDispatcher(wiring, dispatcher)
        self._dispatch = requests.dispatch
        self._dispatch_once = requests.dispatch_once
        self._closed = False

    def send(self, request: Request[R], /, *, timeout: float | None = None, once: str | None = None) -> R:
        """
        Run the request's handler in this thread and return what it answers.

        Events it raises are handled and notification events confirmed by the broker
        when this returns; inside a surrounding transaction, when that has committed.
        What an outbox keeps is delivered after the commit, which this does not wait for.

        `timeout` (seconds) is a deadline for everything that waits: event handlers,
        brokers, nested sends. A handler is never killed by it, but reported with its stack.

        `once` is an idempotency key: the first `send` of this class of request with it runs the handler, and keeps the
        response in the inbox, in the same transaction; later ones return that response, and raise no events. A
        handler that fails has used no key. Raises AlreadyUsed where the key came with another content,
        SerializationError where the response cannot become JSON, ConfigurationError without an inbox.

        Raises what the handler raises, and then its events are dropped. Raises
        EventsFailed, with the response, when something after the handler fails;
        HandlerNotFound; Closed after `close()`.
        """
        if self._closed:
            raise Closed("this mediator is closed")
        if once is not None:
            return self._send_once(request, once, timeout)
        if timeout is None:
            return self._dispatch(request)
        return _within(timeout, self._dispatch, request)

    def _send_once(self, request: Request[R], key: str, timeout: float | None) -> R:
        if timeout is None:
            return self._dispatch_once(request, key)
        return _within(timeout, lambda request: self._dispatch_once(request, key), request)

    def close(self, timeout: float = 10.0) -> None:
        """
        Refuse further requests, let running handlers finish, close threads and broker.

        What an outbox keeps is delivered before, as far as there is time. All that within
        `timeout` seconds. A second call does nothing.
        """
        if self._closed:
            return
        self._closed = True
        self.events.close()
        # The relay needs the threads and the broker, and handlers on the threads may publish.
        deadline = time.monotonic() + timeout
        if self.relay is not None:
            self.relay.close(timeout / 2, drain=True)
            timeout = max(0.1, deadline - time.monotonic())
        self.wiring.threads.close(timeout)
        if self.wiring.broker is not None:
            self.wiring.broker.close(max(0.1, deadline - time.monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self.close()


def _within(timeout: float, dispatch: Callable[[M], T], message: M) -> T:
    until, outer = context.nearest(timeout), context.deadline_at()
    number = watch(message, timeout)
    try:
        context.set_deadline(until)
        return dispatch(message)
    finally:
        # Here and not in a block of its own: what a signal handler raises (Ctrl-C, a time limit of Celery) would
        # keep it from being left, and this thread would never have time again.
        context.set_deadline(outer)
        unwatch(number)
