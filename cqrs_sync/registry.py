"""Which handlers answer which message."""

from __future__ import annotations

import enum
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple, Protocol, TypeVar, overload

from cqrs_sync.declarations import Handler, check_stable_name, checked, lacks_a_handler, title
from cqrs_sync.errors import AlreadyBound, HandlerNotFound, InvalidBinding
from cqrs_sync.handlers import EventHandler, RequestHandler
from cqrs_sync.lifecycle import reset_in_child
from cqrs_sync.messages import Event, NotificationEvent, Request, publication_of

H = TypeVar("H")


class Phase(enum.Enum):
    """When an event handler runs."""

    #: In the caller's thread, inside the open transaction; its failure fails the command.
    INLINE = "inline"
    #: On the pool, once the surrounding transaction has committed; at once where there is none.
    AFTER_COMMIT = "after commit"
    #: As after the commit, but written down in the transaction: run again where it fails, by any
    #: process where this one dies.
    DURABLE = "durable"


class Binding(NamedTuple):
    """A handler bound to a message type."""

    message_type: type
    handler: Handler
    phase: Phase = Phase.AFTER_COMMIT
    #: The name by which the outbox and the inbox know the handler, which outlives this process.
    stable_name: str | None = None

    @property
    def name(self) -> str:
        """The handler's name, for errors and logs."""
        return str(getattr(self.handler, "__qualname__", self.handler))

    @property
    def lasting_name(self) -> str:
        """
        The name by which the inbox knows the handler: the stable one, else where it is defined.

        Raises InvalidBinding for one that is defined nowhere, such as a `functools.partial`.
        """
        if self.stable_name is not None:
            return self.stable_name
        module, place = getattr(self.handler, "__module__", None), getattr(self.handler, "__qualname__", None)
        if not (isinstance(module, str) and isinstance(place, str)):
            raise InvalidBinding(
                f"{self.name} has no name by which an inbox could know it tomorrow: "
                f'write bind({self.message_type.__qualname__}, ..., name="...")'
            )
        return f"{module}:{place}"


class Forgetful(Protocol):
    """Something that remembers what was bound."""

    def forget(self) -> None:
        """Look again: more was bound."""


class RequestMap:
    """Requests and the one handler of each."""

    def __init__(self) -> None:
        self._bindings: dict[type, Binding] = {}
        self._lock = threading.Lock()
        reset_in_child(self)

    @overload
    def bind(self, request_type: type[Request[Any]], /) -> Callable[[H], H]: ...

    @overload
    def bind(self, request_type: type[Request[Any]], handler: H, /) -> H: ...

    @overload
    def bind(self, handler: H, /) -> H: ...

    def bind(self, *arguments: Any) -> Any:
        """
        Bind a request to the handler that answers it; returns the handler, so it decorates.

        The request may be left out: it is read from `RequestHandler[Request, Response]`
        or from the annotation of a function's first parameter. With the request alone,
        `@requests.bind(JoinMeeting)`, it returns a decorator. Raises InvalidBinding
        for what cannot be bound, AlreadyBound for a second handler.
        """
        if lacks_a_handler(arguments, Request):
            return partial(self.bind, *arguments)
        request_type, handler = checked(arguments, RequestHandler, Request)
        with self._lock:
            known = self._bindings.get(request_type)
            if known is not None:
                raise AlreadyBound(
                    f"{request_type.__qualname__} is answered by {known.name}; "
                    f"it cannot be bound to {title(handler)} as well"
                )
            self._bindings[request_type] = Binding(request_type, handler)
        return handler

    def find(self, request_type: type, /) -> Binding:
        """Return the binding of a request. Raises HandlerNotFound, with near names."""
        try:
            return self._bindings[request_type]
        except KeyError:
            raise HandlerNotFound(self._unbound(request_type)) from None

    def __iter__(self) -> Iterator[Binding]:
        return iter(list(self._bindings.values()))

    def __len__(self) -> int:
        return len(self._bindings)

    def reset_in_child(self) -> None:
        """Replace the lock, which another thread of the parent may have held."""
        self._lock = threading.Lock()

    def _unbound(self, request_type: type) -> str:
        title = request_type.__qualname__
        if not issubclass(request_type, Request):
            return f"{title} is not a request: subclass Command or Query"
        import difflib  # noqa: PLC0415 -- only who makes the mistake needs it

        near = difflib.get_close_matches(title, [bound.__qualname__ for bound in self._bindings], n=3)
        hint = f"; bound are {', '.join(near)}" if near else ""
        return f"no handler is bound to {title}: call requests.bind(<its handler>) before it is sent{hint}"


class EventMap:
    """Events and their handlers, in the order they were bound."""

    def __init__(self) -> None:
        self._bindings: dict[type, list[tuple[int, Binding]]] = {}
        self._found: dict[type, tuple[Binding, ...]] = {}
        self._names: dict[str, type[Event]] = {}
        self._types: Mapping[str, type] = {}
        self._handlers: dict[str, Handler] = {}
        self._durable_names: frozenset[str] = frozenset()
        self._listeners: list[weakref.ref[Forgetful]] = []
        #: Grows with each binding.
        self.version = 0
        self._lock = threading.Lock()
        reset_in_child(self)

    @overload
    def bind(self, *, phase: Phase = Phase.AFTER_COMMIT, name: str | None = None) -> Callable[[H], H]: ...

    @overload
    def bind(
        self, event_type: type[Event], /, *, phase: Phase = Phase.AFTER_COMMIT, name: str | None = None
    ) -> Callable[[H], H]: ...

    @overload
    def bind(
        self, event_type: type[Event], handler: H, /, *, phase: Phase = Phase.AFTER_COMMIT, name: str | None = None
    ) -> H: ...

    @overload
    def bind(self, handler: H, /, *, phase: Phase = Phase.AFTER_COMMIT, name: str | None = None) -> H: ...

    def bind(self, *arguments: Any, phase: Phase = Phase.AFTER_COMMIT, name: str | None = None) -> Any:
        """
        Bind an event to a handler; it receives events of subclasses, too.

        The event may be left out, as in `RequestMap.bind`; without a handler it returns a
        decorator, as in `@events.bind(phase=Phase.INLINE)`. A durable handler has a
        stable name, by which other processes and later versions find it:
        `@events.bind(phase=Phase.DURABLE, name="welcome-mail")`. Others may have one, for an inbox
        to know them by when they are moved. Raises InvalidBinding for what cannot be
        bound, AlreadyBound where this handler is bound to it already.
        """
        if lacks_a_handler(arguments, Event):
            return partial(self.bind, *arguments, phase=phase, name=name)
        event_type, handler = checked(arguments, EventHandler, Event)
        if not isinstance(phase, Phase):
            raise InvalidBinding(f"phase must be one of {', '.join(map(str, Phase))}, not {phase!r}")
        check_stable_name(name, event_type, handler, durable=phase is Phase.DURABLE)
        with self._lock:
            # Methods are equal, never identical.
            bound = self._bindings.get(event_type, [])
            if any(known.handler == handler for _, known in bound):
                raise AlreadyBound(f"{title(handler)} is bound to {event_type.__qualname__} already")
            if name is not None and self._handlers.get(name, handler) != handler:
                known = title(self._handlers[name])
                raise AlreadyBound(f"{known} is named {name!r} already: give {title(handler)} another name")
            self._learn_name(event_type)
            # A new mapping, as below: each received message asks for it.
            self._types = {name: known for name, known in self._names.items() if issubclass(known, NotificationEvent)}
            if name is not None:
                self._handlers[name] = handler
                self._durable_names |= {name} if phase is Phase.DURABLE else set()
            self.version += 1
            # A new list: others may be reading the old one.
            self._bindings[event_type] = [*bound, (self.version, Binding(event_type, handler, phase, name))]
            self._found.clear()
        for reference in list(self._listeners):
            if (listener := reference()) is not None:
                listener.forget()
        return handler

    def find(self, event_type: type, /) -> tuple[Binding, ...]:
        """Return the bindings of an event and of its base classes, each handler once, as they were bound."""
        found = self._found.get(event_type)
        if found is None:
            with self._lock:
                bound = [self._bindings.get(base, []) for base in event_type.__mro__]
                matching = [known for _, known in sorted(chain.from_iterable(bound), key=itemgetter(0))]
                found = tuple(
                    known
                    for place, known in enumerate(matching)
                    if not any(earlier.handler == known.handler for earlier in matching[:place])
                )
                self._found[event_type] = found
        return found

    @property
    def types(self) -> Mapping[str, type]:
        """The notification events that have handlers here, by their stable names: what may be received."""
        return self._types

    @property
    def durable_names(self) -> frozenset[str]:
        """The stable names of the durable handlers."""
        return self._durable_names

    def stored_type(self, name: str, /) -> type[Event] | None:
        """Return the event of this stable name that a durable handler may be given, None where there is none."""
        known = self._names.get(name)
        if known is None:
            # A handler that is bound to a base class receives events that are bound nowhere.
            bound = [binding.message_type for binding in self if binding.phase is Phase.DURABLE]
            known = next((each for base in bound for each in _below(base) if each.__publication__.name == name), None)
        return known

    def on_change(self, listener: Forgetful, /) -> None:
        """Call `listener.forget()` after each later `bind`, as long as it lives."""
        self._listeners.append(weakref.ref(listener, self._listeners.remove))

    def __iter__(self) -> Iterator[Binding]:
        bound = sorted(chain.from_iterable(list(self._bindings.values())), key=itemgetter(0))
        return iter([known for _, known in bound])

    def __len__(self) -> int:
        return sum(map(len, list(self._bindings.values())))

    def reset_in_child(self) -> None:
        """Replace the lock, which another thread of the parent may have held."""
        self._lock = threading.Lock()

    def _learn_name(self, event_type: type[Event]) -> None:
        name = event_type.__publication__.name
        if name is None:
            return
        publication_of(event_type)
        known = self._names.setdefault(name, event_type)
        if known is not event_type:
            raise InvalidBinding(
                f"{event_type.__qualname__} and {known.__qualname__} are both named {name!r}: give one another name"
            )


def _below(event_type: type[Event]) -> Iterator[type[Event]]:
    """Find the subclasses of an event, the latest first: attrs builds a class with slots a second time."""
    for subclass in reversed(event_type.__subclasses__()):
        yield subclass
        yield from _below(subclass)
