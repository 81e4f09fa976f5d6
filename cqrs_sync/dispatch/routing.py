"""What is to be done with events of each type, worked out once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from cqrs_sync.dispatch.handler_call import Stage, compile_invocation, is_plain
from cqrs_sync.dispatch.staging import InlineTarget, Route, Staged, Target
from cqrs_sync.errors import AlreadyBound
from cqrs_sync.idempotency import EventGuard
from cqrs_sync.inbox import Inbox
from cqrs_sync.messages import Event, NotificationEvent
from cqrs_sync.registry import Binding, Phase
from cqrs_sync.wiring import Wiring


class Routes(dict[type, Route]):
    """The route of each event type, made when it is first asked for, and again after a `bind`."""

    def __init__(self, wiring: Wiring, stage: Stage[Staged]) -> None:
        super().__init__()
        self._event_map = wiring.event_map
        self._container = wiring.container
        self._middleware = wiring.middleware
        self._stage = stage
        self._inbox = wiring.inbox
        self._received: dict[type, tuple[Target, ...]] = {}
        self._durable_at_once = wiring.observer is not None
        self._durable: dict[tuple[type, str], Target | None] = {}
        wiring.event_map.on_change(self)

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
        self._durable.clear()
        self._received.clear()

    def durable_target(self, event_type: type, name: str) -> Target | None:
        """Return the durable handler of this stable name, None where it is not bound to these events."""
        if (event_type, name) not in self._durable:
            bindings = self._event_map.find(event_type)
            binding = next(
                (each for each in bindings if each.phase is Phase.DURABLE and each.stable_name == name), None
            )
            self._durable[event_type, name] = None if binding is None else self._target(binding, event_type)
        return self._durable[event_type, name]

    def received(self, event_type: type) -> tuple[Target, ...]:
        """
        Return the handlers of these events, whatever their phase; with an inbox, each to run once for the key around.

        Raises AlreadyBound where the inbox could not tell them apart.
        """
        found = self._received.get(event_type)
        if found is None:
            bindings = self._event_map.find(event_type)
            if self._inbox is None:
                found = tuple(self._target(binding, event_type) for binding in bindings)
            else:
                _check_names(bindings, event_type)
                found = tuple(self._guard(binding, event_type, self._inbox) for binding in bindings)
            self._received[event_type] = found
        return found

    def _guard(self, binding: Binding, event_type: type, inbox: Inbox) -> Target:
        middlewares = [*self._middleware.of(event_type), EventGuard(inbox, binding.lasting_name)]
        return Target(binding.name, compile_invocation(binding, self._container, middlewares, self._stage))

    def _make(self, event_type: type) -> Route:
        bindings = self._event_map.find(event_type)
        phases = {Phase.AFTER_COMMIT, Phase.DURABLE} if self._durable_at_once else {Phase.AFTER_COMMIT}
        targets = tuple(self._target(binding, event_type) for binding in bindings if binding.phase in phases)
        middlewares = self._middleware.of(event_type)
        inline = tuple(
            InlineTarget(binding.name, compile_invocation(binding, self._container, middlewares, list))
            for binding in bindings
            if binding.phase is Phase.INLINE
        )
        stored = [] if self._durable_at_once else [each for each in bindings if each.phase is Phase.DURABLE]
        durable = tuple(each.stable_name for each in stored if each.stable_name is not None)
        notification = issubclass(event_type, NotificationEvent)
        plain = bool(targets) and not (inline or durable or notification)
        return Route(targets, inline, durable, notification, plain)

    def _target(self, binding: Binding, event_type: type) -> Target:
        middlewares = self._middleware.of(event_type)
        return Target(
            binding.name,
            compile_invocation(binding, self._container, middlewares, self._stage),
            partial(self._container.resolve, cast("type[Any]", binding.handler))
            if is_plain(binding) and not middlewares
            else None,
        )


def _check_names(bindings: Sequence[Binding], event_type: type) -> None:
    """Refuse two handlers of one event that the inbox would take for one: one of them would never run."""
    known: dict[str, Binding] = {}
    for binding in bindings:
        other = known.setdefault(binding.lasting_name, binding)
        if other is not binding:
            raise AlreadyBound(
                f"{binding.name} and another handler of {event_type.__qualname__} are both known to the inbox as "
                f'{binding.lasting_name!r}: give one of them a name, bind(..., name="...")'
            )
