"""
T3: Each task runs in its own copy of the caller's `contextvars` context. Thread hooks run
around each task.
"""

from __future__ import annotations

import contextvars
import threading
from contextlib import contextmanager
from contextvars import ContextVar

import pytest

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker, MemoryTransactions
from tests.promises.threads_fixtures import (
    BOUND,
    Followed,
    Gate,
    Gauge,
    Go,
    Happened,
    Told,
    happenings,
    in_threads,
    mediator_of,
    on_pool_thread,
)
from tests.waiting import eventually

tenant: ContextVar[str] = ContextVar("tenant", default="unset")

#: Both ways a caller waits: it may help, or it has a deadline and only waits.
WAITS = pytest.mark.parametrize("timeout", [None, BOUND], ids=["helping", "waiting"])


@pytest.fixture
def acme():
    token = tenant.set("acme")
    yield
    tenant.reset(token)


# Context


@WAITS
@pytest.mark.usefixtures("acme")
def test_t3_handlers_see_the_callers_values(threads, timeout):
    """
    What the caller had set when it sent is seen by every handler, wherever that runs.
    """
    seen = []
    with mediator_of(threads, (Happened, lambda event: seen.append(tenant.get()))) as mediator:
        mediator.send(happenings(8), timeout=timeout)

    assert ["acme"] * 8 == seen


@WAITS
@pytest.mark.usefixtures("acme")
def test_t3_handlers_of_follow_up_events_see_the_callers_values(threads, timeout):
    """
    They belong to the same request, whichever thread raised them.
    """
    seen = []

    def follow(event):
        tenant.set("changed by the handler that raised it")
        cqrs.raise_event(Followed(event.number))

    with mediator_of(threads, (Happened, follow), (Followed, lambda event: seen.append(tenant.get()))) as mediator:
        mediator.send(happenings(6), timeout=timeout)

    assert ["acme"] * 6 == seen


@WAITS
@pytest.mark.usefixtures("acme")
def test_t3_what_a_handler_changes_is_seen_by_nobody_else(threads, timeout):
    """
    Not by its siblings, not by the caller, not by the next task on the same thread.
    """
    seen = []

    def change(event):
        seen.append(tenant.get())
        tenant.set(f"changed by {event.number}")
        seen.append(tenant.get())

    with mediator_of(threads, (Happened, change)) as mediator:
        mediator.send(happenings(20), timeout=timeout)
        assert "acme" == tenant.get()

        contextvars.Context().run(mediator.send, happenings(1), timeout=timeout)

    assert ["acme"] * 20 + ["unset"] == [value for value in seen if not value.startswith("changed")]
    assert 21 == len([value for value in seen if value.startswith("changed")])


def test_t3_callers_of_one_pool_do_not_see_each_others_values(threads):
    """
    Sixteen callers with values of their own share the threads, not the values.
    """
    seen = []
    lock = threading.Lock()

    def note(event):
        with lock:
            seen.append((event.number, tenant.get()))

    def caller(number):
        def send():
            tenant.set(f"tenant {number}")
            for _ in range(20):
                mediator.send(Go((Happened(number), Happened(number), Happened(number))))

        return lambda: contextvars.Context().run(send)

    with mediator_of(threads, (Happened, note)) as mediator:
        in_threads(*[caller(number) for number in range(16)])

    assert 16 * 20 * 3 == len(seen)
    assert {(number, f"tenant {number}") for number in range(16)} == set(seen)


def test_t3_two_handlers_at_a_time_have_two_contexts():
    """
    A context can be entered by one thread only: each task has its own.
    """
    meet = threading.Barrier(3)
    with mediator_of(3, (Happened, lambda event: meet.wait(BOUND))) as mediator:
        mediator.send(happenings(3))

    assert not meet.broken


@pytest.mark.usefixtures("acme")
def test_t3_handlers_after_a_commit_see_the_values_of_the_send(threads):
    """
    What was set when the event was raised counts, not what is set when the transaction commits.
    """
    seen = []
    transactions = MemoryTransactions()
    with (
        mediator_of(
            threads, (Happened, lambda event: seen.append(tenant.get())), transactions=transactions
        ) as mediator,
        transactions.atomic(),
    ):
        mediator.send(happenings(3))
        tenant.set("later")

    assert ["acme"] * 3 == seen


@pytest.mark.usefixtures("acme")
def test_t3_what_is_published_after_a_deadline_is_published_in_the_callers_context():
    """
    The thread that made the last call publishes for a caller that has left; publishing middleware sees its values.
    """
    seen = []

    def note(messages, call_next):
        seen.append((tenant.get(), [message.type for message in messages]))
        return call_next(messages)

    gate = Gate()

    def tell_late(event):
        gate.wait()
        cqrs.raise_event(Told(event.number))

    chain = cqrs.MiddlewareChain().add(note, cqrs.OutgoingMessage)
    mediator = mediator_of(2, (Happened, tell_late), middleware=chain, broker=MemoryBroker())
    with mediator:
        with pytest.raises(cqrs.EventsFailed):
            mediator.send(happenings(1), timeout=0.1)
        assert [] == seen
        gate.open()
        eventually(lambda: seen)

    assert [("acme", ["threads.told"])] == seen


# Hooks


class Hook:
    """Something to enter around each task, as for closing database connections."""

    def __init__(self):
        self.lock = threading.Lock()
        self.entered = []
        self.left = []
        self.local = threading.local()

    @contextmanager
    def __call__(self):
        with self.lock:
            self.entered.append(threading.current_thread())
        self.local.inside = getattr(self.local, "inside", 0) + 1
        try:
            yield
        finally:
            self.local.inside -= 1
            with self.lock:
                self.left.append(threading.current_thread())

    @property
    def inside(self):
        return getattr(self.local, "inside", 0)


@pytest.fixture
def hook():
    return Hook()


@pytest.mark.parametrize("size", [1, 2, 16])
def test_t3_the_hook_is_entered_around_each_task_on_a_thread_of_the_pool(size, hook):
    """
    Once for each, and left after it, also where the handler fails.
    """
    seen = []

    def note(event):
        seen.append((hook.inside, on_pool_thread()))
        if event.number % 2:
            raise ValueError(event.number)

    mediator = mediator_of(cqrs.ThreadPool(size, around=hook), (Happened, note))
    with mediator, pytest.raises(cqrs.EventsFailed):
        mediator.send(happenings(10), timeout=BOUND)

    assert [(1, True)] * 10 == seen
    assert 10 == len(hook.entered)
    assert sorted(map(id, hook.entered)) == sorted(map(id, hook.left))


@pytest.mark.parametrize("size", [1, 2, 16])
def test_t3_the_hook_is_not_entered_in_the_callers_thread(size, hook):
    """
    Where the caller helps, its own connections are its own business: closing them would end its transaction.
    """
    seen = []

    def note(event):
        seen.append((hook.inside, on_pool_thread()))

    with mediator_of(cqrs.ThreadPool(size, around=hook), (Happened, note)) as mediator:
        for _ in range(20):
            mediator.send(happenings(5))

    assert 100 == len(seen)
    assert all(inside == on_pool for inside, on_pool in seen)
    assert threading.current_thread() not in hook.entered
    assert sum(on_pool for _, on_pool in seen) == len(hook.entered)


def test_t3_the_hook_is_not_entered_again_by_a_task_that_helps(hook):
    """
    A handler that sends and makes the nested handlers itself is inside the hook already.
    """
    seen = []

    def send(event):
        mediator.send(Go((Followed(event.number),)))

    with mediator_of(
        cqrs.ThreadPool(1, around=hook), (Happened, send), (Followed, lambda event: seen.append(hook.inside))
    ) as mediator:
        mediator.send(happenings(3), timeout=BOUND)

    assert [1, 1, 1] == seen
    assert 3 == len(hook.entered)


@pytest.mark.usefixtures("acme")
def test_t3_the_hook_runs_in_the_context_of_its_task(hook):
    """
    It sees the caller's values. Only its own call sees what it sets.
    """
    seen = []

    @contextmanager
    def around():
        seen.append(tenant.get())
        tenant.set("set by the hook")
        yield
        seen.append(tenant.get())

    def change(event):
        seen.append(tenant.get())
        tenant.set("set by the handler")

    with mediator_of(cqrs.ThreadPool(1, around=around), (Happened, change)) as mediator:
        mediator.send(happenings(3), timeout=BOUND)

    assert ["acme", "set by the hook", "set by the handler"] * 3 == seen


@pytest.mark.parametrize("size", [1, 2, 16])
@pytest.mark.parametrize("entering", [OSError("the database is gone"), SystemExit(3)])
def test_t3_a_task_whose_hook_cannot_be_entered_is_reported_not_lost(size, entering):
    """
    Each handler that did not run has failed. The pool keeps all its slots.
    """
    broken = [True]
    gauge = Gauge()

    @contextmanager
    def around():
        if broken[0]:
            raise entering
        yield

    def count(event):
        with gauge.handling():
            pass

    pool = cqrs.ThreadPool(size, around=around)
    with mediator_of(pool, (Happened, count)) as mediator:
        with pytest.raises((cqrs.EventsFailed, SystemExit)) as caught:
            mediator.send(happenings(6), timeout=BOUND)
        if isinstance(entering, Exception):
            assert [("count", number) for number in range(6)] == sorted(
                (failure.handler.rpartition(".")[2], failure.event.number) for failure in caught.value.failures
            )
            assert all(failure.error is entering for failure in caught.value.failures)
        assert 0 == gauge.begun

        broken[0] = False
        mediator.send(happenings(6), timeout=BOUND)
        assert 6 == gauge.begun
        eventually(lambda: pool.busy_count == 0)


@pytest.mark.parametrize("size", [1, 2, 16])
def test_t3_a_hook_that_fails_when_it_is_left_is_logged(size, caplog):
    """
    The handler has succeeded, so the request has. The pool keeps all its slots.
    """
    gauge = Gauge()

    @contextmanager
    def around():
        yield
        raise OSError("the connection could not be closed")

    def count(event):
        with gauge.handling():
            pass

    pool = cqrs.ThreadPool(size, around=around)
    with mediator_of(pool, (Happened, count)) as mediator:
        for _ in range(3):
            mediator.send(happenings(6), timeout=BOUND)

        assert 18 == gauge.begun
        eventually(lambda: pool.busy_count == 0)

    assert 18 == len(caplog.records)
    assert {"the connection could not be closed"} == {str(record.exc_info[1]) for record in caplog.records}
