"""
D3: Events of a handler that raises are dropped. A fresh handler serves each message; events
never leak from one request into another, even where someone registered the handler as a singleton.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar, copy_context

import punq
import pytest
from attrs import frozen

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker


@frozen
class Book(cqrs.Command[str]):
    number: int = 0
    fails: bool = False


@frozen
class BookInside(cqrs.Command[str]):
    """A command that another command's handler sends."""

    number: int = 0
    fails: bool = False


@frozen
class Booked(cqrs.DomainEvent):
    number: int = 0


@frozen
class BookingMade(cqrs.NotificationEvent, topic="bookings", name="booking.made"):
    number: int = 0


class ShortForm(cqrs.RequestHandler[Book, str]):
    """Raises events in the short form."""

    def handle(self, request):
        self.raise_event(Booked(request.number))
        self.raise_event(BookingMade(request.number))
        if request.fails:
            raise LookupError("no such room")
        return f"booked {request.number}"


class SpecificationForm(cqrs.RequestHandler[Book, str]):
    """Keeps its own events, as in the specification."""

    def __init__(self):
        self._events = []

    @property
    def events(self):
        return self._events

    def handle(self, request):
        self._events.append(Booked(request.number))
        self._events.append(BookingMade(request.number))
        if request.fails:
            raise LookupError("no such room")
        return f"booked {request.number}"


@frozen
class FrozenForm(ShortForm):
    """An attrs class that cannot be written to."""


def function_form(request: Book) -> str:
    cqrs.raise_event(Booked(request.number))
    cqrs.raise_event(BookingMade(request.number))
    if request.fails:
        raise LookupError("no such room")
    return f"booked {request.number}"


FORMS = [ShortForm, SpecificationForm, FrozenForm, function_form]
CLASSES = [ShortForm, FrozenForm]


@pytest.fixture
def requests():
    return cqrs.RequestMap()


@pytest.fixture
def seen():
    return []


@pytest.fixture
def events(seen):
    events = cqrs.EventMap()
    events.bind(Booked, lambda event: seen.append(event.number))
    return events


@pytest.fixture
def container():
    return punq.Container()


@pytest.fixture
def broker():
    return MemoryBroker()


@pytest.fixture
def mediator(requests, events, container, broker, threads):
    return cqrs.bootstrap(requests, events, source="tests", container=container, broker=broker, threads=threads)


def published(broker):
    return [message.body for message in broker.published]


# A handler that raises


@pytest.mark.parametrize("handler", FORMS)
def test_d3_events_of_a_handler_that_raises_are_dropped(requests, mediator, seen, broker, handler):
    """
    In every form of handler: nothing is dispatched, nothing emitted, then or later.
    """
    requests.bind(handler)
    with pytest.raises(LookupError, match="no such room"):
        mediator.send(Book(1, fails=True))

    assert ([], []) == (seen, published(broker))

    mediator.send(Book(2))

    assert ([2], [b'{"number":2}']) == (seen, published(broker))


def test_d3_follow_ups_of_an_event_handler_that_raises_are_dropped(requests, events, mediator, seen):
    """
    Event handlers are handlers: what one raised before it failed never happened.
    """
    requests.bind(Book, lambda request: cqrs.raise_event(BookingMade(1)))

    @events.bind
    def confirm(event: BookingMade) -> None:
        cqrs.raise_event(Booked(2))
        raise LookupError("no such room")

    with pytest.raises(cqrs.EventsFailed):
        mediator.send(Book())

    assert [] == seen


def test_d3_a_failed_request_leaves_nothing_behind(requests, mediator):
    """
    After it, code outside of any handler is outside again.
    """
    requests.bind(ShortForm)
    for fails in (True, False):
        with suppress(LookupError):
            mediator.send(Book(1, fails=fails))
        with pytest.raises(RuntimeError, match="Booked was raised outside a handler"):
            cqrs.raise_event(Booked())


# A fresh handler


@pytest.mark.parametrize("sending", ["one after the other", "at once"])
def test_d3_a_fresh_handler_serves_each_message(requests, events, mediator, sending):
    """
    What a handler keeps on itself is not there for the next message.
    """
    served = []

    class Counting(cqrs.RequestHandler[Book, str]):
        def __init__(self):
            self.count = 0

        def handle(self, request):
            self.count += 1
            served.append(self)
            self.raise_event(Booked())

    @events.bind
    class CountingToo(cqrs.EventHandler[Booked]):
        count = 0

        def handle(self, event):
            self.count += 1
            served.append(self)

    requests.bind(Counting)
    with ThreadPoolExecutor(1 if sending == "one after the other" else 8) as callers:
        list(callers.map(mediator.send, [Book()] * 20, timeout=30))

    assert (40, {1}) == (len(set(map(id, served))), {handler.count for handler in served})


# Handlers registered as singletons

sender: ContextVar[int] = ContextVar("sender")


def singleton(container, handler, *, as_instance=False):
    if as_instance:
        container.register(handler, instance=handler())
    else:
        container.register(handler, scope=punq.Scope.singleton)


@pytest.mark.parametrize("as_instance", [False, True], ids=["by scope", "by instance"])
def test_d3_a_singleton_shared_by_sixteen_threads_leaks_no_event(requests, events, mediator, container, as_instance):
    """
    All sixteen are inside the one handler at the same time, each with two events of its own.
    """
    together = threading.Barrier(16)
    seen = []

    class Shared(cqrs.RequestHandler[Book, str]):
        def handle(self, request):
            self.raise_event(Booked(request.number))
            together.wait(30)
            self.raise_event(Booked(request.number))
            together.wait(30)
            return id(self)

    def send(caller):
        sender.set(caller)
        return {mediator.send(Book(caller)) for _ in range(20)}

    singleton(container, Shared, as_instance=as_instance)
    requests.bind(Shared)
    events.bind(Booked, lambda event: seen.append((sender.get(), event.number)))
    with ThreadPoolExecutor(16) as callers:
        handlers = set().union(*callers.map(send, range(16), timeout=60))

    assert 1 == len(handlers)
    assert sorted((caller, caller) for caller in range(16) for _ in range(40)) == sorted(seen)


@pytest.mark.parametrize("handler", CLASSES)
def test_d3_a_singleton_that_raises_keeps_no_event_for_the_next_request(
    requests, mediator, container, seen, broker, handler
):
    """
    Dropped is dropped.
    """
    singleton(container, handler)
    requests.bind(handler)
    with pytest.raises(LookupError):
        mediator.send(Book(1, fails=True))
    mediator.send(Book(2))

    assert ([2], [b'{"number":2}']) == (seen, published(broker))


def test_d3_a_singleton_event_handler_leaks_no_follow_up(requests, events, mediator, container, seen):
    """
    What is true of request handlers is true of event handlers.
    """

    class Confirm(cqrs.EventHandler[BookingMade]):
        def handle(self, event):
            self.raise_event(Booked(event.number))

    @requests.bind
    def book(request: Book):
        for number in range(10):
            cqrs.raise_event(BookingMade(request.number + number))

    singleton(container, Confirm)
    events.bind(Confirm)
    with ThreadPoolExecutor(4) as callers:
        list(callers.map(mediator.send, [Book(number) for number in range(0, 100, 10)], timeout=30))

    assert list(range(100)) == sorted(seen)


def test_d3_a_singleton_that_keeps_its_own_events_is_refused(requests, mediator, container, seen, broker):
    """
    The second message is, before its handler runs; the error says what to change, and nothing of the first leaks.
    """
    singleton(container, SpecificationForm)
    requests.bind(SpecificationForm)
    mediator.send(Book(1))
    with pytest.raises(cqrs.HandlerReused, match=r"SpecificationForm keeps its own events .* register it as transient"):
        mediator.send(Book(2))

    assert ([1], [b'{"number":1}']) == (seen, published(broker))


def test_d3_of_sixteen_threads_one_gets_a_singleton_that_keeps_its_own_events(requests, mediator, container, seen):
    """
    However they race: one is served, fifteen are refused, one event is handled.
    """
    together = threading.Barrier(16)

    def send(number):
        together.wait(10)
        try:
            return mediator.send(Book(number))
        except cqrs.HandlerReused:
            return None

    singleton(container, SpecificationForm)
    requests.bind(SpecificationForm)
    with ThreadPoolExecutor(16) as callers:
        [served] = [answer for answer in callers.map(send, range(16), timeout=30) if answer]

    assert [served] == [f"booked {number}" for number in seen]


# Sends inside handlers


def inside(request: BookInside) -> str:
    return function_form(request)


def bind_nested(requests, mediator, *, catch):
    requests.bind(BookInside, inside)

    @requests.bind
    def book(request: Book) -> str:
        cqrs.raise_event(Booked(request.number))
        try:
            mediator.send(BookInside(request.number + 1, fails=catch))
        except LookupError:
            if not catch:
                raise
        cqrs.raise_event(Booked(request.number + 2))
        if request.fails:
            raise LookupError("no such room")
        return "booked"


def test_d3_a_nested_send_has_events_of_its_own(requests, mediator, seen, broker):
    """
    They are dispatched when it returns, those of the surrounding handler when that does.
    """
    bind_nested(requests, mediator, catch=False)
    mediator.send(Book(10))

    assert [11] == seen[:1]
    assert ([10, 12], [b'{"number":11}']) == (sorted(seen[1:]), published(broker))


def test_d3_a_nested_send_that_fails_drops_its_own_events_only(requests, mediator, seen, broker):
    """
    A handler may catch the failure of what it sent, and go on.
    """
    bind_nested(requests, mediator, catch=True)
    mediator.send(Book(10))

    assert ([10, 12], []) == (sorted(seen), published(broker))


def test_d3_a_handler_that_fails_after_a_nested_send_drops_its_own_events_only(requests, mediator, seen, broker):
    """
    The nested request has succeeded, and without a surrounding transaction that is final.
    """
    bind_nested(requests, mediator, catch=False)
    with pytest.raises(LookupError):
        mediator.send(Book(10, fails=True))

    assert ([11], [b'{"number":11}']) == (seen, published(broker))


# Outside a handler, and in threads of one's own


def test_d3_an_event_raised_outside_a_handler_is_an_error():
    """
    Nobody would ever see it; the error names it, the ways out, and how a thread joins the handler that started it.
    """
    words = (
        r"Booked was raised outside a handler: send a command .* mediator\.publish\(event\) .*contextvars\.copy_context"
    )
    with pytest.raises(cqrs.CqrsError, match=words) as raised:
        cqrs.raise_event(Booked())

    assert isinstance(raised.value, RuntimeError)


def test_d3_a_handler_called_by_hand_shows_its_events():
    """
    A unit test needs no mediator.
    """
    handler = ShortForm()
    handler.handle(Book(1))

    assert [Booked(1), BookingMade(1)] == list(handler.events)
    assert [] == list(ShortForm().events)


def test_d3_a_handler_called_by_hand_inside_a_handler_raises_for_that_one(requests, mediator, seen):
    """
    It is a part of it, like a function that it calls.
    """
    requests.bind(Book, lambda request: ShortForm().handle(request))
    mediator.send(Book(3))

    assert [3] == seen


def in_thread(function):
    """Call it in a thread that knows nothing of this one; what it raised."""
    raised = []

    def call():
        try:
            function()
        except Exception as error:  # noqa: BLE001 -- shown by the assertion
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(10)
    return raised


def test_d3_a_foreign_thread_cannot_raise_for_a_function(requests, mediator, seen):
    """
    It has no handler around it: it is told so, and how to have one.
    """
    errors = []

    @requests.bind
    def book(request: Book):
        errors.extend(in_thread(lambda: cqrs.raise_event(Booked(1))))

    mediator.send(Book())

    assert ([cqrs.RaisedOutsideHandler], []) == ([type(error) for error in errors], seen)


def test_d3_a_thread_with_the_handlers_context_raises_for_it(requests, mediator, seen):
    """
    `contextvars.copy_context().run` is what it takes, for functions and classes.
    """

    @requests.bind
    def book(request: Book):
        context = copy_context()
        assert [] == in_thread(lambda: context.run(cqrs.raise_event, Booked(1)))

    mediator.send(Book())

    assert [1] == seen


def test_d3_a_foreign_thread_raises_for_the_handler_it_was_given(requests, mediator, seen):
    """
    `self.raise_event` knows its handler in any thread that the handler waits for.
    """

    @requests.bind
    class Threaded(cqrs.RequestHandler[Book, str]):
        def handle(self, request):
            self.raise_event(Booked(1))
            assert [] == in_thread(lambda: self.raise_event(Booked(2)))

    mediator.send(Book())

    assert [1, 2] == sorted(seen)
