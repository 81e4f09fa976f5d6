"""Promises about wiring: one call, readable defaults, and wrong parts refused in words."""

from __future__ import annotations

import threading

import attrs
import punq
import pytest

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker, MemoryOutbox, MemoryTransactions


@attrs.frozen
class Ask(cqrs.Query[str]):
    pass


@attrs.frozen
class Asked(cqrs.DomainEvent):
    pass


@attrs.frozen
class AskedAbroad(cqrs.NotificationEvent, topic="asked", name="asked.abroad"):
    pass


class Clock:
    def __init__(self, now: str = "noon") -> None:
        self.now = now


class AskHandler(cqrs.RequestHandler[Ask, str]):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def handle(self, request):
        return self.clock.now


@pytest.fixture
def requests():
    requests = cqrs.RequestMap()
    requests.bind(AskHandler)
    return requests


def registered(clock=None):
    container = punq.Container()
    container.register(Clock, instance=clock or Clock())
    return container


# Defaults


def test_a_mediator_can_be_made_of_nothing():
    """
    Then there is nothing it can do, and it says so.
    """
    with cqrs.bootstrap() as mediator, pytest.raises(cqrs.HandlerNotFound):
        mediator.send(Ask())


def test_nothing_is_started_by_it(requests):
    """
    T5: Threads come with the first event, and a mediator that is dropped leaves none behind.
    """
    before = set(threading.enumerate())
    for _ in range(50):
        cqrs.bootstrap(
            requests, cqrs.EventMap(), source="tests", container=registered(), threads=8, broker=MemoryBroker()
        ).send(Ask())

    assert not set(threading.enumerate()) - before


@pytest.mark.parametrize("threads", [1, 4, None])
def test_threads_are_given_by_their_number(threads):
    """
    As many as that run at a time; without a number, as many as this machine likes.
    """
    events, seen = cqrs.EventMap(), set()
    events.bind(Asked, lambda event: seen.add(threading.current_thread().name))
    with cqrs.bootstrap(events=events, threads=threads) as mediator:
        pool = mediator.wiring.threads
        mediator.publish(Asked())

    assert isinstance(pool, cqrs.ThreadPool)
    assert threads in (None, pool.max_workers)
    assert 1 == len(seen)


# Containers


class OwnContainer:
    """Any object with `resolve`, which is all that is asked of it."""

    def __init__(self):
        self.asked = []

    def resolve(self, service):
        self.asked.append(service)
        return service(Clock("by hand"))


def test_a_container_of_ones_own_builds_handlers(requests):
    """
    It is asked for each message anew.
    """
    container = OwnContainer()
    with cqrs.bootstrap(requests, container=container) as mediator:
        answers = [mediator.send(Ask()), mediator.send(Ask())]

    assert (["by hand"] * 2, [AskHandler] * 2) == (answers, container.asked)


@pytest.mark.parametrize("wrap", [lambda container: container, cqrs.PunqContainer], ids=["punq", "PunqContainer"])
def test_a_punq_container_may_be_given_as_it_is(requests, wrap):
    """
    Handlers need no registration, what they need does; what is registered later counts.
    """
    container = registered()
    with cqrs.bootstrap(requests, container=wrap(container)) as mediator:
        first = mediator.send(Ask())
        container.register(Clock, instance=Clock("midnight"))
        second = mediator.send(Ask())

    assert ("noon", "midnight") == (first, second)


def wanted_by_function(request: Ask, clock: Clock) -> str:
    return clock.now


def wanted_by_keyword(request: Ask, *, clock: Clock, shift: int = 1) -> str:
    return f"{clock.now} + {shift}"


@pytest.mark.parametrize(("function", "answer"), [(wanted_by_function, "noon"), (wanted_by_keyword, "noon + 1")])
def test_functions_are_given_what_they_need(function, answer):
    """
    By the types of the parameters after the message; those with a default are left alone.
    """
    requests = cqrs.RequestMap()
    requests.bind(Ask, function)
    with cqrs.bootstrap(requests, container=registered()) as mediator:
        assert answer == mediator.send(Ask())


def test_a_function_whose_needs_have_no_type_is_refused():
    """
    With the names of the parameters.
    """
    requests = cqrs.RequestMap()
    requests.bind(Ask, lambda request, clock, calendar: clock)
    with (
        cqrs.bootstrap(requests) as mediator,
        pytest.raises(cqrs.HandlerNotBuilt, match=r"has parameters without a type, .*: clock, calendar"),
    ):
        mediator.send(Ask())


class Missing(cqrs.RequestHandler[Ask, str]):
    def __init__(self, count: int) -> None:
        self.count = count

    def handle(self, request):
        return "never built"


def test_a_missing_dependency_is_named_with_the_handler_that_wanted_it():
    """
    In the exception, which is what is logged.
    """
    requests = cqrs.RequestMap()
    requests.bind(Missing)
    with cqrs.bootstrap(requests) as mediator, pytest.raises(cqrs.HandlerNotBuilt, match=r"Missing.*\bint\b"):
        mediator.send(Ask())


def test_what_a_constructor_raises_is_raised_with_the_name_of_the_handler():
    """
    As it is, with a note.
    """

    class Broken(cqrs.RequestHandler[Ask, str]):
        def __init__(self):
            raise LookupError("no database")

        def handle(self, request):
            return "never built"

    requests = cqrs.RequestMap()
    requests.bind(Broken)
    with cqrs.bootstrap(requests) as mediator, pytest.raises(LookupError, match="no database") as caught:
        mediator.send(Ask())

    assert Broken.__qualname__ in "".join(caught.value.__notes__)


# Wrong parts


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"requests": [AskHandler]}, "requests must be a RequestMap, not"),
        ({"requests": cqrs.EventMap()}, "requests must be a RequestMap, not"),
        ({"events": cqrs.RequestMap()}, "events must be a EventMap, not"),
        ({"container": object()}, r"container must be an object with the method resolve\(\.\.\.\), not"),
        ({"container": OwnContainer}, r"container must be an object with the method resolve\(\.\.\.\), not"),
        ({"broker": "amqp://localhost"}, r"broker must be an object with the method publish\(\.\.\.\), not 'amqp"),
        ({"broker": MemoryBroker}, r"broker must be an object with the method publish\(\.\.\.\), not"),
        ({"threads": "4"}, r"threads must be an object with the method run\(\.\.\.\), not '4'"),
        ({"threads": cqrs.SameThread}, r"threads must be an object with the method run\(\.\.\.\), not"),
        ({"transactions": MemoryTransactions}, r"transactions must be an object with the method on_commit\(\.\.\.\)"),
        (
            {"failure_policy": cqrs.CollectFailures},
            r"failure_policy must be an object with the method report\(\.\.\.\), not",
        ),
        ({"failure_policy": "log"}, r"failure_policy must be an object with the method report\(\.\.\.\), not 'log'"),
        ({"serializer": "json"}, r"serializer must be an object with the method dump\(\.\.\.\), not 'json'"),
        ({"max_depth": 0}, "max_depth must be a whole number above 0, not 0"),
        ({"max_depth": "16"}, "max_depth must be a whole number above 0, not '16'"),
        ({"max_depth": True}, "max_depth must be a whole number above 0, not True"),
    ],
)
def test_a_wrong_part_is_refused_at_once(parts, words):
    """
    A class instead of an object, a string instead of either: not when the first request comes.
    """
    with pytest.raises(cqrs.ConfigurationError, match=words):
        cqrs.bootstrap(**parts)


@pytest.mark.parametrize("threads", [0, -1, True])
def test_a_pool_has_a_size(threads):
    """
    A whole number above 0.
    """
    with pytest.raises(ValueError, match="max_workers must be a whole number above 0"):
        cqrs.bootstrap(threads=threads)


@pytest.mark.parametrize(
    ("middleware", "words"),
    [
        (cqrs.LoggingMiddleware(), "middlewares must be a list: write"),
        ([cqrs.LoggingMiddleware], "a middleware is an instance called with"),
        (["logging"], "a middleware is an instance called with"),
    ],
)
def test_wrong_middleware_is_refused_at_once(middleware, words):
    """
    A single one, a class, a name.
    """
    with pytest.raises(TypeError, match=words):
        cqrs.bootstrap(middleware=middleware)


def test_two_mediators_may_share_maps_and_parts(requests):
    """
    Each with settings of its own.
    """
    events, broker, seen = cqrs.EventMap(), MemoryBroker(), []
    events.bind(Asked, seen.append)
    one = cqrs.bootstrap(requests, events, source="tests", container=registered(Clock("one")), broker=broker, threads=2)
    two = cqrs.bootstrap(
        requests, events, source="tests", container=registered(Clock("two")), broker=broker, threads=cqrs.SameThread()
    )
    answers = [one.send(Ask()), two.send(Ask())]
    for mediator in (one, two):
        mediator.publish(Asked())
        mediator.publish(AskedAbroad())
    one.close()

    assert (["one", "two"], [Asked()] * 2, 2) == (answers, seen, len(broker.published))


# The name on the wire


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"broker": MemoryBroker()}, r'was given a broker, and no name .*: write bootstrap\(source="shop"\)'),
        ({"outbox": MemoryOutbox()}, r'was given an outbox, and no name .*: write bootstrap\(source="shop"\)'),
        ({"source": "shop", "serializer": cqrs.JsonSerializer(source="shop")}, "a source or a serializer, not both"),
        ({"source": "my shop"}, "source must be the name of the service that publishes, without spaces"),
        ({"source": ""}, "source must be the name of the service that publishes"),
    ],
)
def test_a_source_is_needed_as_soon_as_something_leaves_or_is_stored(parts, words):
    """
    Two services with one source would take each other's messages for their own.
    """
    with pytest.raises(cqrs.ConfigurationError, match=words):
        cqrs.bootstrap(**parts)


@pytest.mark.parametrize(
    "named", [{"source": "shop"}, {"serializer": cqrs.JsonSerializer(source="shop")}], ids=["source", "serializer"]
)
def test_messages_carry_the_source(named):
    broker = MemoryBroker()
    with cqrs.bootstrap(broker=broker, **named) as mediator:
        mediator.publish(AskedAbroad())

    assert ["shop"] == [message.attributes["source"] for message in broker.published]
