"""Call one handler with one message: build it, run it inside its middlewares, stage what it raises."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar, get_type_hints

from cqrs_sync.container import Container
from cqrs_sync.containers.punq import PunqContainer
from cqrs_sync.errors import HandlerNotBuilt, HandlerReused
from cqrs_sync.handlers import EventHandler, RequestHandler
from cqrs_sync.messages import Event
from cqrs_sync.middleware import Middleware
from cqrs_sync.registry import Binding

T = TypeVar("T")

#: Does with raised events what belongs inside the transaction of the handler that raised them.
Stage: TypeAlias = Callable[[list[Event]], T]


class Invoke(Protocol):
    """Builds and calls a handler."""

    def __call__(self, message: Any, raised: list[Event], stage: Stage[T], /) -> tuple[Any, Sequence[T]]:
        """
        Return the handler's response, and what `stage` returned for the events of each attempt that succeeded.

        `raised` is the list in `context.current`, which collects events. Raises what the handler raises.
        """


class HandlerCall(NamedTuple):
    """A handler, ready to be called with messages."""

    name: str
    invoke: Invoke
    #: Builds the handler, if `invoke` only builds it, calls it and stages its events.
    build: Callable[[], Any] | None = None


def compile_call(binding: Binding, container: Container, middlewares: Sequence[Middleware]) -> HandlerCall:
    """Prepare calls of a handler once, so that each message pays only for what differs."""
    handler: Any = binding.handler
    build: Callable[[], Any] | None = None
    if not isinstance(handler, type):
        invoke = _for_function(binding, container)
    elif handler.events in (RequestHandler.events, EventHandler.events):  # type: ignore[attr-defined]
        invoke = _for_class(binding, container)
        build = partial(container.resolve, handler)
    else:
        invoke = _for_class_with_own_events(binding, container)
    if middlewares:
        return HandlerCall(binding.name, _inside(middlewares, invoke))
    return HandlerCall(binding.name, invoke, build)


class _Builders(dict[type, Callable[[], Any]]):
    """Builds services with a container that has no plans."""

    def __init__(self, container: Container) -> None:
        super().__init__()
        self._container = container

    def __missing__(self, service: type) -> Callable[[], Any]:
        return partial(self._container.resolve, service)


def _for_class(binding: Binding, container: Container) -> Invoke:
    handler_type: Any = binding.handler
    # Without a call of `resolve`, a command takes 3 % less.
    builders = container.plans if type(container) is PunqContainer else _Builders(container)

    def invoke(message: Any, raised: list[Event], stage: Stage[T], /) -> tuple[Any, Sequence[T]]:
        try:
            handler = builders[handler_type]()
        except Exception as error:
            error.add_note(f"while {binding.name} was built")
            raise
        try:
            response = handler.handle(message)
        finally:
            # Also after a failure: a singleton would raise them with its next message.
            if handler._raised:  # noqa: SLF001
                raised.extend(drain_raised(handler))
        if raised:
            return response, (stage(raised),)
        return response, ()

    return invoke


def _for_class_with_own_events(binding: Binding, container: Container) -> Invoke:
    handler_type: Any = binding.handler

    def invoke(message: Any, raised: list[Event], stage: Stage[T], /) -> tuple[Any, Sequence[T]]:
        handler = container.resolve(handler_type)
        # `setdefault` is atomic: of two threads with the same handler, one sees the other's mark.
        mark = object()
        if handler.__dict__.setdefault("_served", mark) is not mark:
            raise HandlerReused(
                f"{binding.name} keeps its own events and the container returned the same instance twice, so events of "
                "one request would leak into the next: register it as transient, or use self.raise_event(...)"
            )
        response = handler.handle(message)
        raised.extend(handler.events)
        raised.extend(drain_raised(handler))
        return response, ((stage(raised),) if raised else ())

    return invoke


def _for_function(binding: Binding, container: Container) -> Invoke:
    function: Any = binding.handler
    services = _services(function, binding.name)

    def invoke(message: Any, raised: list[Event], stage: Stage[T], /) -> tuple[Any, Sequence[T]]:
        try:
            arguments: dict[str, Any] = {name: container.resolve(service) for name, service in services.items()}
        except Exception as error:
            error.add_note(f"while the arguments of {binding.name} were built")
            raise
        response = function(message, **arguments)
        return response, ((stage(raised),) if raised else ())

    return invoke


def drain_raised(handler: Any) -> Sequence[Event]:
    """Take the events that were raised in a thread without the context of the message."""
    return handler.__dict__.pop("_raised") if handler._raised else ()  # noqa: SLF001


def _stage_nothing(raised: list[Event]) -> None:
    """Stage nothing: a middleware may still fail, or try again."""


#: A call inside of some middlewares. It adds to the last but one argument what `stage` returns.
_Attempt: TypeAlias = "Callable[[Any, list[Event], list[Any], Stage[Any]], Any]"


def _inside(middlewares: Sequence[Middleware], invoke_handler: Invoke) -> Invoke:
    def call_handler(message: Any, raised: list[Event], staged: list[Any], stage: Stage[Any]) -> Any:
        before = len(raised)
        try:
            response, _ = invoke_handler(message, raised, _stage_nothing)
            if len(raised) > before:
                staged.append(stage(raised[before:]))
            return response
        finally:
            # A middleware may try again: the events of a failed attempt never happened.
            del raised[before:]

    attempt: _Attempt = call_handler
    for middleware in reversed(middlewares):
        attempt = _wrap(middleware, attempt)

    def invoke(message: Any, raised: list[Event], stage: Stage[T], /) -> tuple[Any, Sequence[T]]:
        staged: list[T] = []
        return attempt(message, raised, staged, stage), staged

    return invoke


def _wrap(middleware: Middleware, inner: _Attempt) -> _Attempt:
    def attempt(message: Any, raised: list[Event], staged: list[Any], stage: Stage[Any]) -> Any:
        def call_next(message: Any) -> Any:
            before = len(staged)
            try:
                return inner(message, raised, staged, stage)
            except BaseException:
                # Also what an inner middleware did after the handler, such as a commit, may have failed.
                del staged[before:]
                raise

        before = len(raised)
        try:
            response = middleware(message, call_next)
            if len(raised) > before:
                # The middleware's own events: staged inside the transactions of the outer ones.
                staged.append(stage(raised[before:]))
            return response
        finally:
            del raised[before:]

    return attempt


def _services(function: Any, name: str) -> dict[str, type]:
    """Return the parameters after the message, which the container fills, with their types."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    wanted = [
        parameter
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    hints = get_type_hints(function) if wanted else {}
    missing = [parameter.name for parameter in wanted if parameter.name not in hints]
    if missing:
        raise HandlerNotBuilt(
            f"{name} has parameters without a type, so the container cannot fill them: {', '.join(missing)}"
        )
    return {parameter.name: hints[parameter.name] for parameter in wanted}
