"""Promises of the threads of a relay."""

from __future__ import annotations

import logging
import threading
import time

import pytest

import cqrs_sync as cqrs
from cqrs_sync.relay.thread import RelayThread
from tests.waiting import eventually


class ScriptedTask:
    """Does what a list says, one step after the other: returns, or raises."""

    def __init__(self, *steps):
        self.steps = list(steps)
        self.done = 0
        self.finished, self.is_finishing = None, False
        self.released = 0
        self.threads = set()
        self.woken = threading.Event()

    def step(self):
        self.threads.add(threading.current_thread().name)
        step = self.steps[self.done] if self.done < len(self.steps) else None
        self.done += 1
        if isinstance(step, BaseException):
            raise step
        return step

    def request_stop(self, *, drain):
        self.finished, self.is_finishing = drain, True

    def release_connection(self):
        self.released += 1


@pytest.fixture
def run():
    threads = []

    def start(task, longest=60.0):
        thread = RelayThread("test", task, longest)
        threads.append(thread)
        thread.start()
        return thread

    yield start
    for thread in threads:
        thread.request_stop(0, drain=False)
        assert thread.join(5)


def test_a_thread_makes_steps_while_there_is_work(run):
    """
    In one thread, and sleeps then.
    """
    task = ScriptedTask(0, 0, 0, None)
    run(task)

    eventually(lambda: task.done == 4)
    assert {"cqrs-relay-test"} == task.threads


def test_a_thread_that_sleeps_can_be_woken(run):
    """
    At once, any number of times.
    """
    task = ScriptedTask()
    thread = run(task)
    for count in range(1, 20):
        eventually(lambda count=count: task.done == count)
        thread.wake()


def test_a_wake_during_work_is_not_lost(run):
    """
    A thread that is woken during a step makes another one.
    """
    begun, go_on = threading.Event(), threading.Event()

    class Slow(ScriptedTask):
        def step(self):
            begun.set()
            assert go_on.wait(10)
            return super().step()

    task = Slow()
    thread = run(task)
    assert begun.wait(10)
    thread.wake()
    go_on.set()

    eventually(lambda: task.done == 2)


def test_a_thread_makes_a_step_after_its_longest_sleep(run):
    """
    Without being woken.
    """
    task = ScriptedTask()
    run(task, longest=0.01)

    eventually(lambda: task.done > 5)


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
def test_a_thread_survives_every_error(run, caplog, error):
    """
    It says so once, tries again, and says that it has recovered.
    """
    task = ScriptedTask(error, error, 0)
    run(task)

    eventually(lambda: task.done >= 4)
    lines = [record.getMessage() for record in caplog.records if record.name == "cqrs_sync.relay.thread"]
    assert 2 == len(lines), lines
    assert str(error) in lines[0] or isinstance(error, (ValueError, SystemExit))
    assert "recovered" in lines[1]


def test_a_thread_that_ends_in_trouble_does_not_say_that_it_has_recovered(run, caplog):
    """
    Its last step may have reached no database.
    """
    task = ScriptedTask(cqrs.OutboxNotInstalled("no table"), None)
    thread = run(task)
    eventually(lambda: caplog.records)

    thread.request_stop(5, drain=False)

    assert thread.join(5)
    assert task.done >= 2
    assert "recovered" not in caplog.text


def test_a_thread_that_ends_does_what_is_left(run):
    """
    And releases its connection.
    """
    task = ScriptedTask(None, 0, 0, None)
    thread = run(task)
    eventually(lambda: task.done == 1)
    thread.request_stop(10, drain=True)

    assert thread.join(5)
    assert (4, True) == (task.done, task.finished)
    assert task.released


def test_a_thread_ends_in_time(run, caplog):
    """
    Whatever its task still has to do.
    """
    caplog.set_level(logging.CRITICAL)
    task = ScriptedTask(*[0.01] * 100_000)
    thread = run(task)
    begun = time.monotonic()
    thread.request_stop(0.2, drain=True)

    assert thread.join(20)
    assert 0.2 <= time.monotonic() - begun < 10
