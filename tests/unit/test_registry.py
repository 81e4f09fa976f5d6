"""Promises about the maps: what is bound to what, and what cannot be. Requests are in tests/promises/test_d1_*.py."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import attrs
import pytest

import cqrs_sync as cqrs
from cqrs_sync.testing.waiting import in_forked_child


@attrs.frozen
class Base(cqrs.DomainEvent):
    pass


@attrs.frozen
class Sub(Base):
    pass


@attrs.frozen
class Other(cqrs.DomainEvent):
    pass


@attrs.frozen
class Told(cqrs.NotificationEvent, topic="told", name="told"):
    pass


@attrs.frozen
class Do(cqrs.Command[None]):
    pass


class BaseHandler(cqrs.EventHandler[Base]):
    def handle(self, event):
        pass


class AnyHandler(cqrs.EventHandler[cqrs.Event]):
    def handle(self, event):
        pass


class DoHandler(cqrs.RequestHandler[Do, None]):
    def handle(self, request):
        pass


class Asynchronous(cqrs.EventHandler[Base]):
    async def handle(self, event):
        pass


class Unfinished(cqrs.EventHandler[Base]):
    pass


class Desk:
    def on_base(self, event: Base) -> None:
        pass

    def __call__(self, event: Base) -> None:
        pass


@attrs.define
class Unhashable:
    """Compares by value, so it has no hash."""

    seen: list[object] = attrs.field(factory=list)

    def __call__(self, event: Base) -> None:
        self.seen.append(event)


def on_base(event: Base) -> None:
    pass


async def on_base_some_time(event: Base) -> None:
    pass


def unannotated(event):
    pass


@pytest.fixture
def events():
    return cqrs.EventMap()


def handlers(found):
    return [binding.handler for binding in found]


# Finding


def test_handlers_are_found_in_the_order_they_were_bound(events):
    """
    Those of base classes among them.
    """
    events.bind(Sub, on_base)
    events.bind(BaseHandler)
    events.bind(AnyHandler)
    events.bind(Other, unannotated)

    assert [on_base, BaseHandler, AnyHandler] == handlers(events.find(Sub))
    assert [BaseHandler, AnyHandler] == handlers(events.find(Base))
    assert [AnyHandler, unannotated] == handlers(events.find(Other))
    assert [AnyHandler] == handlers(events.find(Told))
    assert (4, [Sub, Base, cqrs.Event, Other]) == (len(events), [binding.message_type for binding in events])


def test_a_handler_of_a_class_and_its_base_is_found_once_where_it_was_bound_first(events):
    """
    Neither its second binding nor the handlers between them change its place.
    """
    events.bind(Base, AnyHandler)
    events.bind(Base, on_base)
    events.bind(Sub, AnyHandler)

    assert [AnyHandler, on_base] == handlers(events.find(Sub))


def test_the_first_binding_tells_the_phase(events):
    """
    Of a handler that is bound to a class and its base.
    """
    events.bind(Base, on_base, phase=cqrs.Phase.INLINE)
    events.bind(Sub, on_base)

    assert [cqrs.Phase.INLINE] == [binding.phase for binding in events.find(Sub)]


def test_a_handler_needs_no_hash(events):
    """
    Any callable object is one.
    """
    handler = Unhashable()
    events.bind(Base, handler)
    with cqrs.bootstrap(events=events, threads=cqrs.SameThread()) as mediator:
        mediator.publish(Base())

    assert [Base()] == handler.seen


def test_what_is_bound_later_is_found(events):
    """
    Also for a type that was looked for before.
    """
    assert () == events.find(Sub)

    events.bind(on_base)

    assert [on_base] == handlers(events.find(Sub))


def test_maps_may_be_filled_by_many_threads(events):
    """
    No binding is lost.
    """
    bound = [partial(on_base) for _ in range(400)]
    together = threading.Barrier(8)

    def bind(number):
        together.wait(10)
        for handler in bound[number::8]:
            events.bind(Base, handler)
            events.find(Base)

    with ThreadPoolExecutor(8) as callers:
        list(callers.map(bind, range(8), timeout=60))

    assert set(map(id, bound)) == {id(handler) for handler in handlers(events.find(Base))}


# Binding


@pytest.mark.parametrize(
    ("arguments", "event_type"),
    [
        ([BaseHandler], Base),
        ([Base, BaseHandler], Base),
        ([Sub, BaseHandler], Sub),
        ([AnyHandler], cqrs.Event),
        ([on_base], Base),
        ([Sub, on_base], Sub),
        ([Other, unannotated], Other),
        ([Desk().on_base], Base),
        ([Base, Desk()], Base),
    ],
)
def test_the_event_is_given_or_read_from_the_handler(events, arguments, event_type):
    """
    As with requests; `bind` returns the handler.
    """
    assert events.bind(*arguments) == arguments[-1]
    assert [event_type] == [binding.message_type for binding in events]


@pytest.mark.parametrize(
    "handler", [BaseHandler, on_base, Desk().on_base, Unhashable()], ids=lambda one: repr(one)[:20]
)
def test_a_handler_is_bound_to_an_event_once(events, handler):
    """
    A module that is set up twice is found out; to another event it may be bound.
    """
    events.bind(Base, handler)
    with pytest.raises(cqrs.AlreadyBound, match="is bound to Base already"):
        events.bind(Base, handler)
    events.bind(Sub, handler)

    assert 2 == len(events)


def test_a_method_is_the_same_handler_however_often_it_is_looked_up(events):
    """
    Python makes a new object each time.
    """
    desk = Desk()
    events.bind(desk.on_base)
    with pytest.raises(cqrs.AlreadyBound):
        events.bind(desk.on_base)
    events.bind(Desk().on_base)

    assert 2 == len(events.find(Base))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([DoHandler], "DoHandler is an? RequestHandler: bind a subclass of EventHandler, or a function"),
        ([Desk], "Desk is not an? EventHandler: bind a subclass of EventHandler, or a function"),
        ([Unfinished], "Unfinished does not implement handle: define it"),
        ([Other, BaseHandler], "BaseHandler handles Base, so it cannot be bound to Other"),
        ([Other, on_base], "on_base handles Base, so it cannot be bound to Other"),
        ([cqrs.DomainEvent, BaseHandler], "BaseHandler handles Base, so it cannot be bound to DomainEvent"),
        ([Asynchronous], r"Asynchronous\.handle is a coroutine function: this library is synchronous"),
        ([on_base_some_time], "on_base_some_time is a coroutine function: this library is synchronous"),
        ([BaseHandler()], "an instance of BaseHandler cannot be bound: bind the class"),
        ([Base, "on_base"], "'on_base' is neither an? EventHandler class nor a function"),
        ([unannotated], r"unannotated does not say which event it handles: .* call bind\(<Event>, unannotated\)"),
        ([Base, lambda: None], "takes no argument: it must take the event"),
        ([Do, on_base], "Do cannot be bound: it is not an? Event"),
        ([dict, on_base], "dict cannot be bound: it is not an? Event"),
    ],
)
def test_a_wrong_binding_is_refused_when_it_is_bound(events, arguments, words):
    """
    In words that say what to change; nothing is bound by it.
    """
    with pytest.raises(cqrs.InvalidBinding, match=words):
        events.bind(*arguments)

    assert [] == list(events)


def test_the_event_is_read_from_an_annotation_whatever_the_others_are(events):
    """
    Others may be names that only type checkers know.
    """

    def on_base(event: "Base", session: "Session") -> None:  # noqa: F821, UP037
        pass

    events.bind(on_base)
    events.bind(partial(on_base, session=None))

    assert [Base, Base] == [binding.message_type for binding in events]


class CalledSomeTime:
    async def __call__(self, event: Base) -> None:
        pass


class Streams(cqrs.EventHandler[Base]):
    async def handle(self, event):
        yield event


async def streams(event: Base):
    yield event


@pytest.mark.parametrize("handler", [CalledSomeTime(), Streams, streams], ids=["object", "class", "function"])
def test_whatever_would_have_to_be_awaited_is_refused(events, handler):
    """
    An object that is called asynchronously and asynchronous generators, too: they would never run.
    """
    with pytest.raises(cqrs.InvalidBinding, match="this library is synchronous"):
        events.bind(Base, handler)


@pytest.mark.parametrize("phase", ["inline", None, 1])
def test_a_phase_is_one_of_those_there_are(events, phase):
    """
    And the error names them.
    """
    with pytest.raises(
        cqrs.InvalidBinding, match=r"phase must be one of Phase\.INLINE, Phase\.AFTER_COMMIT, Phase\.DURABLE, not"
    ):
        events.bind(on_base, phase=phase)

    assert [] == list(events)


# Names


def test_events_that_may_be_received_are_known_by_their_names(events):
    """
    Those notification events that handlers are bound to.
    """
    events.bind(Told, unannotated)
    events.bind(on_base)

    assert {"told": Told} == events.types


def test_two_events_under_one_name_are_refused(events):
    """
    Or a received message could be either.
    """

    @attrs.frozen
    class ToldAgain(cqrs.NotificationEvent, topic="told", name="told"):
        pass

    events.bind(Told, unannotated)
    with pytest.raises(cqrs.InvalidBinding, match="ToldAgain and Told are both named 'told': give one another name"):
        events.bind(ToldAgain, unannotated)

    assert ({"told": Told}, 1) == (events.types, len(events))


def test_an_event_with_a_name_and_nothing_else_is_refused(events):
    """
    When it is bound, not when it is first raised.
    """

    @attrs.frozen
    class Homeless(cqrs.NotificationEvent, name="homeless"):
        pass

    with pytest.raises(cqrs.InvalidMessage, match="Homeless has no topic"):
        events.bind(Homeless, unannotated)

    assert ([], {}) == (list(events), events.types)


# Life


def test_a_map_outlives_its_mediators(events):
    """
    It does not keep them alive.
    """
    mediators = weakref.WeakSet(cqrs.bootstrap(events=events, threads=cqrs.SameThread()) for _ in range(100))
    gc.collect()

    assert [] == list(mediators)


def test_a_child_can_bind_though_its_parent_was_binding_when_it_forked(events):
    """
    T5: The lock that a thread of the parent held is not held in the child.
    """
    requests = cqrs.RequestMap()
    with events._lock:

        def bind():
            events.bind(on_base)
            requests.bind(DoHandler)

        assert 0 == in_forked_child(bind, timeout=10)


def test_bind_decorates_with_a_message_type_and_with_a_phase():
    """
    `@requests.bind(Do)`, `@events.bind(Base)` and `@events.bind(phase=...)` bind what they decorate, and return it.
    """
    requests, events = cqrs.RequestMap(), cqrs.EventMap()

    def do(request):
        return request

    def done(event):
        return event

    def noted(event: Base) -> None:
        pass

    assert [do, done, noted] == [
        requests.bind(Do)(do),
        events.bind(Base)(done),
        events.bind(phase=cqrs.Phase.INLINE)(noted),
    ]
    assert do is requests.find(Do).handler
    assert [(done, cqrs.Phase.AFTER_COMMIT), (noted, cqrs.Phase.INLINE)] == [
        (binding.handler, binding.phase) for binding in events.find(Base)
    ]


def test_a_decorator_refuses_what_bind_refuses():
    """
    A wrong handler is refused when it is decorated.
    """
    with pytest.raises(cqrs.InvalidBinding, match="handles Base"):

        @cqrs.EventMap().bind(Other)
        def done(event: Base) -> None:
            pass


@attrs.frozen
class Billed(cqrs.DomainEvent, name="billed"):
    pass


def on_billed(event: Billed) -> None:
    pass


FIVE = cqrs.RetryPolicy(attempts=5)


@pytest.mark.parametrize(
    "bind",
    [
        lambda events: events.inline(on_billed),
        lambda events: events.inline(Billed)(on_billed),
        lambda events: events.inline(Billed, on_billed),
    ],
)
def test_inline_binds_to_the_inline_phase(events, bind):
    assert (on_billed, [(Billed, on_billed, cqrs.Phase.INLINE, None)]) == (bind(events), list(events))


@pytest.mark.parametrize(
    "bind",
    [
        lambda events: events.durable("bill", retry=FIVE)(on_billed),
        lambda events: events.durable("bill", Billed, retry=FIVE)(on_billed),
        lambda events: events.durable("bill", Billed, on_billed, retry=FIVE),
        lambda events: events.durable("bill", on_billed, retry=FIVE),
        lambda events: events.bind(on_billed, phase=cqrs.Phase.DURABLE, name="bill", retry=FIVE),
    ],
)
def test_durable_binds_with_a_stable_name_and_a_retry_policy(events, bind):
    assert on_billed is bind(events)
    assert ([(Billed, on_billed, cqrs.Phase.DURABLE, "bill")], FIVE) == (list(events), events.retry_of("bill"))


@pytest.mark.parametrize(
    ("bind", "words"),
    [
        (lambda events: events.durable(on_billed), r'on_billed is no stable name, .*: write events\.durable\("name"\)'),
        (
            lambda events: events.bind(on_billed, phase=cqrs.Phase.DURABLE),
            r'on_billed is durable and has no stable name .*: write events\.durable\("name"\)',
        ),
        (lambda events: events.bind(on_billed, retry=FIVE), "on_billed has a retry policy and is not durable"),
        (lambda events: events.durable("bill", on_billed, retry=5), "retry of on_billed must be a RetryPolicy, not 5"),
    ],
)
def test_a_durable_handler_without_a_name_and_a_retry_policy_without_use_are_refused(events, bind, words):
    with pytest.raises(cqrs.InvalidBinding, match=words):
        bind(events)

    assert [] == list(events)


def test_one_stable_name_has_one_retry_policy(events):
    """
    A handler may be bound to two events by one name; the relay knows only the name.
    """
    events.durable("any", Billed, AnyHandler, retry=FIVE)
    with pytest.raises(cqrs.InvalidBinding, match="AnyHandler is bound as 'any' with two retry policies"):
        events.durable("any", Told, AnyHandler)
    events.durable("any", Told, AnyHandler, retry=cqrs.RetryPolicy(attempts=5))

    assert 2 == len(events)


# Answers


class Product:
    pass


class SpecialProduct(Product):
    pass


class GetProduct(cqrs.Query[Product]):
    pass


class FindProduct(cqrs.Query[Product | None]):
    pass


class GetWeight(cqrs.Query[float]):
    pass


class ListProducts(cqrs.Query[list[Product]]):
    pass


class GetAnything(cqrs.Query[Any]):
    pass


class Handles(cqrs.RequestHandler[GetProduct, str]):
    def handle(self, request):
        return "a product"


def text(request) -> str:
    return "a product"


def nothing(request) -> None:
    return None


def number(request) -> int:
    return 1


def special(request) -> SpecialProduct:
    return SpecialProduct()


def several(request) -> Sequence[Product]:
    return []


def either(request) -> Product | str:
    return "a product"


@pytest.mark.parametrize(
    ("bind", "words"),
    [
        (lambda requests: requests.bind(Handles), "Handles answers with str, and GetProduct declares Product"),
        (lambda requests: requests.bind(GetProduct, text), "text answers with str, and GetProduct declares Product"),
        (lambda requests: requests.bind(GetProduct, nothing), "nothing answers with None"),
        (lambda requests: requests.bind(FindProduct, text), "text answers with str, and FindProduct declares"),
        (lambda requests: requests.bind(ListProducts, special), "special answers with SpecialProduct"),
        (lambda requests: requests.bind(Do, text), "text answers with str, and Do declares"),
    ],
)
def test_a_handler_that_declares_another_answer_is_refused(bind, words):
    """
    `send` would return a string, and type checkers take it for a product.
    """
    requests = cqrs.RequestMap()
    with pytest.raises(cqrs.InvalidBinding, match=words):
        bind(requests)

    assert [] == list(requests)


@pytest.mark.parametrize(
    ("request_type", "handler"),
    [
        (GetProduct, special),
        (GetProduct, either),
        (GetProduct, lambda request: "a product"),
        (FindProduct, nothing),
        (GetWeight, number),
        (ListProducts, several),
        (GetAnything, text),
        (Do, nothing),
    ],
)
def test_a_handler_whose_answer_may_be_right_is_bound(request_type, handler):
    """
    Subclasses, unions, an int for a float, and what is not annotated.
    """
    requests = cqrs.RequestMap()

    assert handler is requests.bind(request_type, handler)
