"""Promises about messages: values, described by class keywords."""

from __future__ import annotations

import dataclasses
import pickle

import attrs
import pydantic
import pytest

import cqrs_sync as cqrs
from cqrs_sync.messages import Publication, publication_of


@attrs.frozen
class MeetingJoined(cqrs.NotificationEvent, topic="meetings", name="meeting.joined", version="3", key="meeting_id"):
    meeting_id: str
    user_id: str = "ada"


@attrs.frozen
class GetSeats(cqrs.Query[int]):
    meeting_id: str


WHOLE = Publication(topic="meetings", name="meeting.joined", version="3", key="meeting_id")

WAYS = {
    "attrs": attrs.frozen,
    "attrs without slots": attrs.frozen(slots=False),
    "dataclass": dataclasses.dataclass(frozen=True),
    "dataclass with slots": dataclasses.dataclass(frozen=True, slots=True),
    "no library": lambda cls: cls,
}


@pytest.fixture(params=WAYS.values(), ids=WAYS.keys())
def made(request):
    """Make a class of values, in any way."""
    return request.param


def test_class_keywords_survive_however_the_class_is_made(made):
    """
    attrs and dataclasses with slots build the class a second time, without them.
    """

    @made
    class Joined(cqrs.NotificationEvent, topic="meetings", name="meeting.joined", version="3", key="meeting_id"):
        meeting_id: str

    assert publication_of(Joined) == WHOLE


def test_fields_may_be_called_like_class_keywords(made):
    """
    `topic`, `name`, `version` and `key` are a user's words first.
    """

    @made
    class Renamed(cqrs.NotificationEvent, topic="names", name="renamed", key="key"):
        topic: str = "field topic"
        name: str = "field name"
        version: int = 7
        key: str = "field key"

    event = Renamed()

    assert ("field topic", "field name", 7, "field key") == (event.topic, event.name, event.version, event.key)
    assert publication_of(Renamed) == Publication("names", "renamed", "1", "key")


def test_a_subclass_inherits_all_but_the_name(made):
    """
    Two events under one name could not be told apart.
    """

    @made
    class Joined(cqrs.NotificationEvent, topic="meetings", name="meeting.joined", version="3", key="meeting_id"):
        meeting_id: str

    @made
    class JoinedLate(Joined, name="meeting.joined.late"):
        minutes: int = 5

    @made
    class Nameless(Joined):
        minutes: int = 5

    assert publication_of(JoinedLate) == Publication("meetings", "meeting.joined.late", "3", "meeting_id")
    with pytest.raises(cqrs.InvalidMessage, match="Nameless has no stable name"):
        publication_of(Nameless)
    assert publication_of(Joined) == WHOLE


def test_a_subclass_may_change_what_it_inherits(made):
    """
    Each keyword by itself.
    """

    @made
    class Moved(MeetingJoined, topic="rooms", name="moved", version="1", key="user_id"):
        pass

    assert publication_of(Moved) == Publication("rooms", "moved", "1", "user_id")


def test_the_decorator_says_what_class_keywords_say(made):
    """
    For classes that refuse keywords.
    """

    @cqrs.notification(topic="meetings", name="meeting.joined", version="3", key="meeting_id")
    @made
    class Joined(cqrs.NotificationEvent):
        meeting_id: str

    assert publication_of(Joined) == WHOLE


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"name": "joined"}, r'^\S*Joined has no topic: write `class Joined\(NotificationEvent, topic="\.\.\."'),
        ({"topic": "meetings"}, r"^\S*Joined has no stable name: "),
        ({}, "has no topic"),
        ({"topic": "meetings", "name": "joined", "key": "meeting"}, "Joined has no field 'meeting', which `key` names"),
    ],
)
def test_what_is_missing_is_named(keywords, words):
    """
    With the line to write.
    """

    @attrs.frozen
    class Joined(cqrs.NotificationEvent, **keywords):
        meeting_id: str

    with pytest.raises(cqrs.InvalidMessage, match=words):
        publication_of(Joined)


@pytest.mark.parametrize("keyword", ["topic", "name", "version", "key"])
@pytest.mark.parametrize("value", ["", 1, b"bytes", ["list"]])
@pytest.mark.parametrize("decorated", [False, True], ids=["class keyword", "decorator"])
def test_a_class_keyword_is_a_string_with_something_in_it(keyword, value, decorated):
    """
    A wrong one is refused where the class is written.
    """

    def write():
        if decorated:
            cqrs.notification(**{keyword: value})(type("Joined", (cqrs.NotificationEvent,), {}))
        else:
            type("Joined", (cqrs.NotificationEvent,), {}, **{keyword: value})

    with pytest.raises(cqrs.InvalidMessage, match=rf"Joined: {keyword} must be a non-empty string, not"):
        write()


def test_an_unknown_class_keyword_is_an_error():
    """
    A slip of the pen is found where it was made.
    """
    with pytest.raises(TypeError):
        type("Joined", (cqrs.NotificationEvent,), {}, topik="meetings")


def test_the_key_may_be_a_property(made):
    """
    Or an attribute of a base class.
    """

    @made
    class Joined(cqrs.NotificationEvent, topic="meetings", name="joined", key="place"):
        meeting_id: str = "m-1"

        @property
        def place(self):
            return f"room of {self.meeting_id}"

    @made
    class JoinedLate(MeetingJoined, name="joined.late"):
        pass

    assert ("place", "meeting_id") == (publication_of(Joined).key, publication_of(JoinedLate).key)


def test_values_have_no_dictionary():
    """
    The library's base classes do not take their slots away.
    """
    assert not hasattr(MeetingJoined("m-1"), "__dict__")
    assert not hasattr(GetSeats("m-1"), "__dict__")


@pytest.mark.parametrize("message", [MeetingJoined("m-1"), GetSeats("m-1")], ids=lambda value: type(value).__name__)
def test_values_are_compared_copied_and_pickled_as_values(message):
    """
    For Celery and multiprocessing, and for tests.
    """
    assert message == attrs.evolve(message) == pickle.loads(pickle.dumps(message))  # noqa: S301 -- just written
    assert hash(message) == hash(attrs.evolve(message))


def test_events_are_of_two_kinds():
    """
    For this process, and for others; both can be handled as events.
    """
    assert issubclass(cqrs.DomainEvent, cqrs.Event)
    assert issubclass(cqrs.NotificationEvent, cqrs.Event)
    assert not issubclass(cqrs.NotificationEvent, cqrs.DomainEvent)
    assert not issubclass(cqrs.DomainEvent, cqrs.NotificationEvent)


def test_requests_are_of_two_kinds():
    """
    Those that change, and those that tell.
    """
    assert issubclass(cqrs.Command, cqrs.Request)
    assert issubclass(cqrs.Query, cqrs.Request)
    assert not issubclass(cqrs.Event, cqrs.Request)


class Undecorated(cqrs.Command[None]):
    meeting_id: str


class UndecoratedEvent(cqrs.NotificationEvent, topic="meetings", name="meeting.left"):
    meeting_id: str


class WithoutFields(cqrs.Command[None]):
    pass


@pytest.mark.parametrize("message_type", [Undecorated, UndecoratedEvent])
def test_a_class_with_fields_and_no_constructor_says_what_is_missing(message_type):
    with pytest.raises(
        cqrs.InvalidMessage, match=r"has fields and no constructor: write @attrs.frozen above the class"
    ):
        message_type("weekly")


def test_a_class_without_fields_takes_no_arguments():
    WithoutFields()
    with pytest.raises(TypeError, match=r"WithoutFields\(\) takes no arguments"):
        WithoutFields("weekly")


def test_constructors_of_other_bases_and_of_the_class_itself_are_called():
    class Model(cqrs.DomainEvent, pydantic.BaseModel):
        meeting_id: str

    class Own(cqrs.Command[None]):
        def __init__(self, meeting_id):
            super().__init__()
            self.meeting_id = meeting_id

    assert not Model.__pydantic_custom_init__
    assert ["weekly"] * 3 == [
        Model(meeting_id="weekly").meeting_id,
        Model.model_validate({"meeting_id": "weekly"}).meeting_id,
        Own("weekly").meeting_id,
    ]
