"""
T1: Event handlers run on a bounded `concurrent.futures.ThreadPoolExecutor`; the limit counts
running handlers. Sequential execution in the caller's thread is the same code with another
executor object.
"""

from __future__ import annotations

import threading

import pytest

import cqrs_sync as cqrs
from tests.promises.threads_fixtures import (
    BOUND,
    Calls,
    Followed,
    Gate,
    Gauge,
    Go,
    Happened,
    happenings,
    in_thread,
    in_threads,
    mediator_of,
    on_pool_thread,
)
from tests.waiting import eventually

SIZES = [1, 2, 16]

#: How long something that must not happen is given to happen.
LULL = 0.15


def held(gauge, gate):
    """Make a handler that is counted and waits until the gate is opened."""

    def handle(event):
        with gauge.handling():
            gate.wait()

    return handle


def stays(gauge, running):
    """Wait until as many handlers run, and see that no more begin."""
    gauge.wait_until(lambda gauge: gauge.running == running)
    with gauge.changed:
        gauge.changed.wait_for(lambda: gauge.running > running, LULL)
    assert running == gauge.running


@pytest.mark.parametrize("size", SIZES)
def test_t1_handlers_of_all_sends_together_reach_the_limit_and_never_exceed_it(size):
    """
    Eight callers, who help, share the limit of their mediator: not one handler more runs at a time.
    """
    gauge, gate = Gauge(), Gate()
    with mediator_of(size, (Happened, held(gauge, gate))) as mediator:

        def open_when_full():
            stays(gauge, size)
            gate.open()

        in_threads(open_when_full, *[lambda: mediator.send(happenings(5))] * 8)

    assert size == gauge.peak
    assert 8 * 5 == gauge.begun


@pytest.mark.parametrize("size", SIZES)
def test_t1_callers_that_may_not_help_share_the_limit_too(size):
    """
    A caller with a deadline only waits; the limit is that of the pool's own threads then.
    """
    gauge, gate = Gauge(), Gate()
    with mediator_of(size, (Happened, held(gauge, gate))) as mediator:

        def open_when_full():
            stays(gauge, size)
            gate.open()

        in_threads(open_when_full, *[lambda: mediator.send(happenings(5), timeout=BOUND)] * 8)

    assert size == gauge.peak
    assert 8 * 5 == gauge.begun


def test_t1_the_callers_own_help_counts():
    """
    On a pool of two, a caller that runs one of its handlers leaves room for one thread.
    """
    gauge, gate = Gauge(), Gate()
    mediator = mediator_of(2, (Happened, held(gauge, gate)))
    with mediator, in_thread(mediator.send, happenings(5)) as caller:
        stays(gauge, 2)
        helping = caller in gauge.threads
        gate.open()

    assert helping
    assert 2 == gauge.peak


def test_t1_events_sent_without_a_request_count():
    """
    `mediator.publish` and `mediator.send` have one limit.
    """
    gauge, gate = Gauge(), Gate()
    with mediator_of(2, (Happened, held(gauge, gate))) as mediator:

        def open_when_full():
            stays(gauge, 2)
            gate.open()

        in_threads(
            open_when_full,
            *[lambda: mediator.publish(Happened())] * 4,
            *[lambda: mediator.send(happenings(1))] * 4,
        )

    assert 8 == gauge.begun
    assert 2 == gauge.peak


def test_t1_follow_up_events_count():
    """
    Handlers of events that other handlers raised have no places of their own.
    """
    gauge, gate = Gauge(), Gate()

    def follow(event):
        for number in range(6):
            cqrs.raise_event(Followed(number))

    with mediator_of(2, (Happened, follow), (Followed, held(gauge, gate))) as mediator:

        def open_when_full():
            stays(gauge, 2)
            gate.open()

        in_threads(open_when_full, *[lambda: mediator.send(happenings(2))] * 3)

    assert 3 * 2 * 6 == gauge.begun
    assert 2 == gauge.peak


def test_t1_a_handler_that_nobody_waits_for_any_more_counts():
    """
    What overran its deadline still runs, and holds its place until it ends.
    """
    gauge, gate = Gauge(), Gate()
    with mediator_of(1, (Happened, held(gauge, gate))) as mediator:
        with pytest.raises(cqrs.EventsFailed):
            mediator.send(happenings(1), timeout=0.2)
        with pytest.raises(cqrs.EventsFailed, match="events"):
            mediator.send(happenings(1), timeout=0.2)
        assert 1 == gauge.begun

        gate.open()
        gauge.wait_until(lambda gauge: gauge.begun == 2)

    assert 1 == gauge.peak


def test_t1_mediators_share_the_limit_of_a_pool_they_share():
    """
    The limit is the pool's.
    """
    gauge, gate = Gauge(), Gate()
    with cqrs.ThreadPool(2) as pool:
        one = mediator_of(pool, (Happened, held(gauge, gate)))
        two = mediator_of(pool, (Happened, held(gauge, gate)))

        def open_when_full():
            stays(gauge, 2)
            gate.open()

        in_threads(open_when_full, lambda: one.send(happenings(4)), lambda: two.send(happenings(4)))

    assert 8 == gauge.begun
    assert 2 == gauge.peak


def test_t1_a_place_is_given_back_whatever_happens():
    """
    After failures, interruptions and deadlines the whole limit can be reached again.
    """
    gauge, gate = Gauge(), Gate()

    def fail(event):
        raise SystemExit(3) if event.number % 2 else ValueError(event.number)

    with mediator_of(4, (Happened, held(gauge, gate)), (Followed, fail)) as mediator:
        for _ in range(20):
            with pytest.raises((cqrs.EventsFailed, SystemExit)):
                mediator.send(Go(tuple(Followed(number) for number in range(6))))
            with pytest.raises((cqrs.EventsFailed, SystemExit)):
                mediator.send(Go(tuple(Followed(number) for number in range(6))), timeout=BOUND)

        def open_when_full():
            stays(gauge, 4)
            gate.open()

        in_threads(open_when_full, *[lambda: mediator.send(happenings(5))] * 3)

    assert 4 == gauge.peak


def test_t1_handlers_run_on_threads_of_a_concurrent_futures_pool():
    """
    What is not done by the caller runs on a ThreadPoolExecutor's threads, named after the library.
    """
    seen = []

    def note(event):
        seen.append((on_pool_thread(), threading.current_thread().name.rpartition("_")[0]))

    with mediator_of(4, (Happened, note)) as mediator:
        mediator.send(happenings(10), timeout=BOUND)

    assert [(True, "cqrs")] * 10 == seen


def test_t1_no_more_threads_are_started_than_the_limit():
    """
    However many callers and events, a pool of three has three threads.
    """
    before = set(threading.enumerate())
    with mediator_of(3, (Happened, lambda event: None)) as mediator:
        in_threads(*[lambda: mediator.send(happenings(20), timeout=BOUND)] * 6)
        started = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("cqrs_")]

        assert len(started) <= 3


def test_t1_the_same_code_runs_sequentially_in_the_callers_thread():
    """
    With SameThread, handlers run one after the other where `send` was called, in the order of their events.
    """
    seen = []

    def note(event):
        seen.append((event.number, threading.current_thread()))

    with mediator_of(cqrs.SameThread(), (Happened, note)) as mediator:
        mediator.send(happenings(5))
        mediator.send(happenings(2), timeout=BOUND)

    assert [0, 1, 2, 3, 4, 0, 1] == [number for number, _ in seen]
    assert {threading.current_thread()} == {thread for _, thread in seen}


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "8"])
def test_t1_a_limit_that_is_none_is_refused(size):
    """
    The limit is a whole number above 0.
    """
    with pytest.raises(ValueError, match="max_workers must be a whole number above 0"):
        cqrs.ThreadPool(size)


def test_t1_a_pool_that_gets_fewer_threads_than_it_may_have_makes_every_call(monkeypatch, caplog):
    """
    Where the system gives only two threads of eight, every call is made once, by those and by callers.
    """
    start = threading.Thread.start
    given = []

    def stingy(thread):
        if thread.name.startswith("cqrs_"):
            if len(given) == 2:
                raise RuntimeError("can't start new thread")
            given.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", stingy)
    lock, made = threading.Lock(), []

    def make(number):
        with lock:
            made.append(number)

    with cqrs.ThreadPool(8) as pool:
        for caller in range(5):
            work = Calls(*[(make, (caller, number)) for number in range(20)])
            assert pool.run(work, may_help=caller % 2 == 0)

        eventually(lambda: pool.busy_count == 0)

    assert sorted((caller, number) for caller in range(5) for number in range(20)) == sorted(made)
    assert ["only 2 of 8 threads could be started for cqrs"] == [record.getMessage() for record in caplog.records]


def test_t1_a_pool_that_gets_no_thread_has_its_callers_make_their_calls(monkeypatch):
    """
    Where the system gives none, callers make their calls, those too that are not to help.
    """
    start = threading.Thread.start

    def refuse(thread):
        if thread.name.startswith("cqrs_"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    made = []
    with cqrs.ThreadPool(4) as pool:
        assert pool.run(Calls(*[(made.append, number) for number in range(5)]))
        assert pool.run(Calls(*[(made.append, number) for number in range(5)]), may_help=False)

        assert 0 == pool.busy_count

    assert sorted([0, 1, 2, 3, 4] * 2) == sorted(made)
