"""
T5: Nothing starts at import: no thread, socket, logging set-up, environment read. Pools,
producers and connections are made at first use, closed by `close()`, by the context manager
and at exit, each within a time limit.

What an import starts is tested in tests/unit/test_imports.py, what a fork does in test_t5_fork.py,
and what happens when the interpreter leaves in test_t5_exit.py.
"""

from __future__ import annotations

import gc
import threading
import time
import weakref
from functools import partial

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
    answer_of,
    happenings,
    in_thread,
    in_threads,
    mediator_of,
    program,
)
from tests.waiting import eventually

SIZES = [1, 2, 16]


#: Of pools that other tests of the same run keep.
_others: set[threading.Thread] = set()


def pool_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("cqrs_") and thread not in _others]


def no_pool_thread_is_left():
    if pool_threads():
        # A thread that held its last call during the last collection kept a cycle alive, and the pool in it.
        gc.collect()
    return not pool_threads()


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    _others.clear()
    gc.collect()
    _others.update(pool_threads())
    yield
    gc.collect()
    eventually(no_pool_thread_is_left)


# At first use


def test_t5_nothing_is_started_by_making_a_mediator():
    """
    No thread, no socket, no file, no exit hook until something is sent.
    """
    done = program("""
        import sysconfig
        from cqrs_sync.memory import MemoryBroker, MemoryTransactions

        LIBRARY = sysconfig.get_path("stdlib")
        STARTING = ("_thread.start_new_thread", "socket.", "subprocess.", "open", "os.", "signal.")
        watching, seen, registered = True, [], []

        def note(event, arguments):
            # Modules of the standard library are found and read: `bootstrap` imports what threads need later.
            path = str(arguments[0]) if arguments else ""
            is_import = path.endswith((".py", ".pyc")) or (event == "os.listdir" and path.startswith(LIBRARY))
            if watching and event.startswith(STARTING) and not is_import:
                seen.append([event, str(arguments)])

        sys.addaudithook(note)
        atexit.register = lambda *arguments, **keywords: registered.append(arguments)
        mediator_of(8, (Happened, print), broker=MemoryBroker(), transactions=MemoryTransactions())
        mediator_of(None)
        cqrs.ThreadPool()
        cqrs.SameThread()
        watching = False
        print(json.dumps([seen, threading.active_count(), len(registered)]))
    """)

    assert [[], 1, 0] == answer_of(done)


def test_t5_threads_are_started_by_the_first_call():
    """
    A pool that was made, and one that had nothing to do, have none.
    """
    with cqrs.ThreadPool(2) as pool:
        assert pool.run(Calls())
        assert [] == pool_threads()

        pool.run(Calls(*[(lambda: None,)] * 3), may_help=False)

        assert 2 == len(pool_threads())


def test_t5_a_mediator_in_the_same_thread_never_starts_one():
    """
    With SameThread there is nothing to start, deadlines aside.
    """
    before = threading.active_count()
    with mediator_of(cqrs.SameThread(), (Happened, lambda event: None)) as mediator:
        mediator.send(happenings(10))

        assert before == threading.active_count()


# Closing


@pytest.mark.parametrize("size", SIZES)
def test_t5_close_lets_go_of_every_thread(size):
    """
    When it returns, the pool's threads are gone, and a second close changes nothing.
    """
    pool = cqrs.ThreadPool(size)
    pool.run(Calls(*[(lambda: None,)] * 50), may_help=False)
    assert size == len(pool_threads())

    pool.close()
    assert [] == pool_threads()
    pool.close()
    pool.close(timeout=0)


def test_t5_a_pool_that_was_never_used_can_be_closed():
    """
    There is nothing to let go of.
    """
    pool = cqrs.ThreadPool(2)
    pool.close()
    pool.close()


@pytest.mark.parametrize("size", SIZES)
def test_t5_leaving_the_with_block_closes(size):
    """
    The mediator's block closes the threads it was made with; the pool's own block as well.
    """
    with mediator_of(size, (Happened, lambda event: None)) as mediator:
        mediator.send(happenings(5), timeout=BOUND)
        assert [] != pool_threads()
    assert [] == pool_threads()

    with pytest.raises(ZeroDivisionError), cqrs.ThreadPool(size) as pool:
        assert pool.run(Calls((lambda: None,)), may_help=False) / 0
    assert [] == pool_threads()


@pytest.mark.parametrize("size", SIZES)
def test_t5_close_waits_for_what_runs(size):
    """
    Handlers that run or wait for their turn are finished when it returns.
    """
    gauge, gate, closing = Gauge(), Gate(), threading.Event()

    def handle(event):
        with gauge.handling():
            gate.wait()

    def close():
        closing.set()
        pool.close(BOUND)
        assert 10 == gauge.begun
        assert 0 == gauge.running

    pool = cqrs.ThreadPool(size)
    mediator = mediator_of(pool, (Happened, handle))
    with in_thread(mediator.send, happenings(10)):
        gauge.wait_until(lambda gauge: gauge.running == min(size, 10))
        with in_thread(close):
            assert closing.wait(BOUND)
            eventually(lambda: pool.is_closed)
            gate.open()


@pytest.mark.parametrize("size", SIZES)
def test_t5_close_gives_up_on_a_handler_that_hangs(size, caplog):
    """
    It returns in time and logs how many still run. They run to their end.
    """
    gate, gauge = Gate(), Gauge()

    def hang(event):
        with gauge.handling():
            gate.wait()

    pool = cqrs.ThreadPool(size)
    mediator = mediator_of(pool, (Happened, hang))
    with pytest.raises(cqrs.EventsFailed):
        mediator.send(happenings(1), timeout=0.1)
    begin = time.monotonic()
    mediator.close(timeout=0.3)
    took = time.monotonic() - begin

    assert 0.3 <= took < 5.0
    assert ["1 handler(s) still ran 0.3 s after close(); they were left running"] == [
        record.getMessage() for record in caplog.records if record.name == "cqrs_sync.threads.pool"
    ]
    assert 1 == gauge.running

    gate.open()
    gauge.wait_until(lambda gauge: gauge.running == 0)
    pool.close()
    assert [] == pool_threads()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("may_help", [True, False])
def test_t5_calls_after_close_run_in_their_callers_thread(size, may_help):
    """
    Nothing is lost, and no thread is started again.
    """
    seen = []

    def note(depth):
        seen.append(threading.current_thread())
        if depth:
            pool.run(Calls((note, depth - 1), (note, depth - 1)), may_help=may_help)

    pool = cqrs.ThreadPool(size)
    pool.run(Calls(*[(lambda: None,)] * 3))
    pool.close()
    pool.run(Calls((note, 2), (note, 2)), may_help=may_help)
    pool.run(Calls((note, 0)), timeout=BOUND, may_help=may_help)

    assert [threading.current_thread()] * 15 == seen
    assert [] == pool_threads()
    assert 0 == pool.busy_count
    assert 0 == pool.queued_count


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("timeout", [None, BOUND], ids=["helping", "waiting"])
def test_t5_a_handler_may_close(size, timeout):
    """
    It does not wait for itself. Its siblings run; a later send is refused.
    """
    gauge = Gauge()

    def close(event):
        with gauge.handling():
            mediator.close(timeout=BOUND)

    def count(event):
        with gauge.handling():
            pass

    mediator = mediator_of(size, (Happened, close), (Followed, count))
    in_threads(lambda: mediator.send(Go((Followed(), Happened(), Followed(), Followed())), timeout=timeout))

    assert 4 == gauge.begun
    with pytest.raises(cqrs.ClosedError):
        mediator.send(Go())


@pytest.mark.parametrize("size", SIZES)
def test_t5_a_pool_closed_while_others_send_loses_no_event(size):
    """
    Every accepted request is handled once, in whichever thread.
    """
    for _ in range(20):
        lock, handled = threading.Lock(), []
        accepted = []

        def handle(event, lock=lock, handled=handled):
            with lock:
                handled.append(event.number)

        pool = cqrs.ThreadPool(size)
        mediator = mediator_of(pool, (Happened, handle))

        def send(caller, mediator=mediator, accepted=accepted):
            for number in range(30):
                events = tuple(Happened(caller * 1000 + number * 10 + part) for part in range(3))
                mediator.send(Go(events), timeout=BOUND if number % 3 else None)
                accepted.extend(event.number for event in events)

        in_threads(pool.close, *[lambda caller=caller: send(caller) for caller in range(4)])

        assert 4 * 30 * 3 == len(accepted)
        assert sorted(accepted) == sorted(handled)
        pool.close()


def test_t5_a_mediator_closed_while_others_send_refuses_or_handles():
    """
    Each send has all its events handled, or was refused as a whole.
    """
    lock, handled, accepted = threading.Lock(), [], []
    mediator = mediator_of(4, (Happened, lambda event: note(handled, event.number)))
    enough = threading.Event()

    def note(where, number):
        with lock:
            where.append(number)
        if len(handled) > 100:
            enough.set()

    def send(caller):
        for number in range(10_000):
            try:
                mediator.send(Go((Happened(caller * 10_000 + number),)))
            except cqrs.ClosedError:
                return
            note(accepted, caller * 10_000 + number)
        raise AssertionError("it was never refused")

    def close():
        assert enough.wait(BOUND)
        mediator.close(BOUND)

    in_threads(close, *[lambda caller=caller: send(caller) for caller in range(4)])

    assert sorted(accepted) == sorted(handled)


def test_t5_a_pool_that_nobody_holds_ends_its_threads():
    """
    A mediator that was never closed leaves no threads behind when forgotten, though it woke one of them just then.
    """
    for _ in range(20):
        mediator = mediator_of(3, (Happened, lambda event: None))
        mediator.send(happenings(10), timeout=BOUND)
        assert 3 == len(pool_threads())
        known = weakref.ref(mediator)

        del mediator
        gc.collect()

        assert known() is None
        eventually(no_pool_thread_is_left)


def test_t5_a_caller_that_waits_when_an_unused_pool_is_closed_is_served():
    """
    No thread was ever started: the caller with the last slot runs the others' calls, and the calls they add.
    """
    gate, gauge = Gate(), Gauge()
    followed = []

    def hold(event):
        with gauge.handling():
            gate.wait()
            cqrs.raise_event(Followed(event.number))
            cqrs.raise_event(Followed(event.number))

    pool = cqrs.ThreadPool(1)
    mediator = mediator_of(pool, (Happened, hold), (Followed, lambda event: followed.append(event.number)))
    with in_thread(mediator.send, Go((Happened(1),))):
        gauge.wait_until(lambda gauge: gauge.running == 1)
        with in_thread(partial(mediator.send, Go((Happened(2),)), timeout=BOUND)):
            eventually(lambda: pool.queued_count == 1)
            with in_thread(pool.close):
                eventually(lambda: pool.is_closed)
                gate.open()

    assert [1, 1, 2, 2] == sorted(followed)
