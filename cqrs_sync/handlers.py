"""What applications subclass: a handler handles messages and raises events."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from cqrs_sync.context import current, outside
from cqrs_sync.messages import Event, Request, resolve_annotation

_get = current.get

Req = TypeVar("Req", bound=Request[object])
Res = TypeVar("Res")
E = TypeVar("E", bound=Event)


class _RaisesEvents:
    # A class attribute, so that handlers need not call `super().__init__()`.
    _raised: Sequence[Event] = ()

    @property
    def events(self) -> Sequence[Event]:
        """
        The events raised outside a mediator, as in a unit test of this handler.

        A handler may override it and keep its own list. Then the container
        must build a new handler for each message.
        """
        return self._raised

    def raise_event(self, event: Event, /) -> None:
        """Raise an event. It is dispatched after this handler has returned, and dropped if the handler fails."""
        scope = _get()
        if scope is not None and scope[0] is not outside:
            scope[0].append(event)
        else:
            # Through `__dict__`: a frozen attrs class has no `__setattr__`.
            self.__dict__.setdefault("_raised", []).append(event)


class RequestHandler(_RaisesEvents, ABC, Generic[Req, Res]):
    """Handles one type of request."""

    @abstractmethod
    def handle(self, request: Req, /) -> Res:
        """Handle the request in the caller's thread, and return the response."""


class EventHandler(_RaisesEvents, ABC, Generic[E]):
    """Handles one type of event and its subclasses."""

    @abstractmethod
    def handle(self, event: E, /) -> None:
        """Handle the event. Events raised here are dispatched in the same run."""


def looked_up(function: Callable[..., Any], annotation: Any) -> Any:
    """Return an annotation of a function; the text itself if it is a name that cannot be looked up."""
    if not isinstance(annotation, str):
        return annotation
    inner = inspect.unwrap(function.func if isinstance(function, partial) else function)
    scope = getattr(inner, "__globals__", None) or getattr(type(inner).__call__, "__globals__", {})
    try:
        # This one alone: others may be names under TYPE_CHECKING.
        return resolve_annotation(annotation, scope)
    except Exception:  # noqa: BLE001 -- the annotation may be any text
        return annotation
