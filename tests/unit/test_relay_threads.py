"""Promises of the threads of a relay."""

from __future__ import annotations

import logging
import threading
import time

import pytest

import cqrs_sync as cqrs
from cqrs_sync.relay.relay import Loop
from tests.waiting import eventually


class Courier:
    """Does what a list says, one step after the other: returns, or raises."""

    def __init__(self, *steps):
        self.steps = list(steps)
        self.done = 0
        self.finished = None
        self.let_go_of = 0
        self.threads = set()

    def deliver(self):
        self.threads.add(threading.current_thread().name)
        step = self.steps[self.done] if self.done < len(self.steps) else None
        self.done += 1
        if isinstance(step, BaseException):
            raise step
        return step

    def finish(self, *, drain):
        self.finished = drain

    def release_connection(self):
        self.let_go_of += 1


@pytest.fixture
def run():
    loops = []

    def start(courier, longest=60.0):
        loop = Loop("cqrs-test", courier, longest)
        loops.append(loop)
        loop.start()
        return loop

    yield start
    for loop in loops:
        loop.stop(0, drain=False)
        assert loop.join(time.monotonic() + 5)


def test_a_loop_goes_on_while_there_is_work(run):
    """
    In one thread, and sleeps then.
    """
    courier = Courier(0, 0, 0, None)
    run(courier)

    eventually(lambda: courier.done == 4)
    assert {"cqrs-test"} == courier.threads


def test_a_loop_that_sleeps_can_be_woken(run):
    """
    At once, and as often as one likes.
    """
    courier = Courier()
    loop = run(courier)
    for count in range(1, 20):
        eventually(lambda count=count: courier.done == count)
        loop.wake()


def test_a_wake_during_work_is_not_lost(run):
    """
    Who is woken while he works looks again.
    """
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Courier):
        def deliver(self):
            begun.set()
            assert go_on.wait(10)
            return super().deliver()

    courier = Slow()
    loop = run(courier)
    assert begun.wait(10)
    loop.wake()
    go_on.set()

    eventually(lambda: courier.done == 2)


def test_a_loop_looks_by_itself_after_its_longest_sleep(run):
    """
    Also where nobody wakes it.
    """
    courier = Courier()
    run(courier, longest=0.01)

    eventually(lambda: courier.done > 5)


@pytest.mark.parametrize(
    "error",
    [
        cqrs.OutboxUnavailable("the database is away"),
        cqrs.OutboxNotInstalled("no table"),
        ValueError("a bug"),
        SystemExit(3),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_loop_survives_whatever_goes_wrong(run, caplog, error):
    """
    It says so once, tries again, and says that it goes on.
    """
    courier = Courier(error, error, 0)
    run(courier)

    eventually(lambda: courier.done >= 4)
    lines = [record.getMessage() for record in caplog.records if record.name == "cqrs_sync.relay.relay"]
    assert 2 == len(lines), lines
    assert str(error) in lines[0] or isinstance(error, (ValueError, SystemExit))
    assert "goes on" in lines[1]


def test_a_loop_that_ends_does_what_is_left(run):
    """
    And gives up its connection.
    """
    courier = Courier(None, 0, 0, None)
    loop = run(courier)
    eventually(lambda: courier.done == 1)
    loop.stop(time.monotonic() + 10, drain=True)

    assert loop.join(time.monotonic() + 5)
    assert (4, True) == (courier.done, courier.finished)
    assert courier.let_go_of


def test_a_loop_ends_in_time(run, caplog):
    """
    Whatever its courier still has to do.
    """
    caplog.set_level(logging.CRITICAL)
    courier = Courier(*[0.01] * 100_000)
    loop = run(courier)
    begun = time.monotonic()
    loop.stop(begun + 0.2, drain=True)

    assert loop.join(begun + 20)
    assert 0.2 <= time.monotonic() - begun < 10
