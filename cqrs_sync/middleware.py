"""What is done around handlers and publishing: logging, timing, validation, retries, transactions."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeAlias

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.messages import Event, Request

logger = logging.getLogger(__name__)

CallNext: TypeAlias = Callable[[Any], Any]


class Middleware(Protocol):
    """
    Wraps a call: of a request's handler, an event's handler, or of publishing.

    It may call `call_next` with the message once, again, or not at all, and return
    something else. It is shared by threads.
    """

    def __call__(self, message: Any, call_next: CallNext, /) -> Any:
        """Return what the caller is to see."""


class MiddlewareChain:
    """Middlewares in order, the first one added outermost."""

    def __init__(self, middlewares: Iterable[Middleware] = ()) -> None:
        if not isinstance(middlewares, Iterable):
            raise TypeError(f"middlewares come in a list: write [{middlewares!r}]")
        self._entries: list[tuple[Middleware, tuple[type, ...]]] = []
        self._in_use = False
        for middleware in middlewares:
            self.add(middleware)

    def add(self, middleware: Middleware, /, *message_types: type) -> MiddlewareChain:
        """
        Add a middleware for messages of these types, for all requests and events where none is named.

        `OutgoingMessage` selects publishing: the middleware is given a tuple of them.
        `IncomingMessage` selects what is received from a broker, before it becomes an event.
        """
        if self._in_use:
            raise ConfigurationError("this chain is in use by a mediator: add middlewares before bootstrap")
        if not callable(middleware) or isinstance(middleware, type):
            raise TypeError(f"a middleware is an instance called with (message, call_next), {middleware!r} is not")
        for message_type in message_types:
            if not isinstance(message_type, type):
                raise TypeError(f"a middleware is chosen by message types, {message_type!r} is not a type")
        self._entries.append((middleware, message_types or (Request, Event)))
        return self

    def copy(self) -> MiddlewareChain:
        """Return a chain of the same middlewares, to which others can be added, whether or not this one is in use."""
        chain = MiddlewareChain()
        chain._entries.extend(self._entries)
        return chain

    def of(self, message_type: type, /) -> list[Middleware]:
        """Return those that wrap messages of this type; no others can be added then."""
        self._in_use = True
        return [middleware for middleware, chosen in self._entries if issubclass(message_type, chosen)]

    def wrap(self, message_type: type, inner: CallNext, /) -> CallNext:
        """Return `inner` inside the middlewares of this type."""
        for middleware in reversed(self.of(message_type)):
            inner = _around(middleware, inner)
        return inner


class LoggingMiddleware:
    """
    Logs each message by the name of its type, never its contents: DEBUG when done, WARNING when failed.
    """

    def __init__(self, log: logging.Logger = logger) -> None:
        self._log = log

    def __call__(self, message: Any, call_next: CallNext, /) -> Any:
        """Log around the call."""
        title = title_of(message)
        try:
            response = call_next(message)
        except Exception as error:
            self._log.warning("%s failed: %s", title, type(error).__qualname__)
            raise
        self._log.debug("%s done", title)
        return response


class TimingMiddleware:
    """Tells `report` the name of each message's type and the seconds its handler took, failed or not."""

    def __init__(self, report: Callable[[str, float], object]) -> None:
        self._report = report

    def __call__(self, message: Any, call_next: CallNext, /) -> Any:
        """Time the call."""
        begin = time.perf_counter()
        try:
            return call_next(message)
        finally:
            self._report(title_of(message), time.perf_counter() - begin)


class ValidationMiddleware:
    """
    Validates messages before their handlers are built.

    `validate` is called with each message and raises for a bad one; without it, the
    message's own `validate()` is, where it has one.
    """

    def __init__(self, validate: Callable[[Any], object] | None = None) -> None:
        self._validate = validate

    def __call__(self, message: Any, call_next: CallNext, /) -> Any:
        """Validate, then go on."""
        if self._validate is not None:
            self._validate(message)
        elif (validate := getattr(message, "validate", None)) is not None:
            validate()
        return call_next(message)


class RetryMiddleware:
    """
    Calls a handler again when it fails; events of failed attempts are dropped.

    `retrying` decides when, how often and after what pause: any object called with a
    function and its arguments, such as `stamina.RetryingCaller(attempts=3).on(OSError)`
    or `tenacity.Retrying(...)`. Put it outside of the middleware that opens the
    transaction, so that each attempt has its own.
    """

    def __init__(self, retrying: Callable[..., Any]) -> None:
        self._retrying = retrying

    def __call__(self, message: Any, call_next: CallNext, /) -> Any:
        """Call, and call again."""
        return self._retrying(call_next, message)


def title_of(message: Any) -> str:
    """Return the name of a message's type; of a batch, how many it has."""
    if isinstance(message, tuple):
        return f"{len(message)} message(s)"
    return type(message).__qualname__


def _around(middleware: Middleware, inner: CallNext) -> CallNext:
    return lambda message: middleware(message, inner)
