"""Promises about the front door: open, closed, and what goes in and out of it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import attrs
import pytest

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker
from tests.waiting import eventually


@attrs.frozen
class Do(cqrs.Command[str]):
    pass


@attrs.frozen
class Done(cqrs.DomainEvent):
    pass


@attrs.frozen
class Told(cqrs.NotificationEvent, topic="told", name="told"):
    number: int = 1


@pytest.fixture
def requests():
    requests = cqrs.RequestMap()

    @requests.bind
    def do(request: Do) -> str:
        cqrs.raise_event(Done())
        return "done"

    return requests


@pytest.fixture
def events():
    return cqrs.EventMap()


@pytest.fixture
def broker():
    return MemoryBroker()


def message(event):
    broker = MemoryBroker()
    cqrs.EventEmitter(broker, serializer=cqrs.JsonSerializer(source="tests")).emit(event)
    [sent] = broker.published
    return cqrs.IncomingMessage(sent.topic, sent.body, sent.content_type, sent.key, sent.attributes)


# Closing


def test_a_closed_mediator_refuses(requests, events):
    """
    Requests, events and received messages; closing twice is fine.
    """
    events.bind(Done, lambda event: None)
    events.bind(Told, lambda event: None)
    mediator = cqrs.bootstrap(requests, events)
    mediator.send(Do())
    mediator.close()
    mediator.close()

    for send, thing in (
        (mediator.send, Do()),
        (mediator.publish, Done()),
        (mediator.receive, message(Told())),
    ):
        with pytest.raises(cqrs.ClosedError, match="this mediator is closed"):
            send(thing)


def test_leaving_the_block_closes(requests, events):
    """
    Also where it is left with an exception, which goes through.
    """
    events.bind(Done, lambda event: None)
    mediator = cqrs.bootstrap(requests, events)

    def use():
        with mediator:
            mediator.send(Do())
            raise LookupError

    with pytest.raises(LookupError):
        use()
    with pytest.raises(cqrs.ClosedError):
        mediator.send(Do())


def test_closing_closes_threads_and_broker(requests, events, broker):
    """
    In that order: handlers publish. Each is given what is left of the time.
    """
    closed = []

    class Threads(cqrs.SameThread):
        def close(self, timeout=5.0):
            closed.append(("threads", timeout))

    class Broker(MemoryBroker):
        def close(self, timeout=5.0):
            closed.append(("broker", timeout))

    cqrs.bootstrap(requests, events, source="tests", threads=Threads(), broker=Broker()).close(timeout=3)

    assert ["threads", "broker"] == [what for what, _ in closed]
    assert 0 < closed[1][1] <= closed[0][1] == 3


def test_closing_lets_running_handlers_finish(requests, events):
    """
    And a request that is on its way.
    """
    entered, leave, finished = threading.Event(), threading.Event(), []

    @events.bind
    def slow(event: Done) -> None:
        entered.set()
        assert leave.wait(10)
        finished.append(event)

    mediator = cqrs.bootstrap(requests, events, threads=2)
    with ThreadPoolExecutor(2) as callers:
        answer = callers.submit(mediator.send, Do())
        assert entered.wait(10)
        closing = callers.submit(mediator.close, 10)
        eventually(lambda: mediator.is_closed)
        leave.set()
        closing.result(10)
        assert [Done()] == finished
        assert "done" == answer.result(10)


# Receiving


def test_a_received_message_reaches_its_handlers(events, broker):
    """
    As the event it stands for; it is not published again.
    """
    seen = []
    events.bind(Told, seen.append)
    with cqrs.bootstrap(source="tests", events=events, broker=broker) as mediator:
        mediator.receive(message(Told(7)))

    assert ([Told(7)], []) == (seen, list(broker.published))


def test_a_received_message_needs_no_broker(events):
    """
    A service may only listen.
    """
    seen = []
    events.bind(Told, seen.append)
    with cqrs.bootstrap(events=events) as mediator:
        mediator.receive(message(Told(7)))

    assert [Told(7)] == seen


def test_receive_returns_when_handlers_have_succeeded(events):
    """
    Their failures come back, so that the message is not acknowledged.
    """
    ran = []

    def fails(event):
        raise LookupError("no printer")

    events.bind(Told, fails)
    events.bind(Told, ran.append)
    with cqrs.bootstrap(events=events) as mediator, pytest.raises(cqrs.EventsFailed) as caught:
        mediator.receive(message(Told()))

    assert ([Told()], ["no printer"]) == (ran, [str(error) for error in caught.value.exceptions])


def test_an_inline_handler_that_fails_fails_the_receiving(events):
    """
    As any other does: it is told with its handler.
    """

    def fails(event):
        raise LookupError("no printer")

    events.bind(Told, fails, phase=cqrs.Phase.INLINE)
    with cqrs.bootstrap(events=events) as mediator, pytest.raises(cqrs.EventsFailed) as caught:
        mediator.receive(message(Told()))

    assert ["no printer"] == [str(failure.error) for failure in caught.value.failures]


def test_only_bound_events_are_received(events):
    """
    Others are told from bad bytes.
    """
    with cqrs.bootstrap(events=events) as mediator:
        with pytest.raises(cqrs.UnknownMessageType):
            mediator.receive(message(Told()))
        with pytest.raises(cqrs.MalformedMessage):
            mediator.receive(cqrs.IncomingMessage("told", b"{}"))


def test_an_event_that_is_bound_later_is_received(events):
    """
    The mediator looks when a message comes.
    """
    seen = []
    with cqrs.bootstrap(events=events) as mediator:
        with pytest.raises(cqrs.UnknownMessageType):
            mediator.receive(message(Told()))
        events.bind(Told, seen.append)
        mediator.receive(message(Told()))

    assert [Told()] == seen


# Deadlines, as far as the front door goes


@pytest.mark.parametrize("threads", [1, 4])
def test_a_deadline_is_for_waiting_not_for_working(requests, events, threads):
    """
    T6: What is done in time is returned as ever.
    """
    left = []
    events.bind(Done, lambda event: left.append(cqrs.time_left()))
    with cqrs.bootstrap(requests, events, threads=threads) as mediator:
        answer = mediator.send(Do(), timeout=30)
        mediator.publish(Done(), timeout=30)

    assert "done" == answer
    assert all(25 < seconds <= 30 for seconds in left)
    assert 2 == len(left)


def test_a_broker_is_told_the_time_that_is_left(requests, events):
    """
    T6: And is given none where none was given.
    """
    told = []

    class Broker(MemoryBroker):
        def publish(self, messages, /, *, timeout=None):
            told.append(timeout)

    with cqrs.bootstrap(requests, events, source="tests", broker=Broker()) as mediator:
        mediator.publish(Told())
        mediator.publish(Told(), timeout=30)

    assert told[0] is None
    assert 25 < told[1] <= 30
