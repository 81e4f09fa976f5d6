"""Promises about handlers: what applications subclass."""

from __future__ import annotations

import attrs
import pytest

import cqrs_sync as cqrs


@attrs.frozen
class Join(cqrs.Command[str]):
    user_id: str = "ada"


@attrs.frozen
class Joined(cqrs.DomainEvent):
    user_id: str = "ada"


class JoinHandler(cqrs.RequestHandler[Join, str]):
    def __init__(self, greeting: str = "hello") -> None:
        self.greeting = greeting

    def handle(self, request):
        self.raise_event(Joined(request.user_id))
        return f"{self.greeting} {request.user_id}"


@attrs.frozen
class FrozenHandler(cqrs.RequestHandler[Join, str]):
    greeting: str = "hello"

    def handle(self, request):
        self.raise_event(Joined(request.user_id))
        return f"{self.greeting} {request.user_id}"


@attrs.define
class DefinedHandler(FrozenHandler):
    pass


@attrs.define
class FieldOfEvents(cqrs.EventHandler[Joined]):
    """Its own events are a field."""

    events: list[cqrs.Event] = attrs.field(factory=list)

    def handle(self, event):
        self.events.append(event)


@pytest.mark.parametrize("handler_type", [JoinHandler, FrozenHandler, DefinedHandler])
def test_a_handler_owes_no_call_of_super(handler_type):
    """
    Its constructor is its own affair, attrs makes it where wanted.
    """
    handler = handler_type("welcome")

    assert "welcome ada" == handler.handle(Join())
    assert [Joined()] == list(handler.events)


@pytest.mark.parametrize("handler_type", [JoinHandler, FrozenHandler, DefinedHandler])
def test_events_raised_by_hand_are_those_of_the_handler(handler_type):
    """
    Of this one: another has its own, and a class none.
    """
    one, other = handler_type(), handler_type()
    one.handle(Join("ada"))
    one.handle(Join("bob"))
    other.handle(Join("eve"))

    assert [Joined("ada"), Joined("bob")] == list(one.events)
    assert [Joined("eve")] == list(other.events)
    assert [] == list(handler_type().events)


@pytest.mark.parametrize("role", [cqrs.RequestHandler, cqrs.EventHandler])
def test_a_handler_must_handle(role):
    """
    Without `handle` it cannot be made.
    """
    with pytest.raises(TypeError, match="handle"):
        type("Unfinished", (role,), {})()


def test_a_handlers_own_events_may_be_a_field():
    """
    A property in the specification; attrs makes a field of it.
    """
    events, seen = cqrs.EventMap(), []
    events.bind(FieldOfEvents)
    events.bind(cqrs.Event, seen.append)
    with cqrs.bootstrap(events=events, threads=cqrs.SameThread()) as mediator:
        mediator.publish(Joined())

    assert [Joined()] == seen


def test_a_handler_may_use_both_forms():
    """
    Events of its own list come after those that it raised.
    """

    class Both(cqrs.RequestHandler[Join, str]):
        def __init__(self):
            self.own = []

        @property
        def events(self):
            return self.own

        def handle(self, request):
            self.own.append(Joined("own"))
            self.raise_event(Joined("raised"))

    requests, events, seen = cqrs.RequestMap(), cqrs.EventMap(), []
    requests.bind(Both)
    events.bind(Joined, seen.append)
    with cqrs.bootstrap(requests, events, threads=cqrs.SameThread()) as mediator:
        mediator.send(Join())

    assert [Joined("raised"), Joined("own")] == seen


def test_a_handlers_own_events_may_be_any_sequence():
    """
    They are looked at once, when it has returned.
    """

    class Generating(cqrs.RequestHandler[Join, str]):
        count = 0

        @property
        def events(self):
            return (Joined(str(number)) for number in range(self.count))

        def handle(self, request):
            self.count = 3

    requests, events, seen = cqrs.RequestMap(), cqrs.EventMap(), []
    requests.bind(Generating)
    events.bind(Joined, seen.append)
    with cqrs.bootstrap(requests, events, threads=cqrs.SameThread()) as mediator:
        mediator.send(Join())

    assert [Joined("0"), Joined("1"), Joined("2")] == seen
