"""
T4: More work than the pool holds slows the caller down; memory stays bounded.
"""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from functools import partial

import pytest
from attrs import frozen

import cqrs_sync as cqrs
from tests.promises.threads_fixtures import (
    BOUND,
    Gate,
    Gauge,
    Go,
    Happened,
    answer_of,
    happenings,
    in_thread,
    in_threads,
    mediator_of,
    program,
)
from tests.waiting import eventually

EVENTS = 300_000
MEBIBYTES = 50

# Grown is by how much the process ever was larger than before the events were raised.
MEASURED = """
    class Raise(cqrs.Command[None]):
        pass

    def peak():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

    def raise_many(request: Raise) -> None:
        for number in range({each}):
            cqrs.raise_event(Happened(number))

    handled = [0]
    lock = threading.Lock()

    def handle(event):
        with lock:
            handled[0] += 1

    with mediator_of({size}, (Raise, raise_many), (Happened, handle)) as mediator:
        mediator.send(happenings(1000), timeout={timeout})
        before = peak()
        for _ in range({sends}):
            mediator.send(Raise(), timeout={timeout})
        print(json.dumps([handled[0] - 1000, round(peak() - before, 1)]))
"""


def measure(*, sends, each, size=8, timeout=None):
    """Return how many events were handled, and by how many MiB the process grew meanwhile."""
    return answer_of(program(MEASURED.format(sends=sends, each=each, size=size, timeout=timeout), timeout=100))


def test_t4_300_000_events_of_300_requests_take_no_more_than_50_mb():
    """
    What is done is forgotten: a pool of 8 holds nothing of earlier requests.
    """
    handled, grown = measure(sends=300, each=1000)

    assert EVENTS == handled
    assert grown < MEBIBYTES


def test_t4_300_000_events_of_one_request_take_no_more_than_50_mb():
    """
    The events themselves are all that grows: no call is made ready before a thread is.
    """
    handled, grown = measure(sends=1, each=EVENTS)

    assert EVENTS == handled
    assert grown < MEBIBYTES


def test_t4_60_000_requests_with_deadlines_leave_nothing_behind():
    """
    A deadline that is kept is forgotten with its request.
    """
    handled, grown = measure(sends=60_000, each=1, timeout=3600)

    assert 60_000 == handled
    assert grown < 10


@pytest.mark.parametrize("size", [1, 2, 16])
def test_t4_slow_handlers_slow_their_caller_down(size):
    """
    While the handlers of a request are not finished, its caller raises no more.
    """
    gauge, gate = Gauge(), Gate()
    sent = itertools.count()

    def slow(event):
        with gauge.handling():
            gate.wait()

    def send():
        for _ in range(5):
            next(sent)
            mediator.send(happenings(3))

    def open_when_all_wait():
        gauge.wait_until(lambda gauge: gauge.running == min(size, 4 * 3))
        assert 4 >= next(sent)
        gate.open()

    with mediator_of(size, (Happened, slow)) as mediator:
        in_threads(open_when_all_wait, *[send] * 4)

    assert 4 * 5 * 3 == gauge.begun


@pytest.mark.parametrize("size", [1, 2, 16])
def test_t4_no_more_calls_are_made_ready_than_can_run(size):
    """
    Calls are asked for when a thread is there for them, and one ahead; never all at once.
    """
    gate, gauge = Gate(), Gauge()

    def slow():
        with gauge.handling():
            gate.wait()

    @frozen
    class Endless:
        asked: list[int]

        def next_call(self):
            self.asked.append(1)
            return (slow,) if len(self.asked) <= 1000 else None

    work = Endless([])
    with cqrs.ThreadPool(size) as pool, in_thread(pool.run, work):
        gauge.wait_until(lambda gauge: gauge.running == size)
        asked = len(work.asked)
        gate.open()

    assert asked <= size + 1
    assert 1000 == gauge.begun


@pytest.mark.parametrize("size", [1, 2])
def test_t4_requests_take_turns(size):
    """
    On the pool's threads, a request with many events does not keep small ones waiting until it is done.
    """
    gate, gauge = Gate(), Gauge()
    order = []

    def handle(event):
        with gauge.handling():
            gate.wait()
            order.append(event.number)

    pool = cqrs.ThreadPool(size)
    mediator = mediator_of(pool, (Happened, handle))
    small = Go((Happened(-1), Happened(-1)))
    with mediator, ExitStack() as stack:
        stack.enter_context(in_thread(partial(mediator.send, happenings(1000), timeout=BOUND)))
        gauge.wait_until(lambda gauge: gauge.running == size)
        for _ in range(3):
            stack.enter_context(in_thread(partial(mediator.send, small, timeout=BOUND)))
        eventually(lambda: pool.queued_count == 4)
        gate.open()

    assert 1006 == len(order)
    assert order.index(-1) < 4 * size
    assert 999 not in order[: 1006 - order[::-1].index(-1)]
