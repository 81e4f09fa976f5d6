"""Middleware: code around handlers, publishing and received messages."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol, TypeAlias

from cqrs_sync import context
from cqrs_sync.errors import ConfigurationError
from cqrs_sync.messages import Event, Request
from cqrs_sync.retry import RetryPolicy

logger: logging.Logger = logging.getLogger(__name__)

#: What a middleware calls with the message: the next middleware, or the handler. It returns the answer.
CallNext: TypeAlias = Callable[[Any], Any]


class Middleware(Protocol):
    """
    Wraps a call: of a request's handler, an event's handler, or of publishing.

    It may call `call_next` with the message once, several times, or not at all, and return
    something else. Threads share it.
    """

    def __call__(self, message: Any, call_next: CallNext, /) -> Any:
        """Return the response for the caller."""


class MiddlewareChain:
    """Middlewares in order, the first one added outermost."""

    def __init__(self, middlewares: Iterable[Middleware] = ()) -> None:
        if not isinstance(middlewares, Iterable):
            raise TypeError(f"middlewares must be a list: write [{middlewares!r}]")
        self._entries: list[tuple[Middleware, tuple[type, ...]]] = []
        self._in_use = False
        for middleware in middlewares:
            self.add(middleware)

    def add(self, middleware: Middleware, /, *message_types: type) -> MiddlewareChain:
        """
        Add a middleware for messages of these types; without types, for all requests and events.

        `OutgoingMessage` selects publishing: the middleware gets a tuple of them.
        `IncomingMessage` selects received messages, before they become events.
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
        """Return a new chain of the same middlewares. Others can be added to it, even if this one is in use."""
        chain = MiddlewareChain()
        chain._entries.extend(self._entries)
        return chain

    def of(self, message_type: type, /) -> list[Middleware]:
        """Return the middlewares for messages of this type. From then on, none can be added."""
        self._in_use = True
        return [middleware for middleware, chosen in self._entries if issubclass(message_type, chosen)]

    def wrap(self, message_type: type, inner: CallNext, /) -> CallNext:
        """Return `inner` inside the middlewares of this type."""
        for middleware in reversed(self.of(message_type)):
            inner = _around(middleware, inner)
        return inner


class LoggingMiddleware:
    """
    Logs the type of each message, never its contents: at DEBUG when it is done, at WARNING when it failed.
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
    """Calls `report` with the type name of each message and the seconds its handler took, also after a failure."""

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

    It calls `validate` with each message, which raises for an invalid one. Without `validate` it calls the
    message's own `validate()`, if it has one.
    """

    def __init__(self, validate: Callable[[Any], object] | None = None) -> None:
        self._validate = validate

    def __call__(self, message: Any, call_next: CallNext, /) -> Any:
        """Validate, then call the handler."""
        if self._validate is not None:
            self._validate(message)
        elif (validate := getattr(message, "validate", None)) is not None:
            validate()
        return call_next(message)


class RetryMiddleware:
    """
    Calls a handler again after it has failed. Events of failed attempts are dropped.

    `retry` is a `RetryPolicy`, and `on` the errors that allow another attempt: `RetryMiddleware(RetryPolicy(attempts=3,
    first=0.1), on=OSError)`. After the last attempt, or when the deadline is nearer than the next one, it raises the
    last error. `PermanentError` is raised at once.

    `retry` may also be any object that is called with a function and its arguments, such as
    `stamina.RetryingCaller(attempts=3).on(OSError)` or `tenacity.Retrying(...)`. Add it before the middleware that
    opens the transaction, so that each attempt has its own.
    """

    def __init__(
        self,
        retry: RetryPolicy | Callable[..., Any],
        *,
        on: type[BaseException] | tuple[type[BaseException], ...] | None = None,
    ) -> None:
        self._call: Callable[..., Any]
        if isinstance(retry, RetryPolicy):
            self._call = partial(_with_retries, retry, Exception if on is None else on)
        elif not callable(retry) or isinstance(retry, type):
            raise ConfigurationError(f"retry must be a RetryPolicy or an object that is called, not {retry!r}")
        elif on is not None:
            raise ConfigurationError(f"`on` belongs to a RetryPolicy: {retry!r} chooses its errors itself")
        else:
            self._call = retry

    def __call__(self, message: Any, call_next: CallNext, /) -> Any:
        """Call the handler until it succeeds or the policy ends."""
        return self._call(call_next, message)


def _with_retries(
    policy: RetryPolicy, on: type[BaseException] | tuple[type[BaseException], ...], call_next: CallNext, message: Any
) -> Any:
    attempts = 0
    while True:
        attempts += 1
        try:
            return call_next(message)
        except on as error:
            delay, deadline = policy.delay(attempts, error), context.deadline_at()
            if delay is None or (deadline is not None and time.monotonic() + delay >= deadline):
                raise
            kind = type(error).__qualname__
            words = "%s: attempt %d failed, retrying in %.1f s: %s"
            logger.warning(words, title_of(message), attempts, delay, kind)
        threading.Event().wait(delay)


def title_of(message: Any) -> str:
    """Return the name of a message's type; of a batch, how many it has."""
    if isinstance(message, tuple):
        return f"{len(message)} message(s)"
    return type(message).__qualname__


def _around(middleware: Middleware, inner: CallNext) -> CallNext:
    return lambda message: middleware(message, inner)
