"""Promises about sending notification events out."""

from __future__ import annotations

import attrs
import pytest

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker


@attrs.frozen
class Told(cqrs.NotificationEvent, topic="told", name="told"):
    what: object = 1


@attrs.frozen
class Nameless(cqrs.NotificationEvent, topic="told"):
    pass


@pytest.fixture
def broker():
    return MemoryBroker()


def bodies(broker):
    return [message.body for message in broker.published]


def test_events_are_emitted_as_one_batch_in_their_order(broker):
    """
    One wait for the broker.
    """
    batches = []
    chain = cqrs.MiddlewareChain().add(
        lambda batch, call_next: batches.append(batch) or call_next(batch), cqrs.OutgoingMessage
    )
    cqrs.EventEmitter(broker, serializer=cqrs.JsonSerializer(source="tests"), middleware=chain).emit(
        *[Told(number) for number in range(3)]
    )

    assert [b'{"what":0}', b'{"what":1}', b'{"what":2}'] == bodies(broker)
    assert [tuple(broker.published)] == batches


def test_nothing_is_nothing_to_emit(broker):
    """
    The broker is not asked.
    """
    broker.close()
    cqrs.EventEmitter(broker, serializer=cqrs.JsonSerializer(source="tests")).emit()
    cqrs.EventEmitter(broker, serializer=cqrs.JsonSerializer(source="tests")).publish([])


@pytest.mark.parametrize(
    ("event", "error"), [(Told(object()), cqrs.EventNotSerializable), (Nameless(), cqrs.InvalidMessage)]
)
def test_nothing_is_published_where_one_event_cannot_be(broker, event, error):
    """
    All are made into messages before the first one leaves.
    """
    with pytest.raises(error):
        cqrs.EventEmitter(broker, serializer=cqrs.JsonSerializer(source="tests")).emit(Told(1), event, Told(2))

    assert [] == bodies(broker)


def test_what_the_broker_says_comes_back(broker):
    """
    Which messages were not confirmed, and why.
    """
    broker.fail_with = cqrs.MessageRejected("too large")
    with pytest.raises(cqrs.PublishFailed, match=r"1 message.* not confirmed: told .*: too large"):
        cqrs.EventEmitter(broker, serializer=cqrs.JsonSerializer(source="tests")).emit(Told())


def test_the_serializer_may_be_ones_own(broker):
    """
    Anything that makes messages of events.
    """

    class Shouting(cqrs.JsonSerializer):
        def dump(self, event, /):
            return attrs.evolve(super().dump(event), body=b"TOLD!")

    cqrs.EventEmitter(broker, serializer=Shouting(source="tests")).emit(Told())

    assert [b"TOLD!"] == bodies(broker)


def test_the_broker_stays_open(broker):
    """
    Whoever made it closes it.
    """
    cqrs.EventEmitter(broker, serializer=cqrs.JsonSerializer(source="tests")).emit(Told(1))
    cqrs.EventEmitter(broker, serializer=cqrs.JsonSerializer(source="tests")).emit(Told(2))

    assert 2 == len(broker.published)
