"""Promises about what surrounds a handler: attributes, deadlines, and what it raises."""

from __future__ import annotations

import threading
import time
from contextvars import copy_context

import attrs
import pytest

import cqrs_sync as cqrs
from cqrs_sync import context
from cqrs_sync.memory import MemoryBroker


@attrs.frozen
class Do(cqrs.Command[object]):
    pass


@attrs.frozen
class Done(cqrs.DomainEvent):
    pass


@attrs.frozen
class Told(cqrs.NotificationEvent, topic="told", name="told"):
    pass


def during(action, **settings):
    """Call it in a handler, and return what it returned."""
    requests = cqrs.RequestMap()
    requests.bind(Do, lambda request: action())
    with cqrs.bootstrap(requests, threads=cqrs.SameThread()) as mediator:
        return mediator.send(Do(), **settings)


# Attributes


def test_outside_of_everything_there_is_no_correlation_id():
    assert cqrs.correlation_id() is None


def test_the_correlation_id_is_that_of_the_messages_and_the_same_in_all_handlers():
    """
    In the request's handler, in event handlers on the pool, and on the wire.
    """
    seen, broker = [], MemoryBroker()
    requests, events = cqrs.RequestMap(), cqrs.EventMap()

    def do(request: Do) -> object:
        seen.append(cqrs.correlation_id())
        for event in (Done(), Told()):
            cqrs.raise_event(event)
        return None

    requests.bind(do)
    events.bind(Done, lambda event: seen.append(cqrs.correlation_id()))
    events.bind(Told, lambda event: seen.append(cqrs.correlation_id()))
    with cqrs.bootstrap(requests, events, source="tests", broker=broker) as mediator:
        mediator.send(Do())
        with cqrs.message_attributes(correlationid="r-17"):
            seen.append(cqrs.correlation_id())
            mediator.send(Do())

    first, second = (message.attributes["correlationid"] for message in broker.published)
    assert ([first] * 3, ["r-17"] * 4, "r-17") == (seen[:3], seen[3:], second)


def test_outside_of_everything_nothing_is_carried():
    """
    And asking makes nothing.
    """
    assert {} == cqrs.current_attributes()


def test_a_block_carries_its_attributes_and_a_correlation_id():
    """
    The id is made where nobody gives one; with the block all of it is gone.
    """
    with cqrs.message_attributes(tenant="t-1"):
        carried = dict(cqrs.current_attributes())

    assert {"tenant", "correlationid"} == carried.keys()
    assert "t-1" == carried["tenant"]
    assert {} == cqrs.current_attributes()


def test_an_inner_block_adds_to_the_outer_one_and_takes_nothing_from_it():
    """
    The nearest one counts; the correlation id stays.
    """
    with cqrs.message_attributes(tenant="t-1", user="u-1"):
        outer = dict(cqrs.current_attributes())
        with cqrs.message_attributes(tenant="t-2"):
            inner = dict(cqrs.current_attributes())
        again = dict(cqrs.current_attributes())

    assert {**outer, "tenant": "t-2"} == inner
    assert outer == again


def test_a_block_that_fails_is_left_as_well():
    """
    Its exception goes through.
    """
    with pytest.raises(LookupError), cqrs.message_attributes(tenant="t-1"):
        raise LookupError

    assert {} == cqrs.current_attributes()


def test_a_given_correlation_id_is_kept():
    """
    It comes from a web request, mostly.
    """
    with cqrs.message_attributes(correlationid="c-1"):
        assert {"correlationid": "c-1"} == cqrs.current_attributes()
        assert {"correlationid": "c-1"} == during(lambda: dict(cqrs.current_attributes()))


def test_what_is_carried_is_a_copy():
    """
    Nobody changes it from outside.
    """
    with cqrs.message_attributes(tenant="t-1"):
        cqrs.current_attributes()["tenant"] = "t-2"

        assert "t-1" == cqrs.current_attributes()["tenant"]


@pytest.mark.parametrize("name", ["Tenant", "tenant_id", "tenant-id", "ü", "a" * 21, "", "ten ant", "tenant\n"])
def test_an_attribute_has_a_name_that_cloudevents_allows(name):
    """
    Lower-case letters and digits, twenty at most.
    """
    with pytest.raises(ValueError, match="cannot be an attribute: use lower-case letters and digits, 20 at most"):
        cqrs.message_attributes(**{name: "x"}).__enter__()


@pytest.mark.parametrize("name", ["id", "source", "specversion", "type", "time", "datacontenttype", "dataschema"])
def test_what_the_serializer_writes_is_no_attribute_of_a_block(name):
    """
    Or two messages could have the same id.
    """
    with pytest.raises(ValueError, match=f"'{name}' cannot be an attribute"):
        cqrs.message_attributes(**{name: "x"}).__enter__()


@pytest.mark.parametrize("value", [None, 7, b"bytes"])
def test_an_attribute_is_a_string(value):
    """
    As it is on the wire.
    """
    with pytest.raises(TypeError, match="the attribute 'tenant' must be a string"):
        cqrs.message_attributes(tenant=value).__enter__()


@pytest.mark.parametrize("name", ["a", "traceparent", "a" * 20, "tenant2", "2tenant"])
def test_any_other_name_will_do(name):
    """
    Twenty letters and digits.
    """
    with cqrs.message_attributes(**{name: "x"}):
        assert "x" == cqrs.current_attributes()[name]


def test_a_block_outside_of_a_handler_is_no_handler():
    """
    An event raised in it would be seen by nobody.
    """
    with cqrs.message_attributes(tenant="t-1"), pytest.raises(RuntimeError, match="Done was raised outside a handler"):
        cqrs.raise_event(Done())


def test_an_event_raised_in_a_block_inside_a_handler_is_raised():
    """
    The block changes what is carried, not who raises.
    """
    seen, requests, events = [], cqrs.RequestMap(), cqrs.EventMap()

    @requests.bind
    def do(request: Do) -> None:
        with cqrs.message_attributes(tenant="t-1"):
            cqrs.raise_event(Done())

    events.bind(Done, seen.append)
    with cqrs.bootstrap(requests, events, threads=cqrs.SameThread()) as mediator:
        mediator.send(Do())

    assert [Done()] == seen


def test_a_received_message_is_continued_with_what_it_brings():
    """
    Its correlation and its trace, and its id as cause; nothing else of it is trusted.
    """
    attributes = {"id": "m-1", "correlationid": "c-1", "traceparent": "00-a-b-01", "tenant": "t-1", "type": "x"}
    carried = following(attributes)

    assert {"causationid": "m-1", "correlationid": "c-1", "traceparent": "00-a-b-01"} == carried


def test_what_follows_from_a_received_message_without_a_correlation_id_is_known_by_its_id():
    """
    Whoever published it need not know this library.
    """
    assert {"causationid": "m-1", "correlationid": "m-1"} == following({"id": "m-1"})


def following(attributes):
    """What messages carry that follow from a received one."""

    def current_attributes():
        context.set_cause(attributes)
        return dict(cqrs.current_attributes())

    return copy_context().run(current_attributes)


# Deadlines


def test_without_a_deadline_there_is_no_time_left_to_tell():
    """
    None means: as long as it takes.
    """
    assert cqrs.time_left() is None
    assert during(cqrs.time_left) is None


def test_a_handler_can_tell_the_time_that_is_left():
    """
    In seconds, of the timeout given to `send`; afterwards there is none again.
    """
    left = during(cqrs.time_left, timeout=30)

    assert 29 < left <= 30
    assert cqrs.time_left() is None


def test_the_nearest_deadline_counts():
    """
    A nested send cannot give itself more time than its caller has.
    """
    with context.deadline(10):
        with context.deadline(1000):
            outer_counts = cqrs.time_left()
        with context.deadline(1):
            inner_counts = cqrs.time_left()
        after = cqrs.time_left()

    assert 9 < outer_counts <= 10
    assert 0 < inner_counts <= 1
    assert 9 < after <= 10


def test_a_deadline_that_is_over_is_an_error():
    """
    A TimeoutError, for those who do not know this library.
    """
    with context.deadline(1e-9):
        until = context.deadline_at()
        while time.monotonic() <= until:
            pass
        with pytest.raises(cqrs.DeadlineExceeded, match="the deadline of this request has passed"):
            cqrs.time_left()
        with pytest.raises(TimeoutError):
            cqrs.time_left()


def test_a_block_may_be_allowed_more_than_the_deadline():
    """
    To publish what has been committed, when the time is over; and then none at all.
    """
    with context.deadline(1):
        with context.extended_deadline(30):
            assert 29 < cqrs.time_left() <= 30
        context.forget_deadline()
        assert cqrs.time_left() is None

    assert cqrs.time_left() is None


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), threading.TIMEOUT_MAX * 2])
def test_a_timeout_is_a_time_that_can_be_waited(timeout):
    """
    Nothing is sent with another one.
    """
    sent, requests, events = [], cqrs.RequestMap(), cqrs.EventMap()
    requests.bind(Do, sent.append)
    events.bind(Done, sent.append)
    with cqrs.bootstrap(requests, events, threads=cqrs.SameThread()) as mediator:
        for send, message in ((mediator.send, Do()), (mediator.publish, Done())):
            with pytest.raises(ValueError, match="a timeout must be a number of seconds above 0"):
                send(message, timeout=timeout)

    assert [] == sent


def test_a_timeout_is_a_number():
    """
    A string of digits is not.
    """
    with pytest.raises(TypeError):
        during(lambda: None, timeout="5")


@pytest.mark.parametrize("timeout", [1, 0.5, 10**6, True])
def test_any_number_of_seconds_will_do(timeout):
    """
    Whole or not.
    """
    assert 0 < during(cqrs.time_left, timeout=timeout) <= timeout
