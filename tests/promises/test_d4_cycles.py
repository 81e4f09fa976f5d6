"""
D4: A cycle ends in a clear error, not in a hang.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from attrs import frozen

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker, MemoryTransactions

#: Seconds within which a cycle must be found on a busy machine; without a check it takes for ever.
BOUND = 20.0


@frozen
class Start(cqrs.Command[str]):
    number: int = 0


@frozen
class Ping(cqrs.DomainEvent):
    number: int = 0


@frozen
class Pong(cqrs.NotificationEvent, topic="table", name="pong"):
    number: int = 0


@pytest.fixture
def requests():
    requests = cqrs.RequestMap()

    @requests.bind
    def start(request: Start) -> str:
        cqrs.raise_event(Ping(request.number))
        return "started"

    return requests


@pytest.fixture
def events():
    return cqrs.EventMap()


@pytest.fixture
def mediator(requests, events, threads):
    return cqrs.bootstrap(requests, events, source="tests", threads=threads, broker=MemoryBroker())


@pytest.fixture(autouse=True)
def _in_time():
    started = time.monotonic()
    yield
    assert time.monotonic() - started < BOUND


def cycles(mediator, request=Start()):
    """Send it, and return the one report of a cycle that comes back."""
    with pytest.raises(cqrs.EventsFailed) as caught:
        mediator.send(request)
    assert "started" == caught.value.response
    [error] = caught.value.exceptions
    assert isinstance(error, cqrs.EventCycle)
    return error


def test_d4_an_event_that_raises_its_like_ends_in_an_error(events, mediator):
    """
    The error names the event and says what to do, once.
    """
    handled = []

    @events.bind
    def again(event: Ping) -> None:
        handled.append(event.number)
        cqrs.raise_event(Ping(event.number + 1))

    error = cycles(mediator)

    assert "Ping -> Ping -> Ping" in str(error)
    assert "break the cycle, or raise max_depth in bootstrap" in str(error)
    assert list(range(len(handled))) == handled
    assert len(handled) < 100


def test_d4_two_events_that_raise_each_other_end_in_an_error(events, mediator):
    """
    Notification events in the cycle count as well.
    """
    events.bind(Ping, lambda event: cqrs.raise_event(Pong(event.number + 1)))
    events.bind(Pong, lambda event: cqrs.raise_event(Ping(event.number + 1)))

    assert "Ping -> Pong -> Ping" in str(cycles(mediator))


def split(event: Ping) -> None:
    cqrs.raise_event(Ping(event.number + 1))
    cqrs.raise_event(Ping(event.number + 1))


def test_d4_a_cycle_with_two_branches_ends_in_an_error(requests, events, threads):
    """
    Its events double with each round; it is reported once.
    """
    events.bind(split)

    cycles(cqrs.bootstrap(requests, events, threads=threads, max_depth=8))


def test_d4_a_cycle_of_two_handlers_ends_in_an_error(requests, events, threads):
    """
    The same from two handlers of the event.
    """
    for _ in range(2):
        events.bind(Ping, lambda event: cqrs.raise_event(Ping(event.number + 1)))

    cycles(cqrs.bootstrap(requests, events, threads=threads, max_depth=8))


def test_d4_a_cycle_is_reported_once_however_many_handlers_find_it(requests, events):
    """
    Two that run at the same time find it at the same moment.
    """
    together = threading.Barrier(2)

    def meet(event):
        if event.number == 1:
            together.wait(10)
        cqrs.raise_event(Ping(event.number + 1))

    events.bind(Ping, meet)
    events.bind(Ping, partial(meet))
    with cqrs.bootstrap(requests, events, threads=2, max_depth=1) as mediator:
        cycles(mediator)


def test_d4_a_cycle_with_two_branches_is_found_in_time(requests, events):
    """
    With the default depth, too.
    """
    events.bind(split)

    cycles(cqrs.bootstrap(requests, events, threads=cqrs.SameThread()))


def test_d4_a_cycle_does_not_hold_back_what_is_no_part_of_it(requests, events, mediator):
    """
    Other events of the request are handled, and the mediator serves the next request.
    """
    handled = []
    events.bind(Pong, lambda event: handled.append(event.number))

    @events.bind
    def again(event: Ping) -> None:
        if event.number >= 0:
            cqrs.raise_event(Ping(event.number + 1))

    @frozen
    class StartBoth(cqrs.Command[str]):
        pass

    def start_both(request):
        cqrs.raise_event(Ping(0))
        cqrs.raise_event(Pong(7))
        return "started"

    requests.bind(StartBoth, start_both)
    cycles(mediator, StartBoth())

    assert ("started", [7]) == (mediator.send(Start(-1)), handled)


@pytest.mark.parametrize("depth", [1, 3, 16])
def test_d4_a_chain_that_ends_in_time_is_no_cycle(requests, events, threads, depth):
    """
    `max_depth` follow-ups of follow-ups are fine, one more is not.
    """
    handled = []
    last = depth

    @events.bind
    def again(event: Ping) -> None:
        handled.append(event.number)
        if event.number < last:
            cqrs.raise_event(Ping(event.number + 1))

    mediator = cqrs.bootstrap(requests, events, threads=threads, max_depth=depth)
    mediator.send(Start())

    assert list(range(depth + 1)) == handled

    last = depth + 1

    assert f"more than {depth} levels deep" in str(cycles(mediator))


def test_d4_wide_is_not_deep(events, mediator):
    """
    A thousand follow-ups of one event are no cycle.
    """
    handled = []
    events.bind(Ping, lambda event: [cqrs.raise_event(Pong(number)) for number in range(1000)] and None)
    events.bind(Pong, lambda event: handled.append(event.number))

    assert "started" == mediator.send(Start())
    assert list(range(1000)) == sorted(handled)


def errors_in(group):
    """Every error in a group of groups."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from errors_in(error)
        else:
            yield error


def test_d4_a_cycle_through_nested_sends_ends_in_an_error(events, mediator):
    """
    A handler that sends the command that raised its event goes round as well.
    """

    @events.bind
    def send_again(event: Ping) -> None:
        mediator.send(Start(event.number + 1))

    with pytest.raises(cqrs.EventsFailed) as caught:
        mediator.send(Start())

    assert {cqrs.EventCycle} == {type(error) for error in errors_in(caught.value)}


def test_d4_a_cycle_through_events_sent_by_hand_ends_in_an_error(events, mediator):
    """
    So does a handler that sends its own event to the event mediator.
    """

    @events.bind
    def send_again(event: Ping) -> None:
        mediator.publish(Ping(event.number + 1))

    with pytest.raises(cqrs.EventsFailed) as caught:
        mediator.send(Start())

    assert {cqrs.EventCycle} == {type(error) for error in errors_in(caught.value)}


def test_d4_a_cycle_of_inline_handlers_fails_the_command(requests, events, threads):
    """
    Before it commits.
    """
    events.bind(Ping, lambda event: cqrs.raise_event(Ping(event.number + 1)), phase=cqrs.Phase.INLINE)
    mediator = cqrs.bootstrap(requests, events, threads=threads, transactions=MemoryTransactions())

    with pytest.raises(cqrs.EventCycle, match="Ping -> Ping -> Ping"):
        mediator.send(Start())


def test_d4_a_cycle_of_inline_handlers_that_send_fails_the_command(events, mediator):
    """
    Not only when the interpreter's stack is full.
    """
    events.bind(Ping, lambda event: mediator.send(Start(event.number + 1)) and None, phase=cqrs.Phase.INLINE)

    with pytest.raises(cqrs.EventCycle, match="Ping -> Ping -> Ping"):
        mediator.send(Start())


def test_d4_a_cycle_across_transactions_ends_in_an_error(requests, events, threads):
    """
    Each round commits on its own, in a transaction opened by a middleware.
    """
    transactions = MemoryTransactions()

    def open_transaction(message, call_next):
        with transactions.atomic():
            return call_next(message)

    events.bind(Ping, lambda event: cqrs.raise_event(Ping(event.number + 1)))
    mediator = cqrs.bootstrap(
        requests, events, threads=threads, transactions=transactions, middleware=[open_transaction]
    )

    cycles(mediator)


def test_d4_a_cycle_that_nobody_waits_for_ends_in_a_logged_error(requests, events, threads, caplog):
    """
    Each round sends inside a transaction of its own, so its events are left to that commit.
    """
    transactions = MemoryTransactions()
    mediator = cqrs.bootstrap(requests, events, threads=threads, transactions=transactions)

    @events.bind
    def send_again(event: Ping) -> None:
        with transactions.atomic():
            mediator.send(Start(event.number + 1))

    with caplog.at_level(logging.ERROR, "cqrs_sync"):
        assert "started" == mediator.send(Start())

    assert {cqrs.EventCycle} == {record.exc_info[0] for record in caplog.records}


def test_d4_cycles_of_many_callers_end_in_errors(events, mediator):
    """
    Eight at a time on one pool.
    """
    events.bind(Ping, lambda event: cqrs.raise_event(Ping(event.number + 1)))

    with ThreadPoolExecutor(8) as callers:
        found = list(callers.map(cycles, [mediator] * 8, timeout=BOUND))

    assert 8 == len(found)
