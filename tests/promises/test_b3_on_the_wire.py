"""
B3: On the wire: CloudEvents 1.0, binary mode (structured on request), with the W3C trace context,
correlation and causation ids, partition key and version as attributes. Stable names, never import
paths; JSON, never pickle.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import uuid
from decimal import Decimal
from urllib.parse import quote

import attrs
import msgspec
import pydantic
import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event

import cqrs_sync as cqrs
from cqrs_sync.broker import Group
from cqrs_sync.memory import MemoryBroker, MemoryTransactions
from cqrs_sync.serializer import STRUCTURED

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SOURCE = "/shop"


@attrs.frozen
class Seat:
    row: int
    letter: str | None = None


# Each kind of message, with fields that are called like class keywords, and types that JSON has not.


@attrs.frozen
class AttrsEvent(cqrs.NotificationEvent, topic="kinds", name="attrs", key="key", version="2"):
    key: uuid.UUID
    name: str
    topic: Decimal
    version: dt.datetime
    seats: list[Seat]
    missing: str | None = None


@attrs.frozen(slots=False)
class AttrsEventWithoutSlots(cqrs.NotificationEvent, topic="kinds", name="attrs.dict", key="key", version="2"):
    key: uuid.UUID
    name: str
    topic: Decimal
    version: dt.datetime
    seats: list[Seat]
    missing: str | None = None


@dataclasses.dataclass(frozen=True)
class DataclassEvent(cqrs.NotificationEvent, topic="kinds", name="dataclass", key="key", version="2"):
    key: uuid.UUID
    name: str
    topic: Decimal
    version: dt.datetime
    seats: list[Seat]
    missing: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class DataclassEventWithSlots(cqrs.NotificationEvent, topic="kinds", name="dataclass.slots", key="key", version="2"):
    key: uuid.UUID
    name: str
    topic: Decimal
    version: dt.datetime
    seats: list[Seat]
    missing: str | None = None


class PydanticSeat(pydantic.BaseModel, frozen=True):
    row: int
    letter: str | None = None


class PydanticEvent(
    cqrs.NotificationEvent, pydantic.BaseModel, topic="kinds", name="pydantic", key="key", version="2", frozen=True
):
    key: uuid.UUID
    name: str
    topic: Decimal
    version: dt.datetime
    seats: list[PydanticSeat]
    missing: str | None = None


@cqrs.notification(topic="kinds", name="msgspec", key="key", version="2")
class MsgspecEvent(cqrs.NotificationEvent, msgspec.Struct, frozen=True):
    key: uuid.UUID
    name: str
    topic: Decimal
    version: dt.datetime
    seats: list[Seat]
    missing: str | None = None


KINDS = [
    AttrsEvent,
    AttrsEventWithoutSlots,
    DataclassEvent,
    DataclassEventWithSlots,
    PydanticEvent,
    MsgspecEvent,
]


def made(kind):
    seat = PydanticSeat if kind is PydanticEvent else Seat
    return kind(
        key=uuid.UUID(int=7),
        name="Zoë",
        topic=Decimal("0.10"),
        version=dt.datetime(2026, 11, 23, 12, 30, tzinfo=dt.UTC),
        seats=[seat(row=1, letter="ß"), seat(row=2)],
    )


@pytest.fixture(params=[False, True], ids=["binary", "structured"])
def structured(request):
    return request.param


@pytest.fixture
def serializer(structured):
    return cqrs.JsonSerializer(source=SOURCE, structured=structured)


@pytest.fixture
def broker():
    return MemoryBroker()


@pytest.fixture
def events():
    return cqrs.EventMap()


@pytest.fixture
def requests():
    return cqrs.RequestMap()


@pytest.fixture
def mediator(requests, events, broker, threads, serializer):
    return cqrs.bootstrap(requests, events, broker=broker, threads=threads, serializer=serializer)


def attributes_of(message):
    """Return the CloudEvents attributes of a message in either mode."""
    if message.content_type == STRUCTURED:
        return {name: value for name, value in json.loads(message.body).items() if name != "data"}
    return dict(message.attributes)


def incoming(message):
    return cqrs.IncomingMessage(message.topic, message.body, message.content_type, message.key, message.attributes)


# There and back


@pytest.mark.parametrize("kind", KINDS)
def test_b3_every_kind_of_message_arrives_as_it_was(broker, events, mediator, kind):
    """
    Published by one mediator, received from the broker's subscription by another: equal, and of its type.
    """
    event, received = made(kind), []
    events.bind(kind, received.append)
    with broker.subscribe(Group("readers", ["kinds"])) as subscription:
        cqrs.bootstrap(source="tests", broker=broker, threads=cqrs.SameThread()).publish(event)
        mediator.publish(event)
        for _ in range(2):
            delivery = subscription.receive(timeout=5)
            mediator.receive(delivery.message)
            delivery.ack()

    assert [event] * 3 == received
    assert {kind} == {type(each) for each in received}


@pytest.mark.parametrize("kind", KINDS)
def test_b3_the_official_sdk_reads_every_kind_of_message(broker, mediator, kind, structured):
    """
    As a CloudEvent with all its attributes, and data that any language can read.
    """
    with cqrs.message_attributes(correlationid="c-1", causationid="m-0", traceparent=TRACE, tenant="t 1"):
        mediator.publish(made(kind))
    [message] = broker.published
    headers = {f"ce-{name}": quote(value) for name, value in message.attributes.items()}

    event = from_http_event(HTTPMessage({**headers, "content-type": message.content_type}, message.body))

    assert (STRUCTURED if structured else "application/json") == message.content_type
    assert (message.id, SOURCE, message.type) == (event.get_id(), event.get_source(), event.get_type())
    assert ("1.0", "application/json") == (event.get_specversion(), event.get_datacontenttype())
    assert dt.timedelta(0) <= dt.datetime.now(dt.UTC) - event.get_time() < dt.timedelta(minutes=1)
    extensions = {
        "correlationid": "c-1",
        "causationid": "m-0",
        "traceparent": TRACE,
        "tenant": "t 1",
        "eventversion": "2",
        "partitionkey": str(uuid.UUID(int=7)),
    }
    assert extensions == {name: event.get_extension(name) for name in extensions}
    data = {
        "key": str(uuid.UUID(int=7)),
        "name": "Zoë",
        "topic": "0.10",
        "version": "2026-11-23T12:30:00",
        "seats": [{"row": 1, "letter": "ß"}, {"row": 2, "letter": None}],
        "missing": None,
    }
    found = event.get_data()
    assert data == {**found, "version": found["version"].removesuffix("+00:00").removesuffix("Z")}


@pytest.mark.parametrize("kind", KINDS)
def test_b3_no_import_path_is_on_the_wire(broker, mediator, kind):
    """
    Names are the stable ones; a class may be renamed and moved.
    """
    mediator.publish(made(kind))
    [message] = broker.published
    wire = repr((message.body, message.topic, message.key, message.content_type, dict(message.attributes)))

    assert [] == [name for name in ("Event", "test_b3", "tests", "Seat", "pickle") if name in wire]


def test_b3_ids_are_unique_and_keys_are_told_to_the_broker(broker, mediator):
    """
    Each message has an id of its own, and its partition key where brokers look for it.
    """
    for _ in range(100):
        mediator.publish(made(AttrsEvent))

    assert 100 == len({message.id for message in broker.published})
    assert {("kinds", "attrs", str(uuid.UUID(int=7)))} == {
        (message.topic, message.type, message.key) for message in broker.published
    }


# What follows from what


@attrs.frozen
class Buy(cqrs.Command[None]):
    pass


@attrs.frozen
class Bought(cqrs.DomainEvent):
    pass


@attrs.frozen
class SaleMade(cqrs.NotificationEvent, topic="sales", name="sale.made"):
    pass


@attrs.frozen
class ReceiptWanted(cqrs.NotificationEvent, topic="receipts", name="receipt.wanted"):
    pass


@pytest.fixture
def shop(requests, events):
    """Raise SaleMade when something is bought, and ReceiptWanted from its handler."""

    @requests.bind
    def buy(request: Buy) -> None:
        cqrs.raise_event(SaleMade())

    events.bind(SaleMade, lambda event: cqrs.raise_event(ReceiptWanted()))


def published(broker, name):
    [attributes] = [attributes_of(message) for message in broker.published if message.type == name]
    return attributes


@pytest.mark.usefixtures("shop")
def test_b3_what_follows_from_a_request_shares_its_correlation_id(broker, mediator):
    """
    One is made where nobody gave one, another for the next request.
    """
    mediator.send(Buy())
    mediator.send(Buy())

    ids = [attributes_of(message)["correlationid"] for message in broker.published]
    assert ids[0] == ids[1] != ids[2] == ids[3]


@pytest.mark.usefixtures("shop")
def test_b3_what_follows_from_an_event_names_it_as_its_cause(broker, mediator):
    """
    The cause is the id of the message that its handler was given; what the request raised has none.
    """
    mediator.send(Buy())
    sale, receipt = published(broker, "sale.made"), published(broker, "receipt.wanted")

    assert "causationid" not in sale
    assert sale["id"] == receipt["causationid"]


@pytest.mark.usefixtures("shop")
def test_b3_an_event_that_is_sent_and_its_follow_ups_share_a_correlation_id(broker, mediator):
    """
    Without a request, too.
    """
    mediator.publish(SaleMade())
    sale, receipt = published(broker, "sale.made"), published(broker, "receipt.wanted")

    assert sale["correlationid"] == receipt["correlationid"]
    assert sale["id"] == receipt["causationid"]


@pytest.mark.usefixtures("shop")
def test_b3_correlation_cause_and_trace_travel_from_service_to_service(broker, mediator, structured):
    """
    From a send to its event, through the broker, into the handler there, and into what that raises.
    """
    elsewhere = MemoryBroker()
    there = cqrs.EventMap()
    carried = []

    @there.bind
    def on_receipt_wanted(event: ReceiptWanted) -> None:
        carried.append(dict(cqrs.current_attributes()))
        cqrs.raise_event(SaleMade())

    receiver = cqrs.bootstrap(
        events=there,
        broker=elsewhere,
        threads=cqrs.SameThread(),
        serializer=cqrs.JsonSerializer(source="tests", structured=structured),
    )
    with broker.subscribe(Group("printer", ["receipts"])) as subscription:
        with cqrs.message_attributes(correlationid="c-1", traceparent=TRACE, tracestate="vendor=1"):
            mediator.send(Buy())
        receiver.receive(subscription.receive(timeout=5).message)

    wanted = {
        "correlationid": "c-1",
        "traceparent": TRACE,
        "tracestate": "vendor=1",
        "causationid": published(broker, "receipt.wanted")["id"],
    }
    assert [wanted] == carried
    assert wanted.items() <= published(elsewhere, "sale.made").items()
    assert 1 == len(elsewhere.published)


@pytest.mark.usefixtures("shop")
def test_b3_a_block_of_annotations_holds_for_all_that_is_sent_in_it(broker, mediator):
    """
    Sends, nested sends, and threads of the pool; nothing of it is left behind.
    """
    with cqrs.message_attributes(tenant="t-1"):
        mediator.send(Buy())
        with cqrs.message_attributes(tenant="t-2"):
            mediator.send(Buy())
        mediator.send(Buy())
    mediator.send(Buy())

    attributes = [attributes_of(message) for message in broker.published]
    assert ["t-1", "t-2", "t-1", None] == [each.get("tenant") for each in attributes[::2]]
    assert ["t-1", "t-2", "t-1", None] == [each.get("tenant") for each in attributes[1::2]]
    assert 1 == len({each["correlationid"] for each in attributes[:6]})


@pytest.mark.usefixtures("shop")
def test_b3_a_middleware_may_annotate(requests, events, broker, threads, serializer):
    """
    That is where a web request's trace context is put on its commands.
    """

    def trace(message, call_next):
        with cqrs.message_attributes(traceparent=TRACE):
            return call_next(message)

    chain = cqrs.MiddlewareChain().add(trace, cqrs.Request)
    cqrs.bootstrap(requests, events, broker=broker, threads=threads, serializer=serializer, middleware=chain).send(
        Buy()
    )

    assert [TRACE, TRACE] == [attributes_of(message)["traceparent"] for message in broker.published]


def test_b3_a_nested_send_shares_the_correlation_id(requests, events, broker, mediator):
    """
    Of the handler that sends: of a request and of an event.
    """

    @attrs.frozen
    class Restock(cqrs.Command[None]):
        pass

    @requests.bind
    def buy(request: Buy) -> None:
        cqrs.raise_event(Bought())
        mediator.send(Restock())
        cqrs.raise_event(SaleMade())

    requests.bind(Restock, lambda request: cqrs.raise_event(ReceiptWanted()))
    events.bind(Bought, lambda event: mediator.send(Restock()))
    mediator.send(Buy())

    ids = {attributes_of(message)["correlationid"] for message in broker.published}
    assert (3, 1) == (len(broker.published), len(ids))


@pytest.mark.usefixtures("shop")
def test_b3_correlation_and_trace_wait_for_the_commit(requests, events, broker, threads, serializer):
    """
    What is emitted after a surrounding commit carries what surrounded the send.
    """
    transactions = MemoryTransactions()
    mediator = cqrs.bootstrap(
        requests, events, broker=broker, threads=threads, serializer=serializer, transactions=transactions
    )
    with transactions.atomic():
        with cqrs.message_attributes(correlationid="c-1", traceparent=TRACE):
            mediator.send(Buy())
        with cqrs.message_attributes(correlationid="c-2"):
            mediator.send(Buy())

    attributes = [attributes_of(message) for message in broker.published]
    assert ["c-1", "c-1", "c-2", "c-2"] == [each["correlationid"] for each in attributes]
    assert [TRACE, TRACE, None, None] == [each.get("traceparent") for each in attributes]


def test_b3_a_received_event_is_not_published_again(broker, events, mediator):
    """
    Or it would go round for ever.
    """
    events.bind(SaleMade, lambda event: None)
    cqrs.bootstrap(source="tests", broker=broker, threads=cqrs.SameThread()).publish(SaleMade())
    [message] = broker.published

    mediator.receive(incoming(message))

    assert 1 == len(broker.published)
