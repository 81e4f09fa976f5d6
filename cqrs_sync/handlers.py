"""What applications subclass: a handler answers messages and collects the events it raises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

from cqrs_sync.context import current, outside
from cqrs_sync.messages import Event, Request

get = current.get

Req = TypeVar("Req", bound=Request[object])
Res = TypeVar("Res")
E = TypeVar("E", bound=Event)


class _RaisesEvents:
    # A class attribute, so that no handler owes a call of `super().__init__()`.
    _raised: Sequence[Event] = ()

    @property
    def events(self) -> Sequence[Event]:
        """
        The events raised outside a mediator, as in a unit test of this handler.

        A handler may override it and keep a list of its own; then the container
        must build a fresh handler for each message.
        """
        return self._raised

    def raise_event(self, event: Event, /) -> None:
        """Raise an event: it is dispatched after this handler has returned, dropped when it fails."""
        scope = get()
        if scope is not None and scope[0] is not outside:
            scope[0].append(event)
        else:
            # Around a frozen attrs handler's `__setattr__`.
            self.__dict__.setdefault("_raised", []).append(event)


class RequestHandler(_RaisesEvents, ABC, Generic[Req, Res]):
    """Answers one type of request."""

    @abstractmethod
    def handle(self, request: Req, /) -> Res:
        """Do what is asked, in the caller's thread; what is returned is the answer."""


class EventHandler(_RaisesEvents, ABC, Generic[E]):
    """Reacts to one type of event and its subclasses."""

    @abstractmethod
    def handle(self, event: E, /) -> None:
        """React; events raised here are dispatched in the same run."""
