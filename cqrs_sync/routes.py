"""What is to be done with events of each type, worked out once."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from cqrs_sync.container import Container
from cqrs_sync.invocation import Stage, compile_invocation, is_plain
from cqrs_sync.messages import Event, NotificationEvent
from cqrs_sync.middleware import MiddlewareChain
from cqrs_sync.registry import EventMap, Phase
from cqrs_sync.staging import InlineTarget, Route, Staged, Target


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
        if not issubclass(event_type, Event):
            raise TypeError(f"what is raised is an event, {event_type.__qualname__} is none: raise an instance of one")
        while True:
            version = self._event_map.version
            route = self[event_type] = self._make(event_type)
            if version == self._event_map.version:
                return route

    def forget(self) -> None:
        """Find the handlers of each event again: more were bound."""
        self.clear()

    def _make(self, event_type: type) -> Route:
        middlewares = self._middleware.of(event_type)
        bindings = self._event_map.find(event_type)
        targets = tuple(
            Target(
                binding.name,
                compile_invocation(binding, self._container, middlewares, self._stage),
                partial(self._container.resolve, cast("type[Any]", binding.handler))
                if is_plain(binding) and not middlewares
                else None,
            )
            for binding in bindings
            if binding.phase is Phase.AFTER_COMMIT
        )
        inline = tuple(
            InlineTarget(binding.name, compile_invocation(binding, self._container, middlewares, list))
            for binding in bindings
            if binding.phase is Phase.INLINE
        )
        notification = issubclass(event_type, NotificationEvent)
        return Route(targets, inline, notification, plain=bool(targets) and not inline and not notification)
