"""Find the handlers of an event type, and prepare their calls once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from cqrs_sync.dispatch.handler_call import HandlerCall, compile_call
from cqrs_sync.errors import AlreadyBound, HandlerNotFound
from cqrs_sync.inbox import IdempotentEvent
from cqrs_sync.messages import Event, NotificationEvent, Request
from cqrs_sync.middleware import Middleware
from cqrs_sync.registry import Binding, EventMap, Phase
from cqrs_sync.wiring import Wiring

K = TypeVar("K")
V = TypeVar("V")


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


class Prepared(dict[K, V]):
    """What is prepared for each key, made at its first use and again after a later `bind`."""

    def __init__(self, event_map: EventMap, prepare: Callable[[K], V]) -> None:
        super().__init__()
        self._event_map = event_map
        self._prepare = prepare
        #: The version of the event map that all this was made of. If `EventMap.version` is ahead, call `refresh`.
        self.version: int = event_map.version

    def __missing__(self, key: K) -> V:
        while True:
            version = self._event_map.version
            value = self[key] = self._prepare(key)
            if version == self._event_map.version:
                return value

    def refresh(self) -> None:
        """Drop everything: more handlers were bound."""
        version = self._event_map.version
        self.clear()
        self.version = version


class Routing:
    """Finds and prepares the handlers of events."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        #: What happens to events that this service raises. Raises TypeError for anything but an event.
        self.routes: Prepared[type, Route] = Prepared(wiring.event_map, self._route)
        #: The handlers of an event from a broker, whatever their phase. With an inbox each of them is idempotent.
        #: Raises AlreadyBound if the inbox cannot tell two of them apart.
        self.received: Prepared[type, tuple[HandlerCall, ...]] = Prepared(wiring.event_map, self._received)
        #: Durable handlers, by event and stable name. Raises HandlerNotFound if it is not bound to these events.
        self.durable: Prepared[tuple[type, str], HandlerCall] = Prepared(wiring.event_map, self._durable)

    def _received(self, event_type: type) -> tuple[HandlerCall, ...]:
        bindings = self._wiring.event_map.find(event_type)
        inbox = self._wiring.inbox
        if inbox is None:
            calls = [self._call(each, event_type) for each in bindings]
        else:
            _check_names(bindings, event_type)
            calls = [self._call(each, event_type, IdempotentEvent(inbox, each.inbox_name)) for each in bindings]
        # Dead letters name the handlers that failed, as the receipts do.
        return tuple(
            call._replace(name=binding.stable_name or call.name) for call, binding in zip(calls, bindings, strict=True)
        )

    def _durable(self, key: tuple[type, str]) -> HandlerCall:
        event_type, name = key
        for binding in self._wiring.event_map.find(event_type):
            if binding.phase is Phase.DURABLE and binding.stable_name == name:
                return self._call(binding, event_type)
        raise HandlerNotFound(f"no durable handler named {name!r} is bound to {event_type.__qualname__}")

    def _route(self, event_type: type) -> Route:
        if not issubclass(event_type, Event):
            title = event_type.__qualname__
            if issubclass(event_type, type):
                raise TypeError("a class is not an event: raise an instance of it, `OrderPlaced(...)`")
            if issubclass(event_type, Request):
                raise TypeError(f"{title} is a request, not an event: write `mediator.send({title}(...))`")
            raise TypeError(f"{title} is not an event: raise instances of Event subclasses")
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
        other = known.setdefault(binding.inbox_name, binding)
        if other is not binding:
            raise AlreadyBound(
                f"the inbox knows {binding.name} and another handler of {event_type.__qualname__} by the same name, "
                f'{binding.inbox_name!r}: give one of them its own, bind(..., name="...")'
            )
