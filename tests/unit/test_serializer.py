"""Promises about events and their bytes: CloudEvents with JSON data, and nothing comes in that was not asked for."""

from __future__ import annotations

import base64
import datetime as dt
import enum
import json
import threading
import uuid
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cqrs_sync as cqrs
from cqrs_sync.serializer import STRUCTURED, JsonSerializer, uuid7


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@attrs.frozen
class Point:
    x: float
    y: float = 0.0


@attrs.frozen
class Everything(cqrs.NotificationEvent, topic="things", name="everything", version="4", key="number"):
    number: int
    text: str = ""
    real: float = 0.0
    yes: bool = False
    nothing: str | None = None
    price: Decimal = Decimal(0)
    identity: uuid.UUID | None = None
    at: dt.datetime = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    day: dt.date = dt.date(2026, 1, 1)
    time: dt.time = dt.time(12, 30)
    colour: Colour = Colour.RED
    level: Level = Level.LOW
    data: bytes = b""
    point: Point = Point(0.0)
    points: list[Point] = attrs.field(factory=list)
    pair: tuple[int, str] = (0, "")
    many: tuple[Point, ...] = ()
    unique: frozenset[int] = frozenset()
    names: dict[str, int] = attrs.field(factory=dict)
    keyed: dict[int, Decimal] = attrs.field(factory=dict)
    choice: Literal["a", "b"] = "a"
    sequence: Sequence[str] = ()
    mapping: Mapping[str, Point] = attrs.field(factory=dict)


@attrs.frozen
class Small(cqrs.NotificationEvent, topic="things", name="small"):
    number: int = 1


TYPES = {"everything": Everything, "small": Small}
ATTRIBUTES = {"specversion": "1.0", "id": "m-1", "source": "/elsewhere", "type": "small"}


@pytest.fixture(params=[False, True], ids=["binary", "structured"])
def serializer(request):
    return JsonSerializer(source="/here", structured=request.param)


def incoming(message):
    return cqrs.IncomingMessage(message.topic, message.body, message.content_type, message.key, message.attributes)


def received(body=b"{}", content_type="application/json", **attributes):
    return cqrs.IncomingMessage("things", body, content_type, None, {**ATTRIBUTES, **attributes})


# There and back

whole = st.integers(-(2**53), 2**53)
texts = st.text(st.characters(exclude_categories=["Cs"]))
points = st.builds(
    Point, st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False)
)


@given(
    event=st.builds(
        Everything,
        number=whole,
        text=texts,
        real=st.floats(allow_nan=False, allow_infinity=False),
        yes=st.booleans(),
        nothing=st.none() | texts,
        price=st.decimals(allow_nan=False, allow_infinity=False),
        identity=st.uuids(),
        at=st.datetimes(timezones=st.just(dt.UTC)),
        day=st.dates(),
        time=st.times(),
        colour=st.sampled_from(Colour),
        level=st.sampled_from(Level),
        data=st.binary(),
        point=points,
        points=st.lists(points),
        pair=st.tuples(whole, texts),
        many=st.lists(points).map(tuple),
        unique=st.frozensets(whole),
        names=st.dictionaries(texts, whole),
        keyed=st.dictionaries(whole, st.decimals(allow_nan=False, allow_infinity=False)),
        choice=st.sampled_from(["a", "b"]),
        sequence=st.lists(texts).map(tuple),
        mapping=st.dictionaries(texts, points),
    ),
    structured=st.booleans(),
)
def test_an_event_comes_back_as_it_was(event, structured):
    """
    Whatever is in it, in either mode; exactly, Decimals included.
    """
    serializer = JsonSerializer(source="tests", structured=structured)
    loaded, attributes = serializer.load(incoming(serializer.dump(event)), TYPES)

    assert (event, Everything) == (attrs.evolve(loaded, sequence=tuple(loaded.sequence)), type(loaded))
    assert ("everything", "4", str(event.number)) == (
        attributes["type"],
        attributes["eventversion"],
        attributes["partitionkey"],
    )


def test_what_a_message_has_too_much_is_ignored_and_what_it_lacks_is_filled_in(serializer):
    """
    Fields may be added, with defaults, while older services still publish and read.
    """
    newer = received(b'{"number": 7, "added": "later"}')
    older = received(b"{}")

    assert Small(7) == serializer.load(newer, TYPES)[0]
    assert Small(1) == serializer.load(older, TYPES)[0]


def test_data_may_come_as_base64():
    """
    As CloudEvents allows in structured mode.
    """
    body = json.dumps({**ATTRIBUTES, "data_base64": base64.b64encode(b'{"number": 5}').decode()})

    assert Small(5) == JsonSerializer(source="tests").load(received(body.encode(), STRUCTURED), TYPES)[0]


@pytest.mark.parametrize(
    "content_type", [None, "", "application/json", "application/json; charset=utf-8", "text/plain"]
)
def test_a_body_is_json_whatever_it_says(content_type):
    """
    Only structured mode is told from its content type.
    """
    assert Small(5) == JsonSerializer(source="tests").load(received(b'{"number": 5}', content_type), TYPES)[0]


@pytest.mark.parametrize(
    "content_type", [STRUCTURED, f"{STRUCTURED}; charset=utf-8", "Application/CloudEvents+JSON", f" {STRUCTURED} "]
)
def test_structured_mode_is_told_from_the_content_type(content_type):
    """
    However it is written.
    """
    body = json.dumps({**ATTRIBUTES, "id": "in the body", "data": {"number": 5}}).encode()
    event, attributes = JsonSerializer(source="tests").load(cqrs.IncomingMessage("things", body, content_type), TYPES)

    assert (Small(5), "in the body") == (event, attributes["id"])


# What goes out


def test_a_message_is_complete(serializer):
    """
    Id, topic, name and key stand where a broker looks for them.
    """
    message = serializer.dump(Everything(7))

    assert ("things", "everything", "7") == (message.topic, message.type, message.key)
    assert uuid.UUID(message.id).version == 7


def test_an_event_without_a_key_has_none(serializer):
    """
    Then the broker spreads messages as it likes.
    """
    message = serializer.dump(Small())

    assert message.key is None
    assert "partitionkey" not in message.attributes
    assert b"partitionkey" not in message.body


def test_each_dump_is_another_message(serializer):
    """
    An id is given when an event is raised, once.
    """
    event = Small()

    assert serializer.dump(event).id != serializer.dump(event).id


def test_ids_sort_by_time():
    """
    They are UUIDs of version 7: indexes of stores stay small.
    """
    early = uuid7()
    while uuid7()[:13] == early[:13]:
        pass
    late = uuid7()

    assert early < late
    assert {(7, uuid.RFC_4122)} == {(uuid.UUID(each).version, uuid.UUID(each).variant) for each in (early, late)}
    assert 10_000 == len({uuid7() for _ in range(10_000)})


@attrs.frozen
class Anything(cqrs.NotificationEvent, topic="things", name="anything"):
    what: object


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1, object()},
        lambda: None,
        2**70,
        float("nan"),
        [1.0, {"a": float("-inf")}, None],
        "\ud800",
        Exception("?"),
        type,
        threading.Lock(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_become_json_is_named(serializer, value):
    """
    The event is, with the reason; the exception of the JSON library is its cause.
    """
    with pytest.raises(cqrs.EventNotSerializable, match="Anything cannot become JSON: ") as caught:
        serializer.dump(Anything(value))

    assert caught.value.__cause__ is not None


def test_what_goes_round_in_itself_cannot_become_json(serializer):
    """
    It ends in an error, not in a crash.
    """
    circle = []
    circle.append(circle)
    with pytest.raises(cqrs.EventNotSerializable, match="Anything cannot become JSON: "):
        serializer.dump(Anything(circle))


@pytest.mark.parametrize("source", ["", "my shop", "shop\n", None, 7])
def test_a_source_is_needed(source):
    """
    CloudEvents asks for one.
    """
    with pytest.raises(cqrs.ConfigurationError, match="source must be the name of the service"):
        JsonSerializer(source=source)


# What comes in


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (received(b""), "the body is not JSON"),
        (received(b"{"), "the body is not JSON"),
        (received(b"\xff\xfe"), "the body is not JSON"),
        (received(b"\x00", "application/avro"), "the body is not JSON, its content type is 'application/avro'"),
        (received(b'{"number": NaN}'), "the body is not JSON"),
        (received(b"[" * 100_000), "the body is not JSON"),
        (received(b"[1, 2]"), "the data of 'small' does not fit Small"),
        (received(b'"text"'), "the data of 'small' does not fit Small"),
        (received(b"null"), "the data of 'small' does not fit Small"),
        (received(b'{"number": "seven"}'), r"the data of 'small' does not fit Small: ValueError: .*@ \$\.number"),
        (received(b'{"number": null}'), "the data of 'small' does not fit Small"),
        (received(b"{}", type="everything"), "the data of 'everything' does not fit Everything"),
        (received(b"{}", id=""), "not a CloudEvent: it has no id"),
        (cqrs.IncomingMessage("things", b"{}"), "not a CloudEvent: it has no specversion, id, source, type"),
        (received(b"[]", STRUCTURED), "the body is not a structured CloudEvent"),
        (received(b"{}", STRUCTURED), "not a CloudEvent: it has no specversion"),
        (received(b'{"specversion": 1.0, "id": 7}', STRUCTURED), "it has no specversion, id, source, type"),
        (
            received(json.dumps({**ATTRIBUTES, "data_base64": "?"}).encode(), STRUCTURED),
            "data_base64 is not base64 of JSON",
        ),
        (received(json.dumps({**ATTRIBUTES, "data_base64": 7}).encode(), STRUCTURED), "data_base64 is not base64"),
        (received(json.dumps(ATTRIBUTES).encode(), STRUCTURED), "the data of 'small' does not fit Small"),
    ],
)
def test_bytes_that_are_no_event_are_refused(message, words):
    """
    With the reason, for a dead-letter queue.
    """
    with pytest.raises(cqrs.MalformedMessage, match=words):
        JsonSerializer(source="tests").load(message, TYPES)


def test_a_body_over_the_limit_is_refused_before_it_is_parsed():
    """
    Exactly at the limit it is not.
    """
    serializer = JsonSerializer(source="tests", max_bytes=20)
    at_the_limit = b'{"number": 5}'.ljust(20)

    assert Small(5) == serializer.load(received(at_the_limit), TYPES)[0]
    with pytest.raises(cqrs.MalformedMessage, match="the body has 21 bytes, 20 are allowed"):
        serializer.load(received(at_the_limit + b" "), TYPES)


@pytest.mark.parametrize("name", ["unknown", "builtins.dict", "cqrs_sync.messages.Event", "Small", "x" * 10_000])
def test_only_what_is_asked_for_comes_in(name):
    """
    A name stands for an event that is bound here, or for nothing: it is never imported, nor shown at any length.
    """
    with pytest.raises(cqrs.UnknownMessageType, match=r"no event named 'x?.*is bound here") as caught:
        JsonSerializer(source="tests").load(received(type=name), TYPES)

    assert len(str(caught.value)) < 300


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    body=st.binary() | json_values.map(lambda value: json.dumps(value).encode()),
    content_type=st.none() | st.sampled_from(["application/json", STRUCTURED]) | st.text(),
    attributes=st.dictionaries(st.sampled_from([*ATTRIBUTES, "x"]), st.text()) | st.just(ATTRIBUTES),
    name=st.sampled_from(["small", "everything"]),
)
def test_whatever_comes_in_becomes_an_event_or_an_error_of_ours(body, content_type, attributes, name):
    """
    Never another exception: nothing that comes in stops a consumer.
    """
    message = cqrs.IncomingMessage("things", body, content_type, None, {**attributes, "type": name})
    try:
        event, _ = JsonSerializer(source="tests").load(message, TYPES)
    except cqrs.SerializationError:
        event = None

    assert event is None or type(event) in TYPES.values()


@given(changed=st.dictionaries(st.sampled_from([*ATTRIBUTES, "data", "data_base64", "datacontenttype"]), json_values))
def test_whatever_stands_in_an_envelope_becomes_an_event_or_an_error_of_ours(changed):
    """
    In structured mode, too.
    """
    body = json.dumps({**ATTRIBUTES, "data": {"number": 5}, **changed}).encode()
    try:
        event, attributes = JsonSerializer(source="tests").load(received(body, STRUCTURED), TYPES)
    except cqrs.SerializationError:
        event, attributes = None, {}

    assert event is None or type(event) in TYPES.values()
    assert all(isinstance(value, str) for value in attributes.values())
