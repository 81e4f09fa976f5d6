"""
Messages: requests, which have one handler, and events, which have any number.

Messages are values: attrs classes by convention. Frozen dataclasses, pydantic models
and msgspec structs work as well. Class keywords describe how an event is stored or
sent, so that fields may be called `name` or `topic`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    ForwardRef,
    Generic,
    NamedTuple,
    TypeVar,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from cqrs_sync.errors import InvalidMessage

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
EventType = TypeVar("EventType", bound="type[Event]")


class _Message:
    """Says what is missing if a message class has fields and nothing that makes a constructor of them."""

    __slots__ = ()

    # Type checkers must go on refusing arguments that no constructor takes.
    if not TYPE_CHECKING:

        def __init__(self, *values: Any, **fields: Any) -> None:
            following = super().__init__
            if (values or fields) and getattr(following, "__objclass__", None) is object:
                title = type(self).__qualname__
                if _fields_of(type(self)):
                    raise InvalidMessage(f"{title} has fields and no constructor: write @attrs.frozen above the class")
                raise TypeError(f"{title}() takes no arguments")
            following(*values, **fields)

        # Otherwise pydantic would call it for each model that it reads.
        __init__.__pydantic_base_init__ = True


class Request(_Message, Generic[R_co]):
    """A command or a query. `R` is the type of its response."""

    __slots__ = ()


class Command(Request[R_co]):
    """A request to change something."""

    __slots__ = ()


class Query(Request[R_co]):
    """A request to return something."""

    __slots__ = ()


class Response:
    """An optional base class for responses. Any other type works as well."""

    __slots__ = ()


class Publication(NamedTuple):
    """The class keywords of an event."""

    topic: str | None = None
    name: str | None = None
    version: str = "1"
    key: str | None = None


def _describe(cls: type[Any], *, topic: str | None, name: str | None, version: str | None, key: str | None) -> None:
    for keyword, value in (("topic", topic), ("name", name), ("version", version), ("key", key)):
        if value is not None and not (isinstance(value, str) and value):
            raise InvalidMessage(f"{cls.__qualname__}: {keyword} must be a non-empty string, not {value!r}")
    inherited = cls.__publication__
    cls.__publication__ = Publication(
        topic=topic or inherited.topic,
        name=name,
        version=version or inherited.version,
        key=key or inherited.key,
    )


class Event(_Message):
    """
    Something that has happened.

    An event that is stored or sent has class keywords. Other events do not need them:

    - `name`: its stable name, unique in the application;
    - `version`: the version of its fields, "1" by default;
    - `key`: the field whose value keeps order: receivers get events with the same key
      in the order in which they were raised.

    A subclass inherits all of them except `name`.
    """

    __slots__ = ()
    __publication__: ClassVar[Publication] = Publication()

    def __init_subclass__(
        cls, *, name: str | None = None, version: str | None = None, key: str | None = None, **keywords: Any
    ) -> None:
        super().__init_subclass__(**keywords)
        # attrs and dataclasses with slots build the class a second time, without the keywords:
        # then the copied namespace has the publication already.
        if "__publication__" not in cls.__dict__:
            _describe(cls, topic=None, name=name, version=version, key=key)


class DomainEvent(Event):
    """
    An event for handlers of this application.

    It needs a `name` if it has a durable handler: then the outbox stores it.
    """

    __slots__ = ()


class NotificationEvent(Event):
    """
    An event for other services. A message broker delivers it.

    Besides `name`, `version` and `key`, it has the class keyword `topic`: where it is published.
    """

    __slots__ = ()

    def __init_subclass__(
        cls,
        *,
        topic: str | None = None,
        name: str | None = None,
        version: str | None = None,
        key: str | None = None,
        **keywords: Any,
    ) -> None:
        # Before the base class does it without the topic.
        if "__publication__" not in cls.__dict__:
            _describe(cls, topic=topic, name=name, version=version, key=key)
        super().__init_subclass__(**keywords)


def notification(
    *, topic: str | None = None, name: str | None = None, version: str | None = None, key: str | None = None
) -> Callable[[EventType], EventType]:
    """Set the class keywords with a decorator, for msgspec structs, which do not accept them."""

    def describe(cls: EventType) -> EventType:
        _describe(cls, topic=topic, name=name, version=version, key=key)
        return cls

    return describe


def publication_of(event_type: type) -> Publication:
    """
    Return the class keywords of an event, if they are complete enough to store or send it.

    Raises InvalidMessage if the topic of a notification event, the name or the key's field is missing.
    """
    publication = cast("type[Event]", event_type).__publication__
    title = event_type.__qualname__
    leaves = issubclass(event_type, NotificationEvent)
    topic_is_missing = leaves and publication.topic is None
    if topic_is_missing or publication.name is None:
        missing = "topic" if topic_is_missing else "stable name"
        keywords = 'NotificationEvent, topic="...", name="..."' if leaves else 'DomainEvent, name="..."'
        raise InvalidMessage(f"{title} has no {missing}: write `class {event_type.__name__}({keywords})`")
    if publication.key is not None and publication.key not in _fields_of(event_type):
        raise InvalidMessage(
            f"{title} has no field {publication.key!r}, which `key` names: add the field or name another one"
        )
    return publication


def _fields_of(event_type: type) -> set[str]:
    """Return all annotated names: attrs, dataclasses, pydantic and msgspec have these in common."""
    names: set[str] = set()
    for base in event_type.__mro__:
        names.update(inspect.get_annotations(base))
        names.update(field.name for field in base.__dict__.get("__attrs_attrs__", ()))
        names.update(name for name, value in base.__dict__.items() if isinstance(value, property))
    return names


#: What `response_type_of` returns for a request that does not say what its response is.
UNDECLARED: Final = object()


def response_type_of(request_type: type) -> Any:
    """Return the type of the response, as the class of the request declares it; UNDECLARED if it does not."""
    for base in request_type.__mro__:
        for generic in base.__dict__.get("__orig_bases__", ()):
            origin = get_origin(generic)
            if isinstance(origin, type) and issubclass(origin, Request):
                answer = get_args(generic)[0]
                if not isinstance(answer, TypeVar):
                    return _resolved(answer, base)
    return UNDECLARED


def _resolved(answer: Any, base: type) -> Any:
    """Return the class of a forward reference."""
    return resolve_annotation(answer, vars(sys.modules[base.__module__])) if isinstance(answer, ForwardRef) else answer


def resolve_annotation(annotation: Any, scope: dict[str, Any]) -> Any:
    """Return what one annotation means in a scope, and look at no other. Raises what looking up a name raises."""
    return get_type_hints(SimpleNamespace(__annotations__={"it": annotation}), scope)["it"]
