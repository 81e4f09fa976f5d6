"""
D7: Middleware wraps requests, events, publishing and consuming alike, first added outermost,
chosen per message type where wanted.
"""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from attrs import evolve, frozen

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker


@frozen
class Buy(cqrs.Command[str]):
    name: str = "book"


@frozen
class GetPrice(cqrs.Query[str]):
    name: str = "book"


@frozen
class Bought(cqrs.DomainEvent):
    name: str = "book"


@frozen
class BoughtAgain(Bought):
    pass


@frozen
class SaleMade(cqrs.NotificationEvent, topic="sales", name="sale.made"):
    name: str = "book"


class Around:
    """A middleware that notes when it is entered and left."""

    def __init__(self, name, steps):
        self.name = name
        self.steps = steps

    def __call__(self, message, call_next, /):
        self.steps.append(f"{self.name} before")
        try:
            return call_next(message)
        finally:
            self.steps.append(f"{self.name} after")


@pytest.fixture
def steps():
    return []


@pytest.fixture
def requests(steps):
    requests = cqrs.RequestMap()

    @requests.bind
    def buy(request: Buy) -> str:
        steps.append("buy")
        cqrs.raise_event(Bought(request.name))
        cqrs.raise_event(SaleMade(request.name))
        return f"bought {request.name}"

    requests.bind(GetPrice, lambda request: f"the price of {request.name}")
    return requests


@pytest.fixture
def events(steps):
    events = cqrs.EventMap()
    events.bind(Bought, lambda event: steps.append(f"on bought {event.name}"))
    return events


@pytest.fixture
def broker():
    return MemoryBroker()


@pytest.fixture
def chain():
    return cqrs.MiddlewareChain()


@pytest.fixture
def wire(requests, events, broker, chain, threads):
    """Make a mediator, once the chain is complete."""
    return lambda: cqrs.bootstrap(requests, events, source="tests", broker=broker, middleware=chain, threads=threads)


def received(event):
    """Make the message of an event, as it comes in from elsewhere."""
    elsewhere = MemoryBroker()
    cqrs.EventEmitter(elsewhere, serializer=cqrs.JsonSerializer(source="tests")).emit(event)
    [message] = elsewhere.published
    return cqrs.IncomingMessage(message.topic, message.body, message.content_type, message.key, message.attributes)


# Order


def test_d7_the_first_middleware_is_the_outermost(requests, steps):
    """
    Around a request, as a list reads.
    """
    middleware = [Around("first", steps), Around("second", steps), Around("third", steps)]
    cqrs.bootstrap(requests, threads=cqrs.SameThread(), middleware=middleware).send(GetPrice())

    nested = ["first", "second", "third"]
    assert [*(f"{name} before" for name in nested), *(f"{name} after" for name in reversed(nested))] == steps


def test_d7_the_first_middleware_of_an_event_handler_is_the_outermost(wire, chain, steps):
    """
    As with requests.
    """
    chain.add(Around("first", steps), Bought).add(Around("second", steps), Bought)
    wire().send(Buy())

    assert ["buy", "first before", "second before", "on bought book", "second after", "first after"] == steps


# What is wrapped


def test_d7_a_middleware_wraps_each_event_handler(wire, events, chain, steps):
    """
    One at a time, by itself, those of follow-ups included; on a pool in the thread of its handler.
    """

    def note(message, call_next):
        steps.append(type(message).__name__)
        call_next(message)

    @events.bind
    def again(event: Bought) -> None:
        if not isinstance(event, BoughtAgain):
            cqrs.raise_event(BoughtAgain())

    chain.add(note, cqrs.Event)
    wire().send(Buy())

    assert Counter({"Bought": 2, "BoughtAgain": 2}) == Counter(step for step in steps if step.startswith("B"))


def test_d7_a_middleware_runs_in_the_thread_of_its_handler(wire, events, chain):
    """
    On a pool, too: what it opens for the thread, the handler uses.
    """
    opened = threading.local()
    found = []

    def open_connection(message, call_next):
        opened.connection = message
        call_next(message)
        del opened.connection

    events.bind(Bought, lambda event: found.append(opened.connection is event))
    chain.add(open_connection, Bought)
    wire().send(Buy())

    assert [True] == found


def test_d7_a_middleware_wraps_inline_handlers(wire, events, chain, steps):
    """
    Inside the request.
    """
    chain.add(Around("request", steps), Buy).add(Around("event", steps), SaleMade)
    events.bind(SaleMade, lambda event: steps.append("inline"), phase=cqrs.Phase.INLINE)
    wire().send(Buy())

    assert ["request before", "buy", "event before", "inline", "event after", "request after"] == steps[:6]


def test_d7_a_middleware_wraps_publishing(wire, chain, steps, broker):
    """
    `OutgoingMessage` selects it: it is given each batch, after the handlers.
    """
    batches = []

    def note(messages, call_next):
        batches.append([message.type for message in messages])
        steps.append(f"{len(broker.published)} published")
        call_next(messages)
        steps.append(f"{len(broker.published)} published")

    chain.add(Around("outer", steps), cqrs.OutgoingMessage).add(note, cqrs.OutgoingMessage)
    wire().send(Buy())

    assert [["sale.made"]] == batches
    assert ["buy", "on bought book", "outer before", "0 published", "1 published", "outer after"] == steps


def test_d7_a_middleware_wraps_receiving(wire, events, chain, steps):
    """
    `IncomingMessage` selects it: it is given the message before that becomes an event.
    """
    message = received(SaleMade())
    given = []

    def note(message, call_next):
        given.append(message)
        call_next(message)

    events.bind(SaleMade, lambda event: steps.append("handler"))
    chain.add(Around("outer", steps), cqrs.IncomingMessage).add(note, cqrs.IncomingMessage)
    chain.add(Around("event", steps), SaleMade)
    wire().receive(message)

    assert given == [message]
    assert ["outer before", "event before", "handler", "event after", "outer after"] == steps


def test_d7_a_middleware_around_receiving_sees_what_cannot_be_read(wire, chain):
    """
    That is where bad messages are counted or put aside.
    """
    errors = []

    def put_aside(message, call_next):
        try:
            call_next(message)
        except cqrs.SerializationError as error:
            errors.append(type(error))

    chain.add(put_aside, cqrs.IncomingMessage)
    wire().receive(cqrs.IncomingMessage("sales", b"{"))
    wire().receive(received(SaleMade()))

    assert [cqrs.MalformedMessage, cqrs.UnknownMessageType] == errors


def test_d7_a_middleware_wraps_nested_sends(wire, requests, chain, steps):
    """
    A handler that sends is a caller like others.
    """
    mediator = None

    @frozen
    class BuyAfterLook(cqrs.Command[str]):
        pass

    requests.bind(BuyAfterLook, lambda request: mediator.send(GetPrice()))
    chain.add(Around("any", steps), cqrs.Request)
    mediator = wire()
    mediator.send(BuyAfterLook())

    assert ["any before", "any before", "any after", "any after"] == steps


# Which messages


def test_d7_a_middleware_is_chosen_by_message_type(wire, events, chain, steps):
    """
    By one type or several, subclasses included.
    """
    chain.add(Around("command", steps), cqrs.Command)
    chain.add(Around("query or sale", steps), cqrs.Query, SaleMade)
    chain.add(Around("bought", steps), Bought)
    chain.add(Around("bought again", steps), BoughtAgain)
    events.bind(SaleMade, lambda event: None)
    mediator = wire()

    def entered_by(send, message):
        steps.clear()
        send(message)
        return {step.removesuffix(" before") for step in steps if step.endswith("before")}

    assert {"query or sale"} == entered_by(mediator.send, GetPrice())
    assert {"command", "bought", "query or sale"} == entered_by(mediator.send, Buy())
    assert {"bought", "bought again"} == entered_by(mediator.publish, BoughtAgain())


def test_d7_a_middleware_for_nothing_in_particular_wraps_requests_and_events(wire, events, chain):
    """
    And neither publishing nor receiving, where it would be given something else.
    """
    given = []

    def note(message, call_next):
        given.append(type(message))
        return call_next(message)

    events.bind(SaleMade, lambda event: None)
    chain.add(note)
    mediator = wire()
    mediator.send(Buy())
    sent, given[:] = list(given), []
    mediator.receive(received(SaleMade()))

    assert (Counter([Buy, Bought, SaleMade]), [SaleMade]) == (Counter(sent), given)


# What it may do


def test_d7_a_middleware_may_answer_itself(wire, requests, chain, steps, broker):
    """
    Then the handler is not built, and nothing is raised, handled or published.
    """

    @frozen
    class Sell(cqrs.Command[str]):
        pass

    @requests.bind
    class SellHandler(cqrs.RequestHandler[Sell, str]):
        def __init__(self):
            steps.append("built")

        def handle(self, request):
            self.raise_event(SaleMade())
            return "sold"

    chain.add(lambda request, call_next: "from the cache", Sell)

    assert "from the cache" == wire().send(Sell())
    assert ([], []) == (steps, list(broker.published))


def test_d7_a_middleware_may_change_the_response(wire, chain):
    """
    `send` returns what the outermost returned.
    """
    chain.add(lambda request, call_next: f"<{call_next(request)}>", cqrs.Request)
    chain.add(lambda request, call_next: call_next(request).upper(), cqrs.Command)
    mediator = wire()

    assert ("<BOUGHT BOOK>", "<the price of book>") == (mediator.send(Buy()), mediator.send(GetPrice()))


def test_d7_a_middleware_may_change_the_message(wire, events, chain, steps, broker):
    """
    Of requests, of events for one handler, of what is published and of what is received.
    """

    def rename(name):
        return lambda message, call_next: call_next(evolve(message, name=name))

    chain.add(rename("pen"), Buy).add(rename("ink"), Bought)
    chain.add(lambda batch, call_next: call_next([evolve(each, topic="other") for each in batch]), cqrs.OutgoingMessage)
    mediator = wire()

    assert "bought pen" == mediator.send(Buy())
    assert ["buy", "on bought ink"] == steps
    assert [("other", b'{"name":"pen"}')] == [(message.topic, message.body) for message in broker.published]


def test_d7_a_middleware_may_skip_an_event_handler(wire, events, chain, steps):
    """
    Its siblings run.
    """
    events.bind(SaleMade, lambda event: steps.append("on sale made"))
    chain.add(lambda event, call_next: None, Bought)
    wire().send(Buy())

    assert ["buy", "on sale made"] == steps


def test_d7_a_middleware_may_hold_back_what_is_published(wire, chain, broker):
    """
    That is how a dry run is made.
    """
    chain.add(lambda batch, call_next: None, cqrs.OutgoingMessage)
    wire().send(Buy())

    assert [] == list(broker.published)


def test_d7_a_middleware_may_turn_a_failure_into_a_response(wire, requests, chain, steps, broker):
    """
    The events of the handler that failed are dropped all the same.
    """

    @frozen
    class Fail(cqrs.Command[str]):
        pass

    def fail(request):
        cqrs.raise_event(SaleMade())
        raise LookupError("no")

    def forgive(request, call_next):
        try:
            return call_next(request)
        except LookupError:
            return "never mind"

    requests.bind(Fail, fail)
    chain.add(forgive, Fail)

    assert "never mind" == wire().send(Fail())
    assert ([], []) == (steps, list(broker.published))


def test_d7_a_middleware_that_fails_fails_the_request(wire, chain, steps, broker):
    """
    Before or after the handler: its exception is what `send` raises, and the events are dropped.
    """

    def fail(request, call_next):
        call_next(request)
        raise LookupError("after")

    chain.add(fail, Buy)
    with pytest.raises(LookupError, match="after"):
        wire().send(Buy())

    assert (["buy"], []) == (steps, list(broker.published))


def test_d7_a_middleware_that_fails_fails_the_event_handler(wire, events, chain, steps, broker):
    """
    Like the handler's own failure: the others run, and what was committed is announced.
    """

    def fail(event, call_next):
        raise LookupError("no connection")

    events.bind(SaleMade, lambda event: steps.append("on sale made"))
    chain.add(fail, Bought)
    with pytest.raises(cqrs.EventsFailed) as caught:
        wire().send(Buy())

    assert (["buy", "on sale made"], 1) == (steps, len(broker.published))
    assert ["no connection"] == [str(error) for error in caught.value.exceptions]


def test_d7_a_middleware_that_fails_around_publishing_is_reported_with_the_response(wire, chain):
    """
    Like a failure of the broker.
    """

    def fail(batch, call_next):
        raise LookupError("no signature")

    chain.add(fail, cqrs.OutgoingMessage)
    with pytest.raises(cqrs.EventsFailed) as caught:
        wire().send(Buy())

    assert ("bought book", ["publish"]) == (caught.value.response, [each.handler for each in caught.value.failures])


def test_d7_a_middleware_may_raise_events(wire, chain, steps):
    """
    They are the request's: an audit of all commands is a middleware.
    """

    def audit(request, call_next):
        response = call_next(request)
        cqrs.raise_event(Bought("audited"))
        return response

    chain.add(audit, Buy)
    wire().send(Buy())

    assert ["buy", "on bought audited", "on bought book"] == sorted(steps)


def test_d7_a_middleware_may_call_the_handler_twice(wire, chain, steps, broker):
    """
    What both attempts raised has happened, and each was served by a fresh handler.
    """

    def twice(request, call_next):
        call_next(request)
        return call_next(request)

    chain.add(twice, Buy)
    wire().send(Buy())

    assert ["buy", "buy", "on bought book", "on bought book"] == steps
    assert 2 == len(broker.published)


def test_d7_a_middleware_is_shared_by_threads(wire, chain):
    """
    Each call goes through the chain by itself: sixteen are inside at the same time.
    """
    together = threading.Barrier(16)
    answers = []

    def wait(request, call_next):
        together.wait(10)
        return call_next(request)

    chain.add(wait, GetPrice)
    mediator = wire()
    callers = [
        threading.Thread(target=lambda name=str(n): answers.append((name, mediator.send(GetPrice(name)))))
        for n in range(16)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(30)

    assert {(str(n), f"the price of {n}") for n in range(16)} == set(answers)


@pytest.mark.parametrize("wrong", [Around, "logging", None])
def test_d7_what_is_no_middleware_is_refused(chain, wrong):
    """
    When it is added: a class instead of an instance, most of all.
    """
    with pytest.raises(TypeError, match=r"a middleware is an instance called with \(message, call_next\)"):
        chain.add(wrong)


def test_d7_a_middleware_is_chosen_by_types_only(chain):
    """
    An instance of a message in their place is refused.
    """
    with pytest.raises(TypeError, match="is not a type"):
        chain.add(lambda message, call_next: None, Buy())
