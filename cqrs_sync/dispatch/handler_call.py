"""One handler, one message: build it, call it, take what it raised."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar, get_type_hints

from cqrs_sync.container import Container
from cqrs_sync.errors import HandlerNotBuilt, HandlerReused
from cqrs_sync.handlers import EventHandler, RequestHandler
from cqrs_sync.messages import Event
from cqrs_sync.middleware import Middleware
from cqrs_sync.registry import Binding

T = TypeVar("T")

#: What becomes of the events of a handler, while its transaction is open.
Stage: TypeAlias = Callable[[list[Event]], T]
#: Takes a message and the list in `context.current` that collects what is raised. Gives
#: the response, and what `Stage` made of the events of each attempt that succeeded.
Invocation: TypeAlias = Callable[[Any, list[Event]], tuple[Any, Sequence[T]]]


def is_plain(binding: Binding) -> bool:
    """Tell whether a handler is a class that keeps no events of its own."""
    handler: Any = binding.handler
    return isinstance(handler, type) and handler.events in (RequestHandler.events, EventHandler.events)  # type: ignore[attr-defined]


def take_strays(handler: Any) -> Sequence[Event]:
    """Take what was raised in a thread that knows nothing of the message."""
    return handler.__dict__.pop("_raised") if handler._raised else ()  # noqa: SLF001


def compile_invocation(
    binding: Binding, container: Container, middlewares: Sequence[Middleware], stage: Stage[T]
) -> Invocation[T]:
    """Prepare calls of a handler once, so that a message only pays for what differs."""
    compiled: Callable[..., Invocation[Any]]
    if is_plain(binding):
        compiled = _for_class
    else:
        compiled = _for_class_with_own_events if isinstance(binding.handler, type) else _for_function
    if not middlewares:
        return compiled(binding, container, stage)
    return _inside(middlewares, compiled(binding, container, _leave), stage)


def _for_class(binding: Binding, container: Container, stage: Stage[T]) -> Invocation[T]:
    handler_type: Any = binding.handler
    resolve = container.resolve

    def invoke(message: Any, raised: list[Event]) -> tuple[Any, Sequence[T]]:
        try:
            handler = resolve(handler_type)
        except Exception as error:
            error.add_note(f"while {binding.name} was built")
            raise
        try:
            response = handler.handle(message)
        finally:
            # Dropped where it fails: left, they would go with the next message of a singleton.
            if handler._raised:  # noqa: SLF001 -- a further call is what every request would pay for
                raised.extend(take_strays(handler))
        if raised:
            return response, (stage(raised),)
        return response, ()

    return invoke


def _for_class_with_own_events(binding: Binding, container: Container, stage: Stage[T]) -> Invocation[T]:
    handler_type: Any = binding.handler

    def invoke(message: Any, raised: list[Event]) -> tuple[Any, Sequence[T]]:
        handler = container.resolve(handler_type)
        # `setdefault` is atomic: of two threads with the same handler, one sees the other's mark.
        mark = object()
        if handler.__dict__.setdefault("_served", mark) is not mark:
            raise HandlerReused(
                f"{binding.name} keeps its own events and was handed out twice, so events of one request would leak "
                "into the next: register it as transient, or raise events with self.raise_event(...)"
            )
        response = handler.handle(message)
        raised.extend(handler.events)
        raised.extend(take_strays(handler))
        return response, ((stage(raised),) if raised else ())

    return invoke


def _for_function(binding: Binding, container: Container, stage: Stage[T]) -> Invocation[T]:
    function: Any = binding.handler
    services = _services(function, binding.name)

    def invoke(message: Any, raised: list[Event]) -> tuple[Any, Sequence[T]]:
        try:
            arguments: dict[str, Any] = {name: container.resolve(service) for name, service in services.items()}
        except Exception as error:
            error.add_note(f"while what {binding.name} takes was built")
            raise
        response = function(message, **arguments)
        return response, ((stage(raised),) if raised else ())

    return invoke


def _leave(raised: list[Event]) -> None:
    """Leave events where they are: the attempt is not over yet."""


def _inside(middlewares: Sequence[Middleware], innermost: Invocation[None], stage: Stage[T]) -> Invocation[T]:
    def call_handler(message: Any, raised: list[Event], staged: list[T]) -> Any:
        before = len(raised)
        try:
            response, _ = innermost(message, raised)
            if len(raised) > before:
                staged.append(stage(raised[before:]))
            return response
        finally:
            # A middleware may try again: what a failed attempt raised never happened.
            del raised[before:]

    call: Callable[[Any, list[Event], list[T]], Any] = call_handler
    for middleware in reversed(middlewares):
        call = _wrap(middleware, call, stage)

    def invoke(message: Any, raised: list[Event]) -> tuple[Any, Sequence[T]]:
        staged: list[T] = []
        return call(message, raised, staged), staged

    return invoke


def _wrap(
    middleware: Middleware, inner: Callable[[Any, list[Event], list[T]], Any], stage: Stage[T]
) -> Callable[[Any, list[Event], list[T]], Any]:
    def call(message: Any, raised: list[Event], staged: list[T]) -> Any:
        def call_next(message: Any) -> Any:
            before = len(staged)
            try:
                return inner(message, raised, staged)
            except BaseException:
                # So is what an inner one did, a commit say, that failed after the handler.
                del staged[before:]
                raise

        before = len(raised)
        try:
            response = middleware(message, call_next)
            if len(raised) > before:
                # Its own, inside of what the outer ones have opened.
                staged.append(stage(raised[before:]))
            return response
        finally:
            del raised[before:]

    return call


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
        raise HandlerNotBuilt(f"{name} has parameters without a type, so nothing can be injected: {', '.join(missing)}")
    return {parameter.name: hints[parameter.name] for parameter in wanted}
