"""Find the handlers of an event type, and prepare their calls once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cqrs_sync.dispatch.handler_call import HandlerCall, compile_call
from cqrs_sync.errors import AlreadyBound, HandlerNotFound
from cqrs_sync.inbox import IdempotentEvent
from cqrs_sync.messages import Event, NotificationEvent
from cqrs_sync.middleware import Middleware
from cqrs_sync.registry import Binding, Phase
from cqrs_sync.wiring import Wiring


class Route(NamedTuple):
    """What happens to events of a type."""

    #: Handlers that run after the commit.
    after_commit: tuple[HandlerCall, ...]
    inline: tuple[HandlerCall, ...]
    #: Durable handlers, by their stable names.
    durable: tuple[str, ...]
    is_notification: bool
    #: The event has handlers, and they all run after the commit: nothing happens inside the transaction.
    only_after_commit: bool


class Routing(dict[type, Route]):
    """The route of each event type, made at its first use and again after a later `bind`."""

    def __init__(self, wiring: Wiring) -> None:
        super().__init__()
        self._wiring = wiring
        self._durable: dict[tuple[type, str], HandlerCall] = {}
        self._received: dict[type, tuple[HandlerCall, ...]] = {}
        #: The version of the event map that the routes were made of; `EventMap.version` may be ahead of it.
        self.version = wiring.event_map.version

    def __missing__(self, event_type: type) -> Route:
        if not issubclass(event_type, Event):
            raise TypeError(f"{event_type.__qualname__} is not an event: raise instances of Event subclasses")
        event_map = self._wiring.event_map
        while True:
            version = event_map.version
            route = self[event_type] = self._route(event_type)
            if version == event_map.version:
                return route

    def refresh(self) -> None:
        """Drop all routes: more handlers were bound."""
        version = self._wiring.event_map.version
        self.clear()
        self._durable.clear()
        self._received.clear()
        self.version = version

    def durable_call(self, event_type: type, name: str) -> HandlerCall:
        """Return the durable handler of this stable name. Raises HandlerNotFound if it is not bound to these events."""
        self._refresh_if_old()
        known = self._durable.get((event_type, name))
        if known is not None:
            return known
        for binding in self._wiring.event_map.find(event_type):
            if binding.phase is Phase.DURABLE and binding.stable_name == name:
                call = self._durable[event_type, name] = self._call(binding, event_type)
                return call
        raise HandlerNotFound(f"no durable handler named {name!r} is bound to {event_type.__qualname__}")

    def received_calls(self, event_type: type) -> tuple[HandlerCall, ...]:
        """
        Return the handlers of an event from a broker, whatever their phase. With an inbox each of them is idempotent.

        Raises AlreadyBound if the inbox cannot tell two of them apart.
        """
        self._refresh_if_old()
        calls = self._received.get(event_type)
        event_map = self._wiring.event_map
        while calls is None:
            version = event_map.version
            made = self._received[event_type] = self._received_calls(event_type)
            if version == event_map.version:
                calls = made
        return calls

    def _received_calls(self, event_type: type) -> tuple[HandlerCall, ...]:
        bindings = self._wiring.event_map.find(event_type)
        inbox = self._wiring.inbox
        if inbox is None:
            return tuple(self._call(each, event_type) for each in bindings)
        _check_names(bindings, event_type)
        return tuple(self._call(each, event_type, IdempotentEvent(inbox, each.lasting_name)) for each in bindings)

    def _refresh_if_old(self) -> None:
        if self.version != self._wiring.event_map.version:
            self.refresh()

    def _route(self, event_type: type) -> Route:
        bound: dict[Phase, list[Binding]] = {phase: [] for phase in Phase}
        for binding in self._wiring.event_map.find(event_type):
            observed = binding.phase is Phase.DURABLE and self._wiring.observer is not None
            bound[Phase.AFTER_COMMIT if observed else binding.phase].append(binding)
        after_commit = tuple(self._call(binding, event_type) for binding in bound[Phase.AFTER_COMMIT])
        inline = tuple(self._call(binding, event_type) for binding in bound[Phase.INLINE])
        durable = tuple(each.stable_name for each in bound[Phase.DURABLE] if each.stable_name is not None)
        is_notification = issubclass(event_type, NotificationEvent)
        only_after_commit = bool(after_commit) and not (inline or durable or is_notification)
        return Route(after_commit, inline, durable, is_notification, only_after_commit)

    def _call(self, binding: Binding, event_type: type, *innermost: Middleware) -> HandlerCall:
        middlewares = [*self._wiring.middleware.of(event_type), *innermost]
        return compile_call(binding, self._wiring.container, middlewares)


def _check_names(bindings: Sequence[Binding], event_type: type) -> None:
    """Refuse two handlers of an event that have one name in the inbox: one of them would never run."""
    known: dict[str, Binding] = {}
    for binding in bindings:
        other = known.setdefault(binding.lasting_name, binding)
        if other is not binding:
            raise AlreadyBound(
                f"the inbox knows {binding.name} and another handler of {event_type.__qualname__} by the same name, "
                f'{binding.lasting_name!r}: give one of them its own, bind(..., name="...")'
            )
