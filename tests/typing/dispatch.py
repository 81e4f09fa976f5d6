"""What a type checker infers from a request: the response, for every kind of message."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, assert_type

import msgspec
import pydantic
from attrs import frozen

import cqrs_sync as cqrs

T = TypeVar("T")


@frozen
class Order:
    number: int


@frozen
class PlaceOrder(cqrs.Command[None]):
    number: int


@frozen
class GetOrder(cqrs.Query[Order]):
    number: int


@frozen
class FindOrders(cqrs.Query[list[Order] | None]):
    pass


@frozen
class Page(cqrs.Query[T], Generic[T]):
    of: type[T]


@frozen
class GetOrderAgain(GetOrder):
    pass


@dataclass(frozen=True, slots=True)
class CountOrders(cqrs.Query[int]):
    since: int = 0


class CancelOrder(pydantic.BaseModel, cqrs.Command[bool], frozen=True):
    number: int


class ShipOrder(msgspec.Struct, cqrs.Command[str], frozen=True):
    number: int


@frozen
class OrderPlaced(cqrs.DomainEvent):
    number: int


@frozen
class OrderShipped(cqrs.NotificationEvent, topic="orders", name="order.shipped", key="number"):
    number: int


class OrderCancelled(pydantic.BaseModel, cqrs.NotificationEvent, topic="orders", name="order.cancelled", frozen=True):
    number: int


@cqrs.notification(topic="orders", name="order.returned")
class OrderReturned(msgspec.Struct, cqrs.NotificationEvent, frozen=True):
    number: int


def responses(mediator: cqrs.Mediator) -> None:
    mediator.send(PlaceOrder(1))
    assert_type(mediator.send(GetOrder(1)), Order)
    assert_type(mediator.send(GetOrder(1), timeout=1.5), Order)
    assert_type(mediator.send(GetOrderAgain(1)), Order)
    assert_type(mediator.send(FindOrders()), list[Order] | None)
    assert_type(mediator.send(Page(Order)), Order)
    assert_type(mediator.send(CountOrders()), int)
    assert_type(mediator.send(CancelOrder(number=1)), bool)
    assert_type(mediator.send(ShipOrder(1)), str)


def messages() -> None:
    assert_type(CountOrders().since, int)
    assert_type(CancelOrder(number=1).number, int)
    assert_type(ShipOrder(1).number, int)
    assert_type(OrderShipped(1).number, int)
    assert_type(OrderCancelled(number=1).number, int)
    assert_type(OrderReturned(1).number, int)


class GetOrderHandler(cqrs.RequestHandler[GetOrder, Order]):
    def __init__(self, orders: dict[int, Order]) -> None:
        self.orders = orders

    def handle(self, request: GetOrder) -> Order:
        self.raise_event(OrderPlaced(request.number))
        return self.orders[request.number]


class OwnEvents(cqrs.EventHandler[OrderPlaced]):
    def __init__(self) -> None:
        self._events: list[cqrs.Event] = []

    @property
    def events(self) -> list[cqrs.Event]:
        return self._events

    def handle(self, event: OrderPlaced) -> None:
        self._events.append(OrderShipped(event.number))


def count(request: CountOrders) -> int:
    cqrs.raise_event(OrderPlaced(request.since))
    return 0


def bindings(requests: cqrs.RequestMap, events: cqrs.EventMap) -> None:
    assert_type(requests.bind(GetOrderHandler), type[GetOrderHandler])
    assert_type(requests.bind(GetOrder, GetOrderHandler), type[GetOrderHandler])
    assert_type(events.bind(OwnEvents, phase=cqrs.Phase.INLINE), type[OwnEvents])
    bound: Callable[[CountOrders], int] = requests.bind(count)
    also: Callable[[CountOrders], int] = requests.bind(CountOrders, count)
    assert_type(bound(CountOrders()) + also(CountOrders()), int)

    @events.bind
    def on_placed(event: OrderPlaced) -> None:
        cqrs.raise_event(OrderShipped(event.number))

    @events.bind(OrderPlaced, phase=cqrs.Phase.INLINE)
    def on_any(event: cqrs.Event) -> None: ...

    @events.inline
    def keep(event: OrderPlaced) -> None: ...

    @events.durable("bill", retry=cqrs.RetryPolicy(attempts=5))
    def bill(event: OrderShipped) -> None: ...

    @events.durable("count", OrderShipped)
    def count_any(event: cqrs.Event) -> None: ...

    for bound_event in (on_placed, keep):
        bound_event(OrderPlaced(1))
    bill(OrderShipped(1))
    on_any(OrderPlaced(1))
    count_any(OrderPlaced(1))
    assert_type(events.inline(OwnEvents), type[OwnEvents])
    assert_type(events.inline(OrderPlaced, OwnEvents), type[OwnEvents])
    assert_type(events.inline(OrderPlaced)(OwnEvents), type[OwnEvents])
    assert_type(events.durable("own", OwnEvents), type[OwnEvents])
    assert_type(events.durable("own", OrderPlaced, OwnEvents), type[OwnEvents])


def timed(message: Any, call_next: Callable[[Any], Any]) -> Any:
    return call_next(message)


class Timed:
    def __call__(self, message: Any, call_next: Callable[[Any], Any], /) -> Any:
        return call_next(message)


def wiring(
    requests: cqrs.RequestMap,
    events: cqrs.EventMap,
    broker: cqrs.MessageBroker,
    container: cqrs.Container,
    transactions: cqrs.Transactions,
) -> None:
    assert_type(cqrs.bootstrap(), cqrs.Mediator)
    with cqrs.bootstrap(requests, events, source="tests", container=container, broker=broker, threads=4) as mediator:
        assert_type(mediator, cqrs.Mediator)
        mediator.publish(OrderShipped(1), timeout=1)
    cqrs.bootstrap(
        requests,
        events,
        threads=cqrs.SameThread(),
        transactions=transactions,
        middleware=[cqrs.LoggingMiddleware(), timed, Timed()],
        failure_policy=cqrs.FailFast(),
        serializer=cqrs.JsonSerializer(source="/shop"),
    )


def failing(mediator: cqrs.Mediator) -> None:
    try:
        mediator.send(GetOrder(1))
    except cqrs.EventsFailed as error:
        assert_type(error.failures, tuple[cqrs.Failure, ...])
        assert_type(error.failures[0].handler, str)
        assert_type(error.exceptions, tuple[Exception | ExceptionGroup[Exception], ...])


def refused(mediator: cqrs.Mediator, requests: cqrs.RequestMap, events: cqrs.EventMap) -> None:
    """An ignore that is not needed is an error of its own, so each of these lines is one."""
    mediator.send(OrderPlaced(1))  # type: ignore[arg-type]
    mediator.send(GetOrder(1), 5)  # type: ignore[call-arg]
    mediator.publish(GetOrder(1))  # type: ignore[arg-type]
    cqrs.raise_event(GetOrder(1))  # type: ignore[arg-type]
    requests.bind(OrderPlaced, GetOrderHandler)  # type: ignore[arg-type]
    events.bind(GetOrder, OwnEvents)  # type: ignore[arg-type]
    events.bind(OwnEvents, phase="inline")  # type: ignore[call-overload]
    events.durable(OwnEvents)  # type: ignore[call-overload]
    events.bind(OwnEvents, inline=True)  # type: ignore[call-overload]
    events.durable("own", OwnEvents, retries=3)  # type: ignore[call-overload]
    requests.bind(GetOrderHandler, retry=3)  # type: ignore[call-overload]
    requests.bind(42)  # type: ignore[call-overload]
    requests.bind(OwnEvents)  # type: ignore[arg-type]
    requests.bind(GetOrder, OwnEvents)  # type: ignore[type-var]
    events.bind(OrderPlaced, GetOrderHandler)  # type: ignore[type-var]
    events.bind(GetOrderHandler)  # type: ignore[arg-type]
    events.inline(OrderPlaced, GetOrderHandler)  # type: ignore[type-var]
    events.durable("own", GetOrderHandler)  # type: ignore[arg-type]
    mediator.send(GetOrder(1), once="key")  # type: ignore[arg-type]
    mediator.publish(OrderPlaced(1), ttl=5)  # type: ignore[arg-type]
    cqrs.bootstrap(requests, events, workers=4)  # type: ignore[arg-type]
    events.inline(GetOrder, OwnEvents)  # type: ignore[arg-type]


class HandlesAnother(cqrs.RequestHandler[GetOrder, Order]):
    def handle(self, request: PlaceOrder) -> Order:  # type: ignore[override]
        return Order(request.number)


class AnswersAnother(cqrs.RequestHandler[GetOrder, Order]):
    def handle(self, request: GetOrder) -> str:  # type: ignore[override]
        return repr(request)


class NotARequest(cqrs.RequestHandler[OrderPlaced, None]):  # type: ignore[type-var]
    def handle(self, request: OrderPlaced) -> None: ...
