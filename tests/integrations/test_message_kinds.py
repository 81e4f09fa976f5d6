"""
pydantic models, msgspec structs and dataclasses work wherever an attrs class does.
On the wire: tests/promises/test_b3_*.py.
"""

from __future__ import annotations

import dataclasses

import attrs
import msgspec
import pydantic
import pytest

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker
from cqrs_sync.messages import Publication, publication_of


@attrs.frozen
class AttrsCommand(cqrs.Command[str]):
    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class DataclassCommand(cqrs.Command[str]):
    name: str


class PydanticCommand(pydantic.BaseModel, cqrs.Command[str], frozen=True):
    name: str


class MsgspecCommand(msgspec.Struct, cqrs.Command[str], frozen=True):
    name: str


@attrs.frozen
class AttrsEvent(cqrs.DomainEvent):
    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class DataclassEvent(cqrs.DomainEvent):
    name: str


class PydanticEvent(pydantic.BaseModel, cqrs.DomainEvent, frozen=True):
    name: str


class MsgspecEvent(msgspec.Struct, cqrs.DomainEvent, frozen=True):
    name: str


class PydanticTold(
    pydantic.BaseModel, cqrs.NotificationEvent, topic="told", name="told.pydantic", key="name", frozen=True
):
    name: str = pydantic.Field(alias="fullName", min_length=1)


@cqrs.notification(topic="told", name="told.msgspec", key="name")
class MsgspecTold(msgspec.Struct, cqrs.NotificationEvent, frozen=True, rename="camel"):
    name: str
    last_name: str = ""


KINDS = [
    (AttrsCommand, AttrsEvent),
    (DataclassCommand, DataclassEvent),
    (PydanticCommand, PydanticEvent),
    (MsgspecCommand, MsgspecEvent),
]


@pytest.mark.parametrize(("command", "event"), KINDS)
def test_requests_and_events_may_be_of_any_kind(command, event):
    """
    Handled by a class and by a function, found by their base class and by their own.
    """
    requests, events, seen = cqrs.RequestMap(), cqrs.EventMap(), []

    class Handler(cqrs.RequestHandler[command, str]):
        def handle(self, request):
            self.raise_event(event(name=request.name))
            return f"hello {request.name}"

    requests.bind(Handler)
    events.bind(event, seen.append)
    events.bind(cqrs.DomainEvent, lambda event: seen.append(event.name))
    with cqrs.bootstrap(requests, events, threads=2) as mediator:
        assert "hello Zoë" == mediator.send(command(name="Zoë"))

    assert [event(name="Zoë"), "Zoë"] == sorted(seen, key=lambda each: isinstance(each, str))


@pytest.mark.parametrize(("command", "event"), KINDS)
def test_instances_are_told_apart_not_values(command, event):
    """
    Equal events are two; the same raised twice is one.
    """
    requests, events, seen = cqrs.RequestMap(), cqrs.EventMap(), []

    def raise_three(request):
        one = event(name="a")
        for each in (one, one, event(name="a")):
            cqrs.raise_event(each)

    requests.bind(command, raise_three)
    events.bind(event, seen.append)
    with cqrs.bootstrap(requests, events, threads=2) as mediator:
        mediator.send(command(name="Zoë"))

    assert 2 == len(seen)


@pytest.mark.parametrize(
    "told", [PydanticTold(fullName="Zoë"), MsgspecTold("Zoë", "B")], ids=lambda told: type(told).__name__
)
def test_names_on_the_wire_are_those_of_the_model(told):
    """
    Aliases of pydantic and renamed fields of msgspec, there and back.
    """
    broker, events, seen = MemoryBroker(), cqrs.EventMap(), []
    events.bind(type(told), seen.append)
    with cqrs.bootstrap(source="tests", events=events, broker=broker, threads=cqrs.SameThread()) as mediator:
        mediator.publish(told)
        [sent] = broker.published
        mediator.receive(cqrs.IncomingMessage(sent.topic, sent.body, sent.content_type, sent.key, sent.attributes))

    assert [told, told] == seen
    assert sent.body in (b'{"fullName":"Zo\xc3\xab"}', b'{"name":"Zo\xc3\xab","lastName":"B"}')
    assert "Zoë" == sent.key


@pytest.mark.parametrize(("name", "body"), [("told.pydantic", b'{"fullName": ""}'), ("told.msgspec", b"{}")])
def test_what_a_model_refuses_is_malformed(name, body):
    """
    Its own exception is the cause, and does not come out.
    """
    events = cqrs.EventMap()
    events.bind(PydanticTold, lambda event: None)
    events.bind(MsgspecTold, lambda event: None)
    attributes = {"specversion": "1.0", "id": "1", "source": "/", "type": name}
    with cqrs.bootstrap(events=events) as mediator, pytest.raises(cqrs.MalformedMessage) as caught:
        mediator.receive(cqrs.IncomingMessage("told", body, "application/json", None, attributes))

    assert caught.value.__cause__ is not None


def test_class_keywords_of_models_are_inherited():
    """
    All but the name, as with attrs classes.
    """

    class Louder(PydanticTold, name="told.louder", version="2"):
        volume: int = 11

    @cqrs.notification(name="told.softer", topic="whispers")
    class Softer(MsgspecTold):
        volume: int = 1

    assert publication_of(Louder) == Publication("told", "told.louder", "2", "name")
    assert publication_of(Softer) == Publication("whispers", "told.softer", "1", "name")


def test_a_model_keeps_its_own_class_keywords():
    """
    Those of pydantic and msgspec reach them.
    """
    with pytest.raises(pydantic.ValidationError):
        PydanticCommand(name="a").name = "b"
    with pytest.raises(AttributeError):
        MsgspecCommand("a").name = "b"
    with pytest.raises(TypeError, match="topic"):
        type("Refused", (msgspec.Struct, cqrs.NotificationEvent), {}, topic="told")
