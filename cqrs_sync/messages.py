"""
Messages: requests, which have one handler, and events, which have any number.

They are values. attrs classes by convention; frozen dataclasses, pydantic models
and msgspec structs work as well. What the library must know of an event that is
stored or sent stands in class keywords, so that fields may be called `name` or `topic`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar, cast

from cqrs_sync.errors import InvalidMessage

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
EventType = TypeVar("EventType", bound="type[Event]")


class Request(Generic[R_co]):
    """Something an application is asked to do or to tell; `R` is what it answers."""

    __slots__ = ()


class Command(Request[R_co]):
    """A request to change something."""

    __slots__ = ()


class Query(Request[R_co]):
    """A request to tell something."""

    __slots__ = ()


class Response:
    """A convenience base for what handlers return; any other type will do."""

    __slots__ = ()


class Publication(NamedTuple):
    """What the library knows of a class of events."""

    topic: str | None = None
    name: str | None = None
    version: str = "1"
    key: str | None = None


def _describe(cls: type[Any], *, topic: str | None, name: str | None, version: str | None, key: str | None) -> None:
    for keyword, value in (("topic", topic), ("name", name), ("version", version), ("key", key)):
        if value is not None and not (isinstance(value, str) and value):
            raise InvalidMessage(f"{cls.__qualname__}: {keyword} must be a string with something in it, not {value!r}")
    inherited = cls.__publication__
    cls.__publication__ = Publication(
        topic=topic or inherited.topic,
        name=name,
        version=version or inherited.version,
        key=key or inherited.key,
    )


class Event:
    """
    Something that has happened.

    Class keywords, which an event needs to be stored or sent, and which no other event needs:

    - `name`: its stable name, unique in the application;
    - `version`: of its fields, "1" unless told;
    - `key`: the field whose value keeps order, events with the same key are
      received in the order they were raised.

    A subclass inherits all of them but `name`.
    """

    __slots__ = ()
    __publication__ = Publication()

    def __init_subclass__(
        cls, *, name: str | None = None, version: str | None = None, key: str | None = None, **keywords: Any
    ) -> None:
        super().__init_subclass__(**keywords)
        # attrs and dataclasses with slots build the class a second time, without the keywords:
        # then the first one's publication is already in the copied namespace.
        if "__publication__" not in cls.__dict__:
            _describe(cls, topic=None, name=name, version=version, key=key)


class DomainEvent(Event):
    """
    An event for handlers of this application.

    It needs a `name` where a durable handler is bound to it: then it is stored.
    """

    __slots__ = ()


class NotificationEvent(Event):
    """
    An event for other services: it leaves through a message broker.

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
    """Say as a decorator what class keywords say, for msgspec structs, which refuse them."""

    def describe(cls: EventType) -> EventType:
        _describe(cls, topic=topic, name=name, version=version, key=key)
        return cls

    return describe


def publication_of(event_type: type) -> Publication:
    """
    Return the class keywords of an event that is to be stored or sent, complete.

    Raises InvalidMessage where the topic of a notification, the name or the key's field is missing.
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
        raise InvalidMessage(f"{title} has no field {publication.key!r}, which is to be its key")
    return publication


def _fields_of(event_type: type) -> set[str]:
    """Every annotated name: what attrs, dataclasses, pydantic and msgspec have in common."""
    names: set[str] = set()
    for base in event_type.__mro__:
        names.update(inspect.get_annotations(base))
        names.update(field.name for field in base.__dict__.get("__attrs_attrs__", ()))
        names.update(name for name, value in base.__dict__.items() if isinstance(value, property))
    return names
