"""
T2: No pool size can deadlock: a handler on the pool may send, publish and wait. Where a
handler runs is deterministic as seen from the database.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections import Counter
from contextvars import copy_context

import pytest
from attrs import frozen

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker, MemoryTransactions
from tests.promises.threads_fixtures import (
    BOUND,
    Calls,
    Followed,
    Gate,
    Gauge,
    Go,
    Happened,
    Told,
    happenings,
    in_thread,
    in_threads,
    mediator_of,
)
from tests.waiting import eventually

SIZES = [1, 2, 16]
#: One of them is fast enough, whatever else the machine has to do.
TRIES = 5


@frozen
class Dive(cqrs.Command[int]):
    """Raise events whose handlers send this again, one deeper, until the depth is reached."""

    depth: int
    breadth: int = 1
    timeout: float | None = None


@frozen
class Dived(cqrs.DomainEvent):
    dive: Dive


@pytest.fixture(params=SIZES)
def size(request):
    return request.param


@pytest.fixture
def impatient():
    """Switch threads as often as can be."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


class Divers:
    """Handlers that send and wait in each other."""

    def __init__(self, threads):
        self.reached = Counter()
        self._lock = threading.Lock()
        self.broker = MemoryBroker()
        self.mediator = mediator_of(threads, (Dive, self.dive), (Dived, self.dived), broker=self.broker)

    def dive(self, request):
        with self._lock:
            self.reached[request.depth] += 1
        if request.depth > 0:
            for _ in range(request.breadth):
                cqrs.raise_event(Dived(request))
        cqrs.raise_event(Told(request.depth))
        return request.depth

    def dived(self, event):
        dive = event.dive
        deeper = Dive(dive.depth - 1, dive.breadth, dive.timeout)
        assert dive.depth - 1 == self.mediator.send(deeper, timeout=dive.timeout)


def test_t2_handlers_nested_five_deep_that_send_and_wait_are_done_within_a_second(size):
    """
    Also on a pool of one, and though each of them publishes.
    """
    took = []
    for _ in range(TRIES):
        divers = Divers(size)
        with divers.mediator as mediator:
            begin = time.monotonic()
            mediator.send(Dive(5))
            took.append(time.monotonic() - begin)
        assert {5: 1, 4: 1, 3: 1, 2: 1, 1: 1, 0: 1} == divers.reached
        assert 6 == len(divers.broker.published)

    assert min(took) < 1.0


def test_t2_nested_fan_outs_are_done_within_a_second(size):
    """
    Two handlers at each of five levels, each of which waits for the two below it.
    """
    took = []
    for _ in range(TRIES):
        divers = Divers(size)
        with divers.mediator as mediator:
            begin = time.monotonic()
            mediator.send(Dive(5, breadth=2))
            took.append(time.monotonic() - begin)
        assert {5 - level: 2**level for level in range(6)} == divers.reached

    assert min(took) < 1.0


@pytest.mark.parametrize("timeout", [None, BOUND])
@pytest.mark.usefixtures("impatient")
def test_t2_many_threads_send_nested_commands_at_once(size, timeout):
    """
    Twelve callers, four levels, two handlers each: everything is done once, with deadlines and without.
    """
    divers = Divers(size)
    with divers.mediator as mediator:
        in_threads(*[lambda: mediator.send(Dive(4, 2, timeout), timeout=timeout)] * 12)

    assert {4 - level: 12 * 2**level for level in range(5)} == divers.reached


def test_t2_a_nested_send_with_a_deadline_needs_no_free_thread():
    """
    On a pool of one, whose thread is taken by the caller itself, the nested handlers run in time.
    """
    divers = Divers(1)
    with divers.mediator as mediator:
        mediator.send(Dive(5, 2, timeout=BOUND), timeout=BOUND)

    assert {5 - level: 2**level for level in range(6)} == divers.reached


def test_t2_a_handler_may_publish_and_wait_on_a_full_pool(size):
    """
    Sending events, nested requests and follow-ups from handlers needs no free thread.
    """
    gauge = Gauge()

    def busy(event):
        with gauge.handling():
            mediator.publish(Followed(event.number))
            mediator.send(Go((Told(event.number), Followed(event.number))))
            cqrs.raise_event(Told(event.number))

    followed = itertools.count()
    broker = MemoryBroker()
    with mediator_of(size, (Happened, busy), (Followed, lambda event: next(followed)), broker=broker) as mediator:
        in_threads(*[lambda: mediator.send(happenings(10))] * 4)

    assert 40 == gauge.begun
    assert 80 == next(followed)
    assert 80 == len(broker.published)
    assert gauge.peak <= size


@pytest.mark.parametrize(("here", "there"), [(1, 1), (1, 2), (2, 3)])
def test_t2_two_mediators_whose_handlers_send_to_each_other_are_done(here, there):
    """
    The handlers that hold all places of one pool wait for those of another, which send to the first again.
    """
    meet = threading.Barrier(there)
    done = []

    def ask_there(event):
        if event.number == 0:
            other.send(happenings(there))

    def ask_here(event):
        # All of them run at once, on as many threads.
        meet.wait(BOUND)
        mediator.send(Go((Happened(1),)))
        done.append(event.number)

    mediator = mediator_of(here, (Happened, ask_there))
    other = mediator_of(there, (Happened, ask_here))
    with mediator, other:
        in_threads(*[lambda: mediator.send(Go((Happened(0),)))])

    assert list(range(there)) == sorted(done)


def test_t2_a_handlers_own_threads_may_send(size):
    """
    A handler on a full pool may start threads in copies of its context that send, and wait for them.
    """
    done = []

    def start_threads(event):
        def run():
            copy_context().run(mediator.send, Go((Followed(event.number),)))

        threads = [threading.Thread(target=copy_context().run, args=(run,), daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(BOUND)
            assert not thread.is_alive()

    with mediator_of(size, (Happened, start_threads), (Followed, lambda event: done.append(1))) as mediator:
        in_threads(lambda: mediator.send(happenings(4)))

    assert 12 == len(done)


def test_t2_a_caller_that_is_interrupted_leaves_the_pool_whole(size):
    """
    After Ctrl-C in a handler that the main thread makes, and while it waits, the pool works as before.
    """
    gauge = Gauge()

    def interrupt(event):
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt

    def count(event):
        with gauge.handling():
            pass

    with cqrs.ThreadPool(size) as pool:
        mediator = mediator_of(pool, (Happened, interrupt), (Followed, count))
        for _ in range(10):
            with pytest.raises(KeyboardInterrupt):
                mediator.send(happenings(1))
        in_threads(*[lambda: mediator.send(Go(tuple(Followed() for _ in range(20))))] * 4)
        assert 80 == gauge.begun
        eventually(lambda: pool.busy_count == 0)


# As seen from the database


class OpenForEver:
    """A transaction that is still open in the thread where its callbacks run, as in a test of Django's."""

    def __init__(self):
        self.callbacks = []

    def active(self):
        return True

    def on_commit(self, callback):
        self.callbacks.append(callback)

    def commit(self):
        for callback in self.callbacks:
            callback()


def test_t2_no_handler_runs_in_the_callers_thread_while_a_transaction_is_open_there(size):
    """
    The caller does not help then, however many handlers wait; all of them run on the pool.
    """
    gauge = Gauge()

    def count(event):
        with gauge.handling():
            pass

    transactions = OpenForEver()
    with mediator_of(size, (Happened, count), transactions=transactions) as mediator:
        mediator.send(happenings(50))
        assert 0 == gauge.begun
        transactions.commit()

    assert 50 == gauge.begun
    assert threading.current_thread() not in gauge.threads


def test_t2_a_handler_on_the_pool_with_an_open_transaction_does_not_help_either():
    """
    What it sends runs on other threads of the pool, as long as there are any.
    """
    seen = []
    with cqrs.ThreadPool(4) as pool:

        def send_inside():
            work = Calls(*[(lambda: seen.append(threading.current_thread()),)] * 20)
            pool.run(work, may_help=False)
            seen_by.append(threading.current_thread())

        seen_by = []
        pool.run(Calls((send_inside,)), may_help=False)

    assert 20 == len(seen)
    assert seen_by[0] not in seen


def test_t2_handlers_run_after_the_commit_wherever_they_run(size):
    """
    No handler ever sees a transaction open in its thread that it has not opened.
    """
    transactions = MemoryTransactions()
    seen = []

    def look(event):
        seen.append(transactions.active())

    with mediator_of(size, (Happened, look), transactions=transactions) as mediator:

        def send():
            with transactions.atomic():
                mediator.send(happenings(5))
                assert transactions.active()

        in_threads(*[send] * 6)
        mediator.send(happenings(5))

    assert [False] * 35 == seen


def test_t2_a_waiting_caller_does_not_make_handlers_of_others():
    """
    A caller helps with its own handlers only: another caller's work never delays it.
    """
    gate, gauge = Gate(), Gauge()

    def slow(event):
        with gauge.handling():
            gate.wait()

    def quick(event):
        seen.append(threading.current_thread())

    seen = []
    mediator = mediator_of(2, (Happened, slow), (Followed, quick))
    with (
        mediator,
        in_thread(mediator.send, happenings(6)),
    ):
        gauge.wait_until(lambda gauge: gauge.running == 2)
        with in_thread(mediator.send, Go((Followed(),))) as caller:
            gate.open()

    assert caller not in gauge.threads
    assert 1 == len(seen)
