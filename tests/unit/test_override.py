"""Promises about `mediator.override`: tests put something else in place of a service, whatever the container is."""

from __future__ import annotations

import inspect
import threading
from abc import ABC, abstractmethod
from typing import get_type_hints

import attrs
import punq
import pytest

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker, MemoryOutbox
from tests.waiting import eventually


@attrs.frozen
class Ask(cqrs.Query[str]):
    pass


@attrs.frozen
class Do(cqrs.Command[None]):
    pass


@attrs.frozen
class Done(cqrs.DomainEvent, name="done"):
    pass


class Orders:
    def name(self) -> str:
        return "real"


class Fake(Orders):
    def name(self) -> str:
        return "fake"


class Greeting(ABC):
    @abstractmethod
    def text(self) -> str: ...


class OrderGreeting(Greeting):
    def __init__(self, orders: Orders) -> None:
        self.orders = orders

    def text(self) -> str:
        return f"hello, {self.orders.name()}"


class Service:
    def __init__(self, orders: Orders) -> None:
        self.orders = orders


class AskHandler(cqrs.RequestHandler[Ask, str]):
    def __init__(self, service: Service) -> None:
        self.service = service

    def handle(self, request: Ask) -> str:
        return self.service.orders.name()


def greet(request: Ask, greeting: Greeting) -> str:
    return greeting.text()


class ByHand:
    """A container that is not punq: it makes what constructors ask for."""

    def resolve(self, service):
        hints = get_type_hints(service.__init__) if "__init__" in vars(service) else {}
        names = list(inspect.signature(service.__init__).parameters)[1:]
        return service(**{name: self.resolve(hints[name]) for name in names if name in hints})


def punq_container():
    return punq.Container().register(Orders).register(Service)


def attached(container, handler=AskHandler):
    requests = cqrs.RequestMap()
    requests.bind(handler)
    return cqrs.bootstrap(requests, container=container)


@pytest.mark.parametrize("container", [punq_container, ByHand], ids=["punq", "by hand"])
def test_a_service_below_the_handler_is_replaced_and_restored(container):
    with attached(container()) as mediator:
        before = mediator.send(Ask())
        with mediator.override(Orders, Fake()):
            during = mediator.send(Ask())
            with mediator.override(Service, Service(Orders())):
                nested = mediator.send(Ask())
            again = mediator.send(Ask())
        with pytest.raises(ValueError, match="in the block"), mediator.override(Orders, Fake()):
            raise ValueError("in the block")
        after = mediator.send(Ask())

    assert ("real", "fake", "real", "fake", "real") == (before, during, nested, again, after)


def test_what_is_registered_by_its_interface_is_built_with_the_other_instance():
    """
    A singleton is built anew, for the block only; what it does not need is shared.
    """
    container = punq.Container().register(Orders, scope=punq.Scope.singleton)
    container.register(Greeting, OrderGreeting, scope=punq.Scope.singleton)
    with attached(container, greet) as mediator:
        before, known = mediator.send(Ask()), container.resolve(Greeting)
        with mediator.override(Orders, Fake()):
            during = mediator.send(Ask())
        after = mediator.send(Ask())

    assert ("hello, real", "hello, fake", "hello, real") == (before, during, after)
    assert known is container.resolve(Greeting)


def test_a_singleton_that_is_first_built_in_the_block_does_not_outlive_it():
    container = punq.Container().register(Orders).register(Greeting, OrderGreeting, scope=punq.Scope.singleton)
    with attached(container, greet) as mediator:
        with mediator.override(Orders, Fake()):
            during = [mediator.send(Ask()), mediator.send(Ask())]
        after = mediator.send(Ask())

    assert (["hello, fake"] * 2, "hello, real") == (during, after)


def test_event_handlers_of_every_phase_get_the_instance():
    """
    On the pool, in the relay, and inline; also in a thread that did not open the block.
    """
    seen = []
    requests, events = cqrs.RequestMap(), cqrs.EventMap()
    requests.bind(Do, lambda request: cqrs.raise_event(Done()))

    @events.inline
    def inline(event: Done, orders: Orders) -> None:
        seen.append(("inline", orders.name()))

    @events.bind
    def after(event: Done, orders: Orders) -> None:
        seen.append(("after", orders.name()))

    @events.durable("durable")
    def durable(event: Done, orders: Orders) -> None:
        seen.append(("durable", orders.name()))

    outbox = MemoryOutbox(on_no_transaction=cqrs.OnNoTransaction.OPEN)
    with (
        cqrs.bootstrap(
            requests, events, source="tests", container=punq_container(), broker=MemoryBroker(), outbox=outbox
        ) as mediator,
        mediator.override(Orders, Fake()),
    ):
        thread = threading.Thread(target=lambda: mediator.send(Do()))
        thread.start()
        thread.join(10)
        eventually(lambda: len(seen) == 3)

    assert {("inline", "fake"), ("after", "fake"), ("durable", "fake")} == set(seen)


def test_blocks_may_end_in_any_order():
    with attached(punq_container()) as mediator:
        first, second = mediator.override(Orders, Fake()), mediator.override(Orders, Orders())
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        between = mediator.send(Ask())
        with mediator.override(Orders, Fake()):
            inner = mediator.send(Ask())
        second.__exit__(None, None, None)

    assert ("real", "fake") == (between, inner)


class Order:
    pass


@pytest.mark.parametrize("container", [punq_container, ByHand], ids=["punq", "by hand"])
def test_a_type_that_no_handler_asks_for_is_refused(container):
    with (
        attached(container()) as mediator,
        pytest.raises(
            cqrs.ConfigurationError, match=r"no handler that is bound here asks for Order, .* ask for Orders"
        ),
        mediator.override(Order, Order()),
    ):
        pass
