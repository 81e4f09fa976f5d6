"""What applications call: send requests, send events, receive messages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Never, Self, TypeVar

import attrs

from cqrs_sync import context
from cqrs_sync.broker import IncomingMessage
from cqrs_sync.container import Container
from cqrs_sync.containers.overriding import OverridingContainer
from cqrs_sync.dispatch.dispatcher import EventDispatcher, RequestDispatcher
from cqrs_sync.errors import ClosedError, ConfigurationError
from cqrs_sync.inbox import key_of, scoped_key
from cqrs_sync.keywords import unknown_keywords
from cqrs_sync.messages import Event, R, Request
from cqrs_sync.threads.watchdog import unwatch, watch
from cqrs_sync.wiring import Wiring

if TYPE_CHECKING:
    from cqrs_sync.relay import Relay

M = TypeVar("M")
T = TypeVar("T")

#: Held while the overrides of a mediator change.
_overriding = threading.Lock()


class Mediator:
    """
    Brings requests and events to their handlers: those of this service, and events received from a broker.

    Any thread may call `send` and `publish`, handlers too. `close()` or the end of the `with` block closes the threads
    and the broker that `bootstrap` was given.
    """

    def __init__(self, wiring: Wiring, dispatcher: EventDispatcher, relay: Relay | None = None) -> None:
        #: All parts of this mediator.
        self.wiring = wiring
        #: Dispatches events that are published here, and those that requests raise.
        self.dispatcher = dispatcher
        #: Delivers what is in the outbox; None without an outbox.
        self.relay = relay
        self._requests = RequestDispatcher(wiring, dispatcher)
        self._dispatch = self._requests.dispatch
        self._dispatch_once = self._requests.dispatch_once
        # What `override` has put in place of services, the latest last.
        self._overrides: list[tuple[Any, Any]] = []
        self._receive = wiring.middleware.wrap(IncomingMessage, self._handle_received)
        #: Whether it was closed.
        self.is_closed: bool = False

    def send(
        self,
        request: Request[R],
        /,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        scope: str = "",
        **unknown: Never,
    ) -> R:
        """
        Run the request's handler in this thread and return its response.

        When this returns, the handlers of its events have run and the broker has confirmed its notification events.
        Inside a surrounding transaction, that happens at its commit. What is in an outbox is delivered after the
        commit, and this does not wait for it.

        `timeout` (seconds) is a deadline for everything that waits: event handlers, brokers, nested sends. It kills
        no handler: a late handler is reported with its stack.

        The first `send` of this class of request with an `idempotency_key` runs the handler and stores the response in
        the inbox, in the same transaction. Later ones return that response and raise no events. A handler that fails
        has not used the key. Keys of different scopes have nothing to do with each other: `scope` is the user or
        tenant that chose the key. Raises IdempotencyKeyConflict if the key came with other content,
        SerializationError if the response cannot become JSON, ConfigurationError without an inbox.

        Raises what the handler raises: then its events are dropped. Raises EventsFailed, with the response, if
        something after the handler fails; HandlerNotFound; ClosedError after `close()`.
        """
        if unknown or self.is_closed:
            raise self._refusal(Mediator.send, unknown)
        if idempotency_key is not None or scope != "":
            return self._send_once(request, scoped_key(idempotency_key, scope), timeout)
        if timeout is None:
            return self._dispatch(request)
        return _within(timeout, self._dispatch, request)

    def publish(self, event: Event, /, *, timeout: float | None = None, **unknown: Never) -> None:
        """
        Dispatch an event as if a handler had raised it, and publish it if it is a notification event.

        Raises EventsFailed, as the failure policy says. `timeout` is that of `send`.
        """
        if unknown or self.is_closed:
            raise self._refusal(Mediator.publish, unknown)
        if timeout is None:
            self.dispatcher.dispatch(event)
        else:
            _within(timeout, self.dispatcher.dispatch, event)

    def receive(self, message: IncomingMessage, /) -> None:
        """
        Handle a message from a broker. Returns when all its handlers have succeeded.

        The message is not published again. Events that its handlers raise carry its correlation id and trace, and
        its id as causation id. Raises MalformedMessage and UnknownMessageType if the message is not an event bound
        here, EventsFailed if handlers fail, TypeError for anything but an `IncomingMessage`.

        With an inbox each handler has its effect once, however often the message comes: see
        `EventDispatcher.handle_received`. After a failure, call it again: handlers that succeeded are skipped.
        """
        if self.is_closed:
            raise self._refusal(Mediator.receive, {})
        if not isinstance(message, IncomingMessage):
            raise TypeError(
                f"receive takes an IncomingMessage, as a broker delivers it, not {type(message).__qualname__}; "
                "an event of this service goes to `publish`"
            )
        self._receive(message)

    @contextmanager
    def override(self, service: object, instance: T, /) -> Iterator[T]:
        """
        Let handlers that are built in this block get `instance` wherever something asks for the type `service`.

        For tests: `with mediator.override(Orders, FakeOrders()):`. It counts in all threads, for requests and for
        inline, durable and other event handlers, for constructors at any depth and for parameters of functions. Blocks
        may be nested. Singletons that need the service are built anew for the block, and are gone after it.

        Any container will do. One that is not punq builds by itself what it knows by an interface, a factory or an
        instance: what such a service needs stays as it is, so override that service instead.

        Raises ConfigurationError if no bound handler asks for `service`, and for a class in place of an instance.
        """
        entry = (service, instance)
        self._check_override(service, instance)
        self._use_overrides(lambda known: [*known, entry])
        try:
            yield instance
        finally:
            # By identity: two blocks may override one service, and end in any order.
            self._use_overrides(lambda known: [each for each in known if each is not entry])

    def _use_overrides(self, change: Callable[[list[tuple[Any, Any]]], list[tuple[Any, Any]]]) -> None:
        # Two threads may enter and leave blocks at the same time.
        with _overriding:
            self._overrides = change(self._overrides)
            self._exchange_container()

    def _exchange_container(self) -> None:
        container: Container = self.wiring.container
        requests = self._requests
        if self._overrides:
            container = OverridingContainer(container, dict(self._overrides))
            requests = RequestDispatcher(attrs.evolve(self.wiring, container=container), self.dispatcher)
        self.dispatcher.use(attrs.evolve(self.dispatcher.wiring, container=container))
        self._dispatch, self._dispatch_once = requests.dispatch, requests.dispatch_once

    def _check_override(self, service: Any, instance: Any) -> None:
        if isinstance(instance, type) and isinstance(service, type):
            title = instance.__qualname__
            raise ConfigurationError(f"override takes an instance, not the class {title}: write {title}(...)")
        handlers = [binding.handler for bound in (self.wiring.request_map, self.wiring.event_map) for binding in bound]
        asked = OverridingContainer(self.wiring.container, {service: instance}).asked_for(handlers)
        if service in asked or service in handlers:
            return
        import difflib  # noqa: PLC0415 -- needed for this error only

        name = getattr(service, "__qualname__", repr(service))
        names = sorted(str(getattr(each, "__qualname__", each)) for each in asked)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:5]
        hint = f": they ask for {', '.join(near)}" if near else ""
        raise ConfigurationError(f"no handler that is bound here asks for {name}, so nothing would be replaced{hint}")

    def _send_once(self, request: Request[R], key: str, timeout: float | None) -> R:
        if timeout is None:
            return self._dispatch_once(request, key)
        return _within(timeout, lambda request: self._dispatch_once(request, key), request)

    def _handle_received(self, message: IncomingMessage) -> None:
        event, attributes = self.wiring.serializer.load(message, self.wiring.event_map.types)
        before = context.current.get()
        try:
            context.set_cause(attributes)
            self.dispatcher.handle_received(event, key_of(attributes))
        finally:
            # Not in a context manager, as in `_within`.
            context.current.set(before)

    @staticmethod
    def _refusal(function: Callable[..., object], unknown: Mapping[str, object]) -> Exception:
        return unknown_keywords(function, unknown) if unknown else ClosedError("this mediator is closed")

    def close(self, timeout: float = 10.0) -> None:
        """
        Refuse further requests, let running handlers finish, close threads and broker, within `timeout` seconds.

        Before that, the relay delivers what is in the outbox, as far as the time allows. A second call does nothing.
        """
        if self.is_closed:
            return
        self.is_closed = True
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
    until, outer = context.checked_deadline(timeout), context.deadline_at()
    number = watch(message, timeout)
    try:
        context.set_deadline(until)
        return dispatch(message)
    finally:
        # Not in a context manager: if a signal handler raises (Ctrl-C, a time limit of Celery) while one is left, the
        # deadline would stay, and this thread would never have time again.
        context.set_deadline(outer)
        unwatch(number)
