"""What a handler declares to handle, and what is wrong with it where it cannot be bound."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias, cast, get_args, get_origin, get_type_hints

from cqrs_sync.errors import InvalidBinding
from cqrs_sync.handlers import EventHandler, RequestHandler
from cqrs_sync.messages import Event, publication_of

Handler: TypeAlias = "type | Callable[..., Any]"

#: Characters of the stable name of a handler: a database keeps it in an index.
LONGEST_NAME = 200


def lacks_a_handler(arguments: tuple[Any, ...], messages: type) -> bool:
    """Tell whether `bind` is called to make a decorator: with a message type alone, or with options only."""
    if len(arguments) != 1:
        return not arguments and messages is Event
    message_type = get_origin(arguments[0]) or arguments[0]
    return isinstance(message_type, type) and issubclass(message_type, messages)


def checked(arguments: tuple[Any, ...], role: type, messages: type) -> tuple[type, Handler]:
    """Return message type and handler of a `bind`, or say what is wrong with them."""
    if len(arguments) not in (1, 2):
        raise TypeError(f"bind takes a handler, or a message type and a handler, not {len(arguments)} arguments")
    handler = arguments[-1]
    declared = _declared(handler, role, messages)
    message_type = arguments[0] if len(arguments) == 2 else declared
    if message_type is None:
        raise InvalidBinding(
            f"{title(handler)} does not say what it handles: write {role.__name__}[<{messages.__name__}>, ...], "
            f"annotate its first parameter, or call bind(<{messages.__name__}>, {title(handler)})"
        )
    message_type = get_origin(message_type) or message_type
    if not (isinstance(message_type, type) and issubclass(message_type, messages)):
        raise InvalidBinding(f"nothing can be bound to {title(message_type)}: it is not {_a(messages.__name__)}")
    if declared is not None and not issubclass(message_type, declared):
        raise InvalidBinding(
            f"{title(handler)} handles {declared.__qualname__}, it cannot be bound to {message_type.__qualname__}"
        )
    return message_type, handler


def check_stable_name(name: object, event_type: type, handler: Any, *, durable: bool) -> None:
    """
    Raise InvalidBinding for a name that no store takes.

    Also where a durable handler, or what it handles, could not be found again by another process.
    """
    if name is None and not durable:
        return
    if name is None:
        raise InvalidBinding(
            f"{title(handler)} is durable and has no stable name, by which another process could find it: "
            'write bind(..., phase=Phase.DURABLE, name="...")'
        )
    if not (isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name.isprintable() and name == name.strip()):
        raise InvalidBinding(
            f"the name of {title(handler)} must be one line of at most {LONGEST_NAME} characters, not {name!r}"
        )
    if not durable:
        return
    if cast("type[Event]", event_type).__publication__.name is None:
        raise InvalidBinding(
            f"{title(handler)} is durable, and {event_type.__qualname__} has no stable name to be stored by: "
            f'write `class {event_type.__name__}(..., name="...")`'
        )
    publication_of(event_type)


def _declared(handler: Any, role: type, messages: type) -> type | None:
    """Return the message type a handler declares, after a look at whether it is a handler at all."""
    if isinstance(handler, type):
        return _declared_by_class(handler, role, messages)
    if isinstance(handler, (RequestHandler, EventHandler)):
        raise InvalidBinding(
            f"an instance of {type(handler).__qualname__} cannot be bound: bind the class, "
            "and register the instance in the container where it must be this one"
        )
    if not callable(handler):
        raise InvalidBinding(f"{handler!r} is neither {_a(role.__name__)} class nor a function")
    if _is_asynchronous(handler) or _is_asynchronous(type(handler).__call__):
        raise InvalidBinding(f"{title(handler)} is a coroutine function: this library is synchronous")
    parameters = list(inspect.signature(handler).parameters.values())
    if not parameters:
        raise InvalidBinding(f"{title(handler)} takes no argument: it must take the {messages.__name__.lower()}")
    annotation = _hints(handler).get(parameters[0].name)
    origin = get_origin(annotation) or annotation
    return origin if isinstance(origin, type) and issubclass(origin, messages) else None


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
    for base in handler.__mro__:
        for generic in base.__dict__.get("__orig_bases__", ()):
            if isinstance(get_origin(generic), type) and issubclass(cast("Any", get_origin(generic)), role):
                declared = get_args(generic)[0]
                origin = get_origin(declared) or declared
                if isinstance(origin, type) and issubclass(origin, messages):
                    return origin
    return None


def _is_asynchronous(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except Exception:  # noqa: BLE001 -- a name under TYPE_CHECKING, or an object without annotations
        return dict(getattr(function, "__annotations__", {}))


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIOU' else 'a'} {noun}"


def title(thing: Any) -> str:
    """Name it the way the code does."""
    return str(getattr(thing, "__qualname__", None) or repr(thing))
