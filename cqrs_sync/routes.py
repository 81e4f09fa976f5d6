"""What is to be done with events of each type, worked out once."""

from __future__ import annotations

from typing import TypeVar

import attrs

from cqrs_sync.container import Container
from cqrs_sync.invocation import Invocation, Stage, compile_invocation
from cqrs_sync.messages import Event, NotificationEvent
from cqrs_sync.middleware import MiddlewareChain
from cqrs_sync.registry import EventMap, Phase
from cqrs_sync.runs import Staged, Target

T = TypeVar("T")


@attrs.frozen(eq=False)
class InlineTarget:
    """A handler that runs inside the transaction, ready to be called."""

    name: str
    invoke: Invocation[list[Event]]


@attrs.frozen(eq=False)
class Route:
    """What is to be done with events of a type."""

    targets: tuple[Target, ...]
    inline: tuple[InlineTarget, ...]
    notification: bool
    #: Nothing is to be done inside the transaction.
    plain: bool


class Routes(dict[type, Route]):
    """The route of each event type, made when it is first asked for, and again after a `bind`."""

    def __init__(
        self, event_map: EventMap, container: Container, middleware: MiddlewareChain, stage: Stage[Staged]
    ) -> None:
        super().__init__()
        self._event_map = event_map
        self._container = container
        self._middleware = middleware
        self._stage = stage
        event_map.on_change(self)

    def __missing__(self, event_type: type) -> Route:
        while True:
            version = self._event_map.version
            route = self[event_type] = self._make(event_type)
            if version == self._event_map.version:
                return route

    def forget(self) -> None:
        """Find the handlers of each event again: more were bound."""
        self.clear()

    def _make(self, event_type: type) -> Route:
        targets = tuple(Target(*pair) for pair in self._compiled(event_type, Phase.AFTER_COMMIT, self._stage))
        inline = tuple(InlineTarget(*pair) for pair in self._compiled(event_type, Phase.INLINE, list))
        notification = issubclass(event_type, NotificationEvent)
        return Route(targets, inline, notification, plain=bool(targets) and not inline and not notification)

    def _compiled(self, event_type: type, phase: Phase, stage: Stage[T]) -> list[tuple[str, Invocation[T]]]:
        middlewares = self._middleware.of(event_type)
        return [
            (binding.name, compile_invocation(binding, self._container, middlewares, stage))
            for binding in self._event_map.find(event_type)
            if binding.phase is phase
        ]
