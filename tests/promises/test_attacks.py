"""D3 to D7 and B3 where somebody tries to get round them: middlewares that raise, foreign threads, nested groups."""

from __future__ import annotations

import threading

import attrs
import punq
import pytest

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker, MemoryTransactions


@attrs.frozen
class Do(cqrs.Command[int]):
    number: int = 0


@attrs.frozen
class DoInside(cqrs.Command[int]):
    pass


@attrs.frozen
class Ev(cqrs.DomainEvent):
    number: int = 0


@attrs.frozen
class Told(cqrs.NotificationEvent, topic="t", name="told"):
    what: object = 1


@attrs.frozen
class ToldAgain(cqrs.NotificationEvent, topic="t", name="told.again"):
    pass


@pytest.fixture
def requests():
    return cqrs.RequestMap()


@pytest.fixture
def events():
    return cqrs.EventMap()


@pytest.fixture
def seen():
    return []


def wire(requests, events, **settings):
    return cqrs.bootstrap(
        requests, events, source="tests", **{"threads": cqrs.SameThread(), "broker": MemoryBroker()} | settings
    )


@pytest.mark.timeout(60)
@pytest.mark.parametrize("width", [3, 10])
def test_d4_a_cycle_with_many_branches_is_found_in_time(requests, events, width):
    """However many follow-ups each event of it has."""
    requests.bind(Do, lambda r: cqrs.raise_event(Ev()))
    count = [0]

    def spread(e):
        count[0] += 1
        if count[0] > 100_000:
            # No end in sight.
            raise KeyboardInterrupt
        for _ in range(width):
            cqrs.raise_event(Ev())

    events.bind(Ev, spread)
    with pytest.raises((cqrs.EventsFailed, KeyboardInterrupt)) as caught:
        wire(requests, events).send(Do())
    assert not isinstance(caught.value, KeyboardInterrupt)
    assert [cqrs.EventCycle] == [type(e) for e in caught.value.exceptions]


def test_d3_what_a_middleware_raised_in_a_failed_attempt_is_dropped(requests, events, seen):
    """RetryMiddleware outside, an audit that raises before call_next inside: three attempts, one event."""
    tries = []

    def do(r):
        tries.append(r)
        if len(tries) < 3:
            raise LookupError

    requests.bind(Do, do)
    events.bind(Ev, seen.append)

    def audit(message, call_next):
        cqrs.raise_event(Ev(len(tries) + 1))
        return call_next(message)

    def retrying(f, m):
        for _ in range(2):
            try:
                return f(m)
            except LookupError:
                pass
        return f(m)

    chain = cqrs.MiddlewareChain().add(cqrs.RetryMiddleware(retrying), Do).add(audit, Do)
    wire(requests, events, middleware=chain).send(Do())
    assert [Ev(3)] == seen


def test_d5_an_unserialisable_event_of_a_middleware_fails_the_command_before_its_commit(requests, events, seen):
    """A middleware inside the one that opens the transaction."""
    transactions, committed = MemoryTransactions(), []
    requests.bind(Do, lambda r: 1)

    def atomic(message, call_next):
        with transactions.atomic():
            answer = call_next(message)
        committed.append(answer)
        return answer

    def audit(message, call_next):
        answer = call_next(message)
        cqrs.raise_event(Told(object()))
        return answer

    chain = cqrs.MiddlewareChain().add(atomic, Do).add(audit, Do)
    with pytest.raises(cqrs.EventNotSerializable):
        wire(requests, events, middleware=chain, transactions=transactions).send(Do())
    assert [] == committed


def test_d3_what_a_foreign_thread_raised_for_a_singleton_does_not_outlive_its_failure(requests, events, seen):
    class H(cqrs.RequestHandler[Do, int]):
        def handle(self, request):
            t = threading.Thread(target=lambda: self.raise_event(Ev(request.number)))
            t.start()
            t.join(10)
            if request.number == 0:
                raise LookupError

    container = punq.Container()
    container.register(H, scope=punq.Scope.singleton)
    requests.bind(H)
    events.bind(Ev, lambda e: seen.append(e.number))
    mediator = wire(requests, events, container=container)
    with pytest.raises(LookupError):
        mediator.send(Do(0))
    mediator.send(Do(1))
    assert 0 not in seen


def test_d3_a_foreign_thread_raises_for_a_handler_with_its_own_events(requests, events, seen):
    """self.raise_event in a thread without context: lost without a word where the handler overrides `events`."""

    class H(cqrs.RequestHandler[Do, int]):
        def __init__(self):
            self.own = []

        @property
        def events(self):
            return self.own

        def handle(self, request):
            t = threading.Thread(target=lambda: self.raise_event(Ev(1)))
            t.start()
            t.join(10)

    requests.bind(H)
    events.bind(Ev, seen.append)
    wire(requests, events).send(Do())
    assert [Ev(1)] == seen


def test_d4_an_instance_of_two_attempts_is_handled_and_emitted_once(requests, events, seen):
    """A middleware calls the handler twice, which raises the same instance."""
    same, broker = Told(), MemoryBroker()
    requests.bind(Do, lambda r: cqrs.raise_event(same))
    events.bind(Told, seen.append)
    chain = cqrs.MiddlewareChain().add(lambda m, call_next: [call_next(m), call_next(m)], Do)
    wire(requests, events, middleware=chain, broker=broker).send(Do())
    assert (1, 1) == (len(seen), len(broker.published))


def test_b3_what_an_inline_handler_raises_names_its_cause(requests, events):
    broker = MemoryBroker()
    requests.bind(Do, lambda r: cqrs.raise_event(Told()))
    events.bind(Told, lambda e: cqrs.raise_event(ToldAgain()), phase=cqrs.Phase.INLINE)
    wire(requests, events, broker=broker).send(Do())
    first, second = broker.published
    assert first.id == second.attributes.get("causationid")


@pytest.mark.parametrize("name", ["data", "eventversion", "partitionkey"])
def test_b3_what_the_serializer_writes_is_no_attribute_of_a_block(name):
    """
    An attribute of a block cannot overwrite what a message says of itself.
    """
    with pytest.raises(ValueError, match=name), cqrs.message_attributes(**{name: "x"}):
        pass


def test_d6_a_part_of_a_nested_group_keeps_its_facts(requests, events):
    """except* ValueError on a group that holds the group of a nested send."""
    requests.bind(Do, lambda r: cqrs.raise_event(Ev()))
    requests.bind(DoInside, lambda r: cqrs.raise_event(Ev(7)))
    mediator = wire(requests, events)

    def handle(e):
        if e.number == 7:
            raise ValueError("x")
        mediator.send(DoInside())

    events.bind(Ev, handle)
    with pytest.raises(cqrs.EventsFailed) as caught:
        mediator.send(Do())
    matching, _ = caught.value.split(ValueError)
    assert 1 == len(matching.failures)


def test_d7_a_middleware_added_after_bootstrap_is_refused(requests, events):
    """
    It would wrap some messages and not others.
    """
    chain = cqrs.MiddlewareChain()
    wire(requests, events, middleware=chain)
    with pytest.raises(cqrs.ConfigurationError, match="before bootstrap"):
        chain.add(lambda message, call_next: call_next(message), cqrs.OutgoingMessage)


@pytest.mark.parametrize("thing", [Ev, "text", Do()])
def test_d5_only_events_are_raised(requests, events, thing):
    """
    A class, a string or a request is a slip of the pen, and fails the handler.
    """
    requests.bind(Do, lambda r: cqrs.raise_event(thing))
    with pytest.raises(TypeError):
        wire(requests, events).send(Do())


def test_d2_a_function_whose_service_is_missing_is_named(requests, events):
    requests.bind(Do, wants)
    with pytest.raises(cqrs.HandlerNotBuilt) as caught:
        wire(requests, events).send(Do())
    assert "wants" in str(caught.value) + "".join(getattr(caught.value, "__notes__", []))


class Service:
    def __init__(self, x: int): ...


def wants(request: Do, service: Service) -> int:
    return 1
