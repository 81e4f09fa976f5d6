"""Which handlers a message type has."""

from __future__ import annotations

import enum
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from operator import itemgetter
from types import UnionType
from typing import (
    Any,
    Concatenate,
    ForwardRef,
    NamedTuple,
    ParamSpec,
    TypeAlias,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    overload,
)

from cqrs_sync.errors import AlreadyBound, HandlerNotFound, InvalidBinding
from cqrs_sync.handlers import EventHandler, RequestHandler, looked_up
from cqrs_sync.keywords import unknown_keywords
from cqrs_sync.lifecycle import reset_in_child
from cqrs_sync.messages import UNDECLARED, Event, NotificationEvent, Request, publication_of, response_type_of
from cqrs_sync.retry import RetryPolicy

#: Handlers, as `bind` returns them. A function takes the message first; that of an event returns nothing.
RequestHandlerType = TypeVar("RequestHandlerType", bound=type[RequestHandler[Any, Any]])
EventHandlerType = TypeVar("EventHandlerType", bound="type[EventHandler[Any]] | Callable[..., None]")
Req = TypeVar("Req", bound=Request[Any])
P = ParamSpec("P")
Answer = TypeVar("Answer")
H = TypeVar("H", bound="type[RequestHandler[Any, Any]] | Callable[..., Any]")


class Phase(enum.Enum):
    """When an event handler runs."""

    #: In the caller's thread, inside the open transaction; its failure fails the command.
    INLINE = "inline"
    #: On the pool, once the surrounding transaction has committed; at once where there is none.
    AFTER_COMMIT = "after commit"
    #: As after the commit, but the outbox stores the event in the transaction: the handler runs again if it fails,
    #: and in another process if this one dies.
    DURABLE = "durable"


class Binding(NamedTuple):
    """A handler bound to a message type."""

    message_type: type
    handler: Handler
    phase: Phase = Phase.AFTER_COMMIT
    #: The name of the handler in the outbox and the inbox. Later versions of the code keep it.
    stable_name: str | None = None

    @property
    def name(self) -> str:
        """The handler's name, for errors and logs."""
        return str(getattr(self.handler, "__qualname__", self.handler))

    @property
    def inbox_name(self) -> str:
        """
        The handler's name in the inbox: the stable name, else its module and qualified name.

        Raises InvalidBinding if it has neither, such as a `functools.partial`.
        """
        if self.stable_name is not None:
            return self.stable_name
        module, qualname = getattr(self.handler, "__module__", None), getattr(self.handler, "__qualname__", None)
        if not (isinstance(module, str) and isinstance(qualname, str)):
            raise InvalidBinding(
                f"{self.name} has no name that an inbox could store: "
                f'write bind({self.message_type.__qualname__}, ..., name="...")'
            )
        return f"{module}:{qualname}"


class RequestMap:
    """Requests and the one handler of each."""

    def __init__(self) -> None:
        self._bindings: dict[type, Binding] = {}

    @overload
    def bind(self, request_type: type[Request[Any]], /) -> Callable[[H], H]: ...  # type: ignore[overload-overlap]

    @overload
    def bind(self, request_type: type[Request[Any]], handler: RequestHandlerType, /) -> RequestHandlerType: ...

    @overload
    def bind(
        self, request_type: type[Request[Any]], handler: Callable[Concatenate[Req, P], Answer], /
    ) -> Callable[Concatenate[Req, P], Answer]: ...

    @overload
    def bind(self, handler: RequestHandlerType, /) -> RequestHandlerType: ...

    @overload
    def bind(self, handler: Callable[Concatenate[Req, P], Answer], /) -> Callable[Concatenate[Req, P], Answer]: ...

    def bind(self, *arguments: Any, **unknown: Any) -> Any:
        """
        Bind a request to its handler. Returns the handler, so it works as a decorator.

        The request may be left out: then `RequestHandler[Request, Response]` or the annotation of a function's first
        parameter says it. With the request alone, `@requests.bind(JoinMeeting)`, it returns a decorator.
        Raises InvalidBinding for an invalid handler or request, AlreadyBound for a second handler.
        """
        if unknown:
            raise unknown_keywords(RequestMap.bind, unknown)
        if _lacks_handler(arguments, Request):
            return partial(self.bind, *arguments)
        request_type, handler = _checked(arguments, RequestHandler, Request)
        _check_answer(request_type, handler)
        binding = Binding(request_type, handler)
        # Atomic: of two threads, one finds the binding of the other.
        known = self._bindings.setdefault(request_type, binding)
        if known is not binding:
            raise AlreadyBound(
                f"{request_type.__qualname__} is bound to {known.name}: "
                f"a request has one handler, so it cannot be bound to {_title(handler)} as well"
            )
        return handler

    def find(self, request_type: type, /) -> Binding:
        """Return the binding of a request. Raises HandlerNotFound, with similar names."""
        try:
            return self._bindings[request_type]
        except KeyError:
            raise HandlerNotFound(self._unbound(request_type)) from None

    def __iter__(self) -> Iterator[Binding]:
        return iter(list(self._bindings.values()))

    def __len__(self) -> int:
        return len(self._bindings)

    def _unbound(self, request_type: type) -> str:
        title = request_type.__qualname__
        if issubclass(request_type, type):
            return "a class was sent, not a request: send an instance of it, `send(JoinMeeting(...))`"
        if issubclass(request_type, Event):
            return f"{title} is an event, which is not sent: write `mediator.publish({title}(...))`"
        if not issubclass(request_type, Request):
            return f"{title} is not a request: subclass Command or Query"
        import difflib  # noqa: PLC0415 -- needed for this error only

        near = difflib.get_close_matches(title, [bound.__qualname__ for bound in self._bindings], n=3)
        hint = f"; similar requests are bound: {', '.join(near)}" if near else ""
        return f"no handler is bound to {title}: call requests.bind(<its handler>) before you send it{hint}"


class EventMap:
    """Events and their handlers, in the order they were bound."""

    def __init__(self) -> None:
        self._bindings: dict[type, list[tuple[int, Binding]]] = {}
        self._names: dict[str, type[Event]] = {}
        #: The notification events with handlers, by their stable names: a consumer may receive these.
        self.types: Mapping[str, type] = {}
        self._handlers: dict[str, Handler] = {}
        self._retries: dict[str, RetryPolicy] = {}
        #: The stable names of the durable handlers.
        self.durable_names: frozenset[str] = frozenset()
        #: Grows with each binding, when it can be found: a dispatcher compares it before it uses what it has prepared.
        self.version: int = 0
        self._lock = threading.Lock()
        reset_in_child(self)

    @overload
    def bind(
        self, *, phase: Phase = Phase.AFTER_COMMIT, name: str | None = None, retry: RetryPolicy | None = None
    ) -> Callable[[EventHandlerType], EventHandlerType]: ...

    @overload
    def bind(
        self,
        event_type: type[Event],
        /,
        *,
        phase: Phase = Phase.AFTER_COMMIT,
        name: str | None = None,
        retry: RetryPolicy | None = None,
    ) -> Callable[[EventHandlerType], EventHandlerType]: ...

    @overload
    def bind(
        self,
        event_type: type[Event],
        handler: EventHandlerType,
        /,
        *,
        phase: Phase = Phase.AFTER_COMMIT,
        name: str | None = None,
        retry: RetryPolicy | None = None,
    ) -> EventHandlerType: ...

    @overload
    def bind(
        self,
        handler: EventHandlerType,
        /,
        *,
        phase: Phase = Phase.AFTER_COMMIT,
        name: str | None = None,
        retry: RetryPolicy | None = None,
    ) -> EventHandlerType: ...

    def bind(
        self,
        *arguments: Any,
        phase: Phase = Phase.AFTER_COMMIT,
        name: str | None = None,
        retry: RetryPolicy | None = None,
        **unknown: Any,
    ) -> Any:
        """
        Bind an event to a handler, which also receives events of subclasses.

        The handler runs after the commit. `inline` and `durable` bind to the other phases; `phase` chooses one by its
        name. The event may be left out, as in `RequestMap.bind`. Without a handler it returns a decorator.

        A `name` is stable: an inbox then knows the handler even if its code moves. A durable handler has one, and may
        have a `retry` policy. Raises InvalidBinding for an invalid handler, event, name or policy, AlreadyBound if
        this handler or this name is bound already.
        """
        if unknown:
            raise unknown_keywords(EventMap.bind, unknown)
        if _lacks_handler(arguments, Event):
            return partial(self.bind, *arguments, phase=phase, name=name, retry=retry)
        event_type, handler = _checked(arguments, EventHandler, Event)
        _check_phase(phase, handler, name, retry)
        if name is not None:
            _check_stable_name(name, event_type, handler, durable=phase is Phase.DURABLE)
        with self._lock:
            self._add(Binding(event_type, handler, phase, name), retry)
        return handler

    @overload
    def inline(self, event_type: type[Event], /) -> Callable[[EventHandlerType], EventHandlerType]: ...

    @overload
    def inline(self, event_type: type[Event], handler: EventHandlerType, /) -> EventHandlerType: ...

    @overload
    def inline(self, handler: EventHandlerType, /) -> EventHandlerType: ...

    def inline(self, *arguments: Any, **unknown: Any) -> Any:
        """
        Bind a handler that runs inside the open transaction, in the caller's thread. Its failure fails the command.

        `@events.inline`, `@events.inline(OrderPlaced)` or `events.inline(OrderPlaced, handler)`. Raises what `bind`
        raises.
        """
        if unknown:
            raise unknown_keywords(EventMap.inline, unknown)
        return self.bind(*arguments, phase=Phase.INLINE)

    @overload
    def durable(
        self, name: str, /, *, retry: RetryPolicy | None = None
    ) -> Callable[[EventHandlerType], EventHandlerType]: ...

    @overload
    def durable(
        self, name: str, event_type: type[Event], /, *, retry: RetryPolicy | None = None
    ) -> Callable[[EventHandlerType], EventHandlerType]: ...

    @overload
    def durable(
        self, name: str, event_type: type[Event], handler: EventHandlerType, /, *, retry: RetryPolicy | None = None
    ) -> EventHandlerType: ...

    @overload
    def durable(
        self, name: str, handler: EventHandlerType, /, *, retry: RetryPolicy | None = None
    ) -> EventHandlerType: ...

    def durable(self, *arguments: Any, retry: RetryPolicy | None = None, **unknown: Any) -> Any:
        """
        Bind a handler whose event the outbox stores in the transaction: it runs again if it fails or its process dies.

        `@events.durable("bill")`, `@events.durable("bill", OrderPlaced)` or `events.durable("bill", OrderPlaced,
        handler)`. Other processes and later versions of the code find the handler by its stable name.

        `retry` says when and how often a failed attempt is made again. Settings of the operator come first: if
        `bootstrap(retry=RetryPolicies(targets={"bill": ...}))` names the handler, that policy counts. Without both,
        the default policy of `bootstrap` counts. Raises what `bind` raises.
        """
        if not arguments or not isinstance(arguments[0], str):
            subject = f"{_title(arguments[0])} is no" if arguments else "durable() lacks the"
            raise InvalidBinding(
                f"{subject} stable name, by which other processes find a durable handler: "
                'write events.durable("name"), and the event and the handler after it'
            )
        if unknown:
            raise unknown_keywords(EventMap.durable, unknown)
        name, *bound = arguments
        return self.bind(*bound, phase=Phase.DURABLE, name=name, retry=retry)

    def retry_of(self, name: str, /) -> RetryPolicy | None:
        """Return the retry policy that the durable handler of this name was bound with, or None."""
        return self._retries.get(name)

    def find(self, event_type: type, /) -> tuple[Binding, ...]:
        """Return the bindings of an event and of its base classes: each handler once, in the order of `bind`."""
        with self._lock:
            bound = [self._bindings.get(base, []) for base in event_type.__mro__]
        matching = [known for _, known in sorted(chain.from_iterable(bound), key=itemgetter(0))]
        return tuple(
            known
            for index, known in enumerate(matching)
            if not any(earlier.handler == known.handler for earlier in matching[:index])
        )

    def stored_type(self, name: str, /) -> type[Event] | None:
        """Return the event type of this stable name that durable handlers receive, or None."""
        known = self._names.get(name)
        if known is None:
            # A handler of a base class also receives subclasses, which are not bound themselves.
            bound = [binding.message_type for binding in self if binding.phase is Phase.DURABLE]
            known = next(
                (each for base in bound for each in _subclasses(base) if each.__publication__.name == name), None
            )
        return known

    def __iter__(self) -> Iterator[Binding]:
        bound = sorted(chain.from_iterable(list(self._bindings.values())), key=itemgetter(0))
        return iter([known for _, known in bound])

    def __len__(self) -> int:
        return sum(map(len, list(self._bindings.values())))

    def reset_in_child(self) -> None:
        """Replace the lock: another thread of the parent may have held it."""
        self._lock = threading.Lock()

    def _add(self, binding: Binding, retry: RetryPolicy | None) -> None:
        event_type, handler, phase, name = binding
        # Methods are equal, never identical.
        bound = self._bindings.get(event_type, [])
        if any(known.handler == handler for _, known in bound):
            raise AlreadyBound(f"{_title(handler)} is bound to {event_type.__qualname__} already")
        if name is not None and self._handlers.get(name, handler) != handler:
            known = _title(self._handlers[name])
            raise AlreadyBound(f"{known} is named {name!r} already: give {_title(handler)} another name")
        is_durable = phase is Phase.DURABLE
        if is_durable and name in self.durable_names and self._retries.get(name) != retry:
            raise InvalidBinding(f"{_title(handler)} is bound as {name!r} with two retry policies: give both the same")
        self._learn_name(event_type)
        # New ones, as below.
        self.types = {name: known for name, known in self._names.items() if issubclass(known, NotificationEvent)}
        if name is not None:
            self._handlers[name] = handler
        if name is not None and is_durable:
            if retry is not None:
                self._retries[name] = retry
            self.durable_names |= {name}
        # A new list: other threads may be reading the old one.
        self._bindings[event_type] = [*bound, (self.version, binding)]
        self.version += 1

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


def _subclasses(event_type: type[Event]) -> Iterator[type[Event]]:
    """Find the subclasses of an event, the latest first: attrs makes a slotted class anew, and the later one counts."""
    for subclass in reversed(event_type.__subclasses__()):
        yield subclass
        yield from _subclasses(subclass)


Handler: TypeAlias = "type | Callable[..., Any]"

#: Characters in a stable name: databases have it in an index.
_LONGEST_NAME = 200


def _lacks_handler(arguments: tuple[Any, ...], messages: type) -> bool:
    """Return whether `bind` has to make a decorator: it got a message type alone, or only options."""
    if len(arguments) != 1:
        return not arguments and messages is Event
    return _is_message(arguments[0], messages)


def _is_message(thing: Any, messages: type) -> bool:
    thing = get_origin(thing) or thing
    return isinstance(thing, type) and issubclass(thing, messages)


def _checked(arguments: tuple[Any, ...], role: type, messages: type) -> tuple[type, Handler]:
    """Return the message type and the handler of a `bind`. Raises InvalidBinding if they are invalid."""
    if len(arguments) not in (1, 2):
        raise TypeError(f"bind takes a handler, or a message type and a handler, not {len(arguments)} arguments")
    handler = arguments[-1]
    if len(arguments) == 2 and _is_message(handler, messages) and not _is_message(arguments[0], messages):
        raise InvalidBinding(
            f"the {messages.__name__.lower()} comes before its handler: write {_title(handler)}, {_title(arguments[0])}"
        )
    declared = _declared(handler, role, messages)
    message_type = arguments[0] if len(arguments) == 2 else declared
    if message_type is None:
        raise InvalidBinding(_why_undeclared(handler, role, messages))
    message_type = get_origin(message_type) or message_type
    if not (isinstance(message_type, type) and issubclass(message_type, messages)):
        raise InvalidBinding(f"{_title(message_type)} cannot be bound: it is not {_a(messages.__name__)}")
    if declared is not None and not issubclass(message_type, declared):
        raise InvalidBinding(
            f"{_title(handler)} handles {declared.__qualname__}, so it cannot be bound to {message_type.__qualname__}"
        )
    return message_type, handler


def _check_answer(request_type: type, handler: Any) -> None:
    """Raise InvalidBinding if the handler says that it answers with something else than the request says."""
    if isinstance(handler, type):
        answered = next((each[1] for each in _type_arguments(handler, RequestHandler) if len(each) == 2), Any)
    else:
        answered = inspect.signature(handler).return_annotation
        answered = Any if answered is inspect.Signature.empty else looked_up(handler, answered)
    declared = response_type_of(request_type)
    if declared is not UNDECLARED and not _may_be(answered, declared):
        raise InvalidBinding(
            f"{_title(handler)} answers with {_type_name(answered)}, and {request_type.__qualname__} declares "
            f"{_type_name(declared)}: let both say the same"
        )


def _may_be(answered: Any, declared: Any) -> bool:
    """Tell whether an answer may be of the declared type: only what is certain is refused."""
    if isinstance(answered, UnionType) or get_origin(answered) is Union:
        return any(_may_be(each, declared) for each in get_args(answered))
    if isinstance(declared, UnionType) or get_origin(declared) is Union:
        return any(_may_be(answered, each) for each in get_args(declared))
    if answered is Any or declared is Any:
        return True
    given, wanted = (type(None) if each is None else get_origin(each) or each for each in (answered, declared))
    if not (isinstance(given, type) and isinstance(wanted, type)) or (
        given in (int, float) and wanted in (float, complex)
    ):
        return True
    # Protocols and TypedDicts: `issubclass` cannot tell.
    if any(getattr(each, "_is_protocol", False) or hasattr(each, "__total__") for each in (given, wanted)):
        return True
    return issubclass(given, wanted) or issubclass(wanted, given)


def _check_phase(phase: object, handler: Any, name: object, retry: object) -> None:
    """Raise InvalidBinding for what is no phase, and for a name or a retry policy that does not fit the phase."""
    if not isinstance(phase, Phase):
        raise InvalidBinding(f"phase must be one of {', '.join(map(str, Phase))}, not {phase!r}")
    if phase is Phase.DURABLE and name is None:
        raise InvalidBinding(
            f"{_title(handler)} is durable and has no stable name for other processes to find it by: "
            'write events.durable("name")'
        )
    if retry is None:
        return
    if not isinstance(retry, RetryPolicy):
        raise InvalidBinding(f"the retry of {_title(handler)} must be a RetryPolicy, not {retry!r}")
    if phase is not Phase.DURABLE:
        raise InvalidBinding(
            f"{_title(handler)} has a retry policy and is not durable, so nothing would run it again: "
            'write events.durable("name", retry=...), or add a RetryMiddleware'
        )


def _check_stable_name(name: object, event_type: type, handler: Any, *, durable: bool) -> None:
    """
    Raise InvalidBinding for an invalid stable name.

    The event of a durable handler needs one as well: another process finds both by their names.
    """
    if not (isinstance(name, str) and 0 < len(name) <= _LONGEST_NAME and name.isprintable() and name == name.strip()):
        raise InvalidBinding(
            f"the name of {_title(handler)} must be one line of at most {_LONGEST_NAME} characters, not {name!r}"
        )
    if not durable:
        return
    if cast("type[Event]", event_type).__publication__.name is None:
        raise InvalidBinding(
            f"{_title(handler)} is durable, and its event {event_type.__qualname__} has no stable name to store it by: "
            f'write `class {event_type.__name__}(..., name="...")`'
        )
    publication_of(event_type)


def _declared(handler: Any, role: type, messages: type) -> type | None:
    """Return the message type that a handler declares, or None. Raises InvalidBinding if it cannot be a handler."""
    if isinstance(handler, type):
        return _declared_by_class(handler, role, messages)
    if isinstance(handler, (RequestHandler, EventHandler)):
        raise InvalidBinding(
            f"an instance of {type(handler).__qualname__} cannot be bound: bind the class, "
            "and register the instance in the container if it has to be this one"
        )
    if not callable(handler):
        raise InvalidBinding(f"{handler!r} is neither {_a(role.__name__)} class nor a function")
    if _is_asynchronous(handler) or _is_asynchronous(type(handler).__call__):
        raise InvalidBinding(f"{_title(handler)} is a coroutine function: this library is synchronous")
    parameters = list(inspect.signature(handler).parameters.values())
    if not parameters:
        raise InvalidBinding(f"{_title(handler)} takes no argument: it must take the {messages.__name__.lower()}")
    annotation = looked_up(handler, parameters[0].annotation)
    origin = get_origin(annotation) or annotation
    return origin if isinstance(origin, type) and issubclass(origin, messages) else None


def _why_undeclared(handler: Any, role: type, messages: type) -> str:
    """Say why a handler declares no message: it names none, something else, or a name that cannot be looked up."""
    title, kind, by_hand = _title(handler), messages.__name__, f"bind(<{messages.__name__}>, {_title(handler)})"
    if isinstance(handler, type):
        written = f"{role.__name__}[<{kind}>, ...]"
        declared = next((each[0] for each in _type_arguments(handler, role)), None)
        if declared is not None and not isinstance(declared, TypeVar):
            return f"{title} is a {role.__name__} of {_type_name(declared)}, which is not {_a(kind)} class: {written}"
        return f"{title} does not say which {kind.lower()} it handles: write {written} or {by_hand}"
    parameter = next(iter(inspect.signature(handler).parameters.values()))
    annotation = looked_up(handler, parameter.annotation)
    if annotation is parameter.empty:
        return (
            f"{title} does not say which {kind.lower()} it handles: annotate its first parameter with the "
            f"{kind.lower()}, or call {by_hand}"
        )
    if isinstance(annotation, str):
        return (
            f"{title} annotates its first parameter with {annotation!r}, which its module does not define: correct the "
            f"name, import it outside of `if TYPE_CHECKING`, or call {by_hand}"
        )
    return (
        f"{title} annotates its first parameter with {_type_name(annotation)}, which is not {_a(kind)} class: annotate "
        f"it with one, or call {by_hand}"
    )


def _declared_by_class(handler: type, role: type, messages: type) -> type | None:
    if not issubclass(handler, role):
        other = next((base.__name__ for base in (RequestHandler, EventHandler) if issubclass(handler, base)), None)
        what = f"is {_a(other)}" if other else f"is not {_a(role.__name__)}"
        raise InvalidBinding(f"{handler.__qualname__} {what}: bind a subclass of {role.__name__}, or a function")
    if inspect.isabstract(handler):
        missing = ", ".join(sorted(cast("Any", handler).__abstractmethods__))
        raise InvalidBinding(f"{handler.__qualname__} does not implement {missing}: define it")
    if _is_asynchronous(cast("Any", handler).handle):
        raise InvalidBinding(f"{handler.__qualname__}.handle is a coroutine function: this library is synchronous")
    for declared, *_ in _type_arguments(handler, role):
        origin = get_origin(declared) or declared
        if isinstance(origin, type) and issubclass(origin, messages):
            return origin
    return None


def _type_arguments(handler: type, role: type) -> Iterator[tuple[Any, ...]]:
    """Yield what the handler's class and its bases write into `role[...]`: the message first."""
    for base in handler.__mro__:
        for generic in base.__dict__.get("__orig_bases__", ()):
            if isinstance(get_origin(generic), type) and issubclass(cast("Any", get_origin(generic)), role):
                yield get_args(generic)


def _is_asynchronous(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _type_name(annotation: Any) -> str:
    if annotation is type(None):
        return "None"
    if isinstance(annotation, ForwardRef):
        return repr(annotation.__forward_arg__)
    return annotation.__qualname__ if isinstance(annotation, type) else str(annotation)


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIOU' else 'a'} {noun}"


def _title(thing: Any) -> str:
    """Return the name that code uses for it."""
    return str(getattr(thing, "__qualname__", None) or repr(thing))
