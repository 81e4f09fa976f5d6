"""
D4: Every event is dispatched to its handlers and then emitted, each instance once, before `send`
returns. Follow-up events of event handlers join the same run, breadth first when sequential.
"""

from __future__ import annotations

import json
import threading
from collections import Counter

import pytest
from attrs import field, frozen

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker


@frozen
class Start(cqrs.Command[str]):
    pass


@frozen
class Happened(cqrs.DomainEvent):
    name: str = "a"


@frozen
class Announced(cqrs.NotificationEvent, topic="news", name="announced"):
    name: str = "a"


class Journal:
    """What happened, in order, written by any thread."""

    def __init__(self):
        self.entries = []

    def __call__(self, entry):
        self.entries.append(entry)

    def noting(self, name, *, then=()):
        """Make a handler that notes itself and the event, and raises others."""

        def handle(event):
            self((name, event.name))
            for follow_up in then:
                cqrs.raise_event(follow_up)

        handle.__qualname__ = name
        return handle


class NotingBroker(MemoryBroker):
    def __init__(self, journal):
        super().__init__()
        self.journal = journal
        self.batches = []

    def publish(self, messages, /, *, timeout=None):
        self.batches.append([json.loads(message.body)["name"] for message in messages])
        for message in messages:
            self.journal(("published", json.loads(message.body)["name"]))
        super().publish(messages, timeout=timeout)


@pytest.fixture
def journal():
    return Journal()


@pytest.fixture
def broker(journal):
    return NotingBroker(journal)


@pytest.fixture
def requests():
    return cqrs.RequestMap()


@pytest.fixture
def events():
    return cqrs.EventMap()


@pytest.fixture
def mediator(requests, events, broker, threads):
    return cqrs.bootstrap(requests, events, source="tests", broker=broker, threads=threads)


@pytest.fixture
def raising(requests):
    """Have the command raise these events."""

    def bind(*raised):
        def start(request):
            for event in raised:
                cqrs.raise_event(event)
            return "started"

        requests.bind(Start, start)

    return bind


# Handlers, then the broker, then the response


def test_d4_every_event_is_handled_by_each_of_its_handlers_before_send_returns(raising, events, mediator, journal):
    """
    Ten events with three handlers each are thirty calls, none missing, none doubled.
    """
    raising(*[Happened(str(number)) for number in range(10)])
    for name in ("one", "two", "three"):
        events.bind(Happened, journal.noting(name))

    answer = mediator.send(Start())

    wanted = Counter((name, str(number)) for number in range(10) for name in ("one", "two", "three"))
    assert ("started", wanted) == (answer, Counter(journal.entries))


def test_d4_an_event_is_handled_before_it_is_emitted(raising, events, mediator, journal):
    """
    Its handlers, those of its follow-ups too, have finished when the broker sees it; `send` returns after both.
    """
    raising(Announced("a"))
    events.bind(Announced, journal.noting("handler", then=[Happened("b")]))
    events.bind(Happened, journal.noting("follow-up"))

    mediator.send(Start())

    assert [("handler", "a"), ("follow-up", "b"), ("published", "a")] == journal.entries


def test_d4_a_slow_handler_holds_send_back(raising, events, mediator):
    """
    `send` does not return while a handler runs.
    """
    entered, leave, returned = threading.Event(), threading.Event(), threading.Event()
    raising(Happened())

    @events.bind
    def slow(event: Happened) -> None:
        entered.set()
        assert leave.wait(10)

    def send():
        mediator.send(Start())
        returned.set()

    caller = threading.Thread(target=send)
    caller.start()
    assert entered.wait(10)
    early = returned.wait(0.05)
    leave.set()
    caller.join(10)

    assert (False, True) == (early, returned.is_set())


def test_d4_notification_events_of_a_request_leave_as_one_batch(raising, events, mediator, broker):
    """
    In the order they were raised, those of follow-ups behind: one wait for the broker, not one for each.
    """
    raising(Announced("a"), Happened("b"), Announced("c"))
    events.bind(Happened, lambda event: cqrs.raise_event(Announced("d")))

    mediator.send(Start())

    assert [["a", "c", "d"]] == broker.batches


def test_d4_domain_events_do_not_leave(raising, events, mediator, broker):
    """
    They are for this process.
    """
    raising(Happened())
    events.bind(Happened, lambda event: None)

    mediator.send(Start())

    assert [] == broker.batches


def test_d4_events_sent_without_a_request_go_the_same_way(events, mediator, journal):
    """
    `mediator.publish` is a request's end without the request.
    """
    events.bind(Announced, journal.noting("handler", then=[Happened("b")]))
    events.bind(Happened, journal.noting("follow-up", then=[Announced("c")]))

    mediator.publish(Announced("a"))

    calls, emitted = journal.entries[:3], journal.entries[3:]
    assert {("handler", "a"), ("follow-up", "b"), ("handler", "c")} == set(calls[:3])
    assert [("published", "a"), ("published", "c")] == [entry for entry in emitted if entry[0] == "published"]


# Each instance once


def test_d4_an_instance_that_is_raised_twice_is_handled_and_emitted_once(raising, events, mediator, journal):
    """
    It is one event, however often it is mentioned.
    """
    happened, announced = Happened("a"), Announced("b")
    raising(happened, announced, happened, announced)
    events.bind(Happened, journal.noting("handler"))
    events.bind(Announced, journal.noting("handler"))

    mediator.send(Start())

    assert Counter({("handler", "a"): 1, ("handler", "b"): 1, ("published", "b"): 1}) == Counter(journal.entries)


def test_d4_a_domain_event_that_is_raised_twice_is_handled_once(raising, events, mediator, journal):
    """
    Also where no other event asks for care.
    """
    happened = Happened("a")
    raising(happened, happened)
    events.bind(Happened, journal.noting("handler"))

    mediator.send(Start())

    assert [("handler", "a")] == journal.entries


def test_d4_equal_instances_are_two_events(raising, events, mediator, journal):
    """
    That two users joined is not less true for being told in the same words.
    """
    raising(Happened("a"), Happened("a"), Announced("b"), Announced("b"))
    events.bind(Happened, journal.noting("handler"))

    mediator.send(Start())

    assert Counter({("handler", "a"): 2, ("published", "b"): 2}) == Counter(journal.entries)


@pytest.mark.parametrize("event", [Happened("a"), Announced("a")], ids=lambda event: type(event).__name__)
def test_d4_an_instance_that_its_handler_raises_again_is_handled_and_emitted_once(
    raising, events, mediator, journal, event
):
    """
    It is in the run already.
    """

    def again(event):
        journal(("handler", event.name))
        cqrs.raise_event(event)

    raising(event)
    events.bind(type(event), again)

    mediator.send(Start())

    assert [("handler", "a")] == [entry for entry in journal.entries if entry[0] == "handler"]
    assert int(isinstance(event, Announced)) == journal.entries.count(("published", "a"))


def test_d4_an_instance_that_two_handlers_raise_is_handled_and_emitted_once(raising, events, mediator, journal):
    """
    Whichever of them was first, on a pool.
    """
    shared, news = Happened("shared"), Announced("news")

    def raise_both(event):
        if event is not shared:
            cqrs.raise_event(shared)
            cqrs.raise_event(news)

    raising(*[Happened(str(number)) for number in range(20)])
    events.bind(Happened, raise_both)
    events.bind(Happened, journal.noting("handler"))

    mediator.send(Start())

    counted = Counter(journal.entries)
    assert (1, 1) == (counted["handler", "shared"], counted["published", "news"])


def test_d4_an_instance_may_be_raised_again_by_another_request(raising, events, mediator, journal):
    """
    Once is meant for one request: an event may be kept and raised for each.
    """
    raising(Announced("a"))
    events.bind(Announced, journal.noting("handler"))

    mediator.send(Start())
    mediator.send(Start())

    assert Counter({("handler", "a"): 2, ("published", "a"): 2}) == Counter(journal.entries)


def test_d4_an_event_needs_neither_hash_nor_equality(raising, events, mediator):
    """
    Instances are told apart by what they are, not by what they say.
    """

    class Odd(cqrs.DomainEvent):
        __hash__ = None

        def __eq__(self, other):
            raise AssertionError("compared")

    seen = []
    odd = Odd()
    raising(odd, odd, Odd())
    events.bind(Odd, seen.append)

    mediator.send(Start())

    assert 2 == len(seen)


# Follow-up events


def test_d4_follow_up_events_join_the_same_run(raising, events, mediator, journal):
    """
    Three generations, domain and notification events mixed, are done when `send` returns.
    """
    raising(Happened("child"))

    @events.bind
    class Parent(cqrs.EventHandler[Happened]):
        def handle(self, event):
            journal(("handler", event.name))
            if event.name == "child":
                self.raise_event(Announced("grandchild"))

    events.bind(Announced, journal.noting("handler", then=[Happened("great-grandchild")]))

    mediator.send(Start())

    wanted = ["child", "grandchild", "great-grandchild"]
    assert [*(("handler", name) for name in wanted), ("published", "grandchild")] == journal.entries


def test_d4_event_handlers_may_keep_their_own_events(raising, events, mediator, journal):
    """
    The specification's form is for event handlers, too.
    """
    raising(Happened("a"))

    @events.bind
    class Own(cqrs.EventHandler[Happened]):
        def __init__(self):
            self._events = []

        @property
        def events(self):
            return self._events

        def handle(self, event):
            self._events.append(Announced("b"))

    mediator.send(Start())

    assert [("published", "b")] == journal.entries


@frozen
class Node(cqrs.DomainEvent):
    name: str
    children: tuple[Node, ...] = field(default=())


TREE = Node("a", (Node("b", (Node("d"), Node("e"))), Node("c", (Node("f", (Node("g"),)),))))


def test_d4_follow_ups_are_handled_breadth_first_when_sequential(requests, events, journal):
    """
    First every handler of every event of the request, then their follow-ups, then theirs.
    """

    def grow(event):
        journal(("grow", event.name))
        for child in event.children:
            cqrs.raise_event(child)

    requests.bind(Start, lambda request: cqrs.raise_event(TREE))
    events.bind(Node, grow)
    events.bind(Node, journal.noting("watch"))
    cqrs.bootstrap(requests, events, threads=cqrs.SameThread()).send(Start())

    wanted = [(name, node) for node in "abcdefg" for name in ("grow", "watch")]
    assert wanted == journal.entries


def test_d4_an_event_is_handled_after_the_one_it_follows(requests, events, mediator, journal):
    """
    On any pool a follow-up comes after the handler that raised it.
    """

    def grow(event):
        for child in event.children:
            cqrs.raise_event(child)
        journal(event)

    requests.bind(Start, lambda request: cqrs.raise_event(TREE))
    events.bind(Node, grow)

    mediator.send(Start())

    places = {node.name: place for place, node in enumerate(journal.entries)}
    assert "abcdefg" == "".join(sorted(places))
    assert all(places[parent.name] < places[child.name] for parent in journal.entries for child in parent.children)


def test_d4_handlers_run_in_the_order_they_were_bound_when_sequential(requests, events, journal):
    """
    And events in the order they were raised.
    """
    requests.bind(Start, lambda request: [cqrs.raise_event(Happened(name)) for name in "ab"])
    for name in ("third", "first", "second"):
        events.bind(Happened, journal.noting(name))
    cqrs.bootstrap(requests, events, threads=cqrs.SameThread()).send(Start())

    assert [(name, event) for event in "ab" for name in ("third", "first", "second")] == journal.entries


def test_d4_a_request_without_events_needs_neither_threads_nor_broker(requests, journal):
    """
    What is not used is not touched.
    """

    class Untouchable:
        def __getattribute__(self, name):
            if name in ("run", "publish") and started:
                raise AssertionError(f"{name} was asked for")
            return object.__getattribute__(self, name)

        def run(self, source, /, *, timeout=None, may_help=True):
            """Never called."""

        publish = close = run

    started = []
    requests.bind(Start, lambda request: "started")
    mediator = cqrs.bootstrap(requests, source="tests", threads=Untouchable(), broker=Untouchable())
    started.append(True)

    assert "started" == mediator.send(Start())
