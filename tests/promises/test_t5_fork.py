"""
T5: Pools are made anew in a forked child.
"""

from __future__ import annotations

import multiprocessing
import os
import threading

import pytest

import cqrs_sync as cqrs
from cqrs_sync import lifecycle
from cqrs_sync.memory import MemoryBroker
from tests.promises.threads_fixtures import (
    BOUND,
    Calls,
    Followed,
    Gauge,
    Go,
    Happened,
    Told,
    answer_of,
    fork,
    happenings,
    in_thread,
    in_threads,
    locks_of,
    locks_of_the_watchdog,
    mediator_of,
    program,
)
from tests.waiting import eventually

SIZES = [1, 2, 16]

# What Python 3.12 and later say of any fork beside threads: here it is meant.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


class Counting:
    """A mediator whose handlers count, also those that a handler's own send asked for."""

    def __init__(self, threads):
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._reset)
        self.handled = 0
        self.broker = MemoryBroker()
        self.mediator = mediator_of(
            threads, (Happened, self.happened), (Followed, self.count), (Told, self.count), broker=self.broker
        )

    def _reset(self):
        self._lock = threading.Lock()

    def happened(self, event):
        self.count(event)
        self.mediator.send(Go((Followed(), Told())))

    def count(self, event):
        with self._lock:
            self.handled += 1

    def send_all_ways(self):
        """Send with help, with a deadline, nested and without a request; everything must be handled."""
        before = self.handled
        self.mediator.send(happenings(4))
        self.mediator.send(happenings(4), timeout=4)
        self.mediator.publish(Followed())
        assert before + 2 * 4 * 3 + 1 == self.handled


@pytest.mark.parametrize("size", [None, *SIZES])
def test_t5_a_forked_child_sends(size):
    """
    The child makes a pool that was used before the fork anew; the parent keeps its own.
    """
    counting = Counting(cqrs.SameThread() if size is None else size)
    with counting.mediator:
        counting.send_all_ways()
        for _ in range(3):
            assert 0 == fork(counting.send_all_ways)
            counting.send_all_ways()


def test_t5_a_child_of_a_child_sends():
    """
    Each process has threads of its own.
    """
    counting = Counting(2)

    def go_on_forking(depth):
        counting.send_all_ways()
        if depth:
            assert 0 == fork(lambda: go_on_forking(depth - 1))
        counting.send_all_ways()

    with counting.mediator:
        go_on_forking(3)


def test_t5_a_child_has_threads_of_its_own_only():
    """
    In the child, nothing counts as running that ran in the parent, and its own limit is whole.
    """
    gauge = Gauge()
    release = threading.Event()

    def hold(event):
        with gauge.handling():
            assert release.wait(BOUND)

    pool = cqrs.ThreadPool(2)
    mediator = mediator_of(pool, (Happened, hold), (Followed, lambda event: None))

    def use_all_places():
        assert 0 == pool.busy_count
        meet = threading.Barrier(2)
        pool.run(Calls((meet.wait, 4), (meet.wait, 4)), may_help=False)
        assert not meet.broken
        pool.close(timeout=2)

    with mediator, in_thread(mediator.send, happenings(4)):
        gauge.wait_until(lambda gauge: gauge.running == 2)
        assert 0 == fork(use_all_places)
        release.set()


def test_t5_multiprocessing_children_send_and_leave():
    """
    The usual way to fork ends with the usual clean-up, within the limit.
    """
    counting = Counting(4)
    with counting.mediator:
        counting.send_all_ways()
        children = [multiprocessing.get_context("fork").Process(target=counting.send_all_ways) for _ in range(8)]
        for child in children:
            child.start()
        for child in children:
            child.join(5)
            assert 0 == child.exitcode
        counting.send_all_ways()


@pytest.mark.parametrize("size", SIZES)
def test_t5_a_handler_may_fork(size):
    """
    On a thread of the pool as in the caller's, and the child sends.
    """
    statuses = []
    counting = Counting(size)
    forking = mediator_of(size, (Happened, lambda event: statuses.append(fork(counting.send_all_ways))))

    def fork_and_use_the_same_pool(event):
        statuses.append(fork(lambda: forking_too.send(Go((Followed(), Followed(), Followed())), timeout=4)))

    forking_too = mediator_of(size, (Happened, fork_and_use_the_same_pool), (Followed, lambda event: None))
    with counting.mediator, forking, forking_too:
        counting.send_all_ways()
        for mediator in (forking, forking_too):
            mediator.send(happenings(2))
            mediator.send(happenings(2), timeout=BOUND)
        counting.send_all_ways()

    assert [0] * 8 == statuses


def locks_of_the_process():
    """Return the locks of each object that is made anew in a child."""
    locks = [lock for resettable in lifecycle._resettables for lock in locks_of(resettable)]
    return list({id(lock): lock for lock in locks}.values())


def test_t5_a_child_sends_though_every_lock_was_held_at_the_fork():
    """
    Other threads may be anywhere when a process forks: what they hold is not held in the child.
    """
    pool = cqrs.ThreadPool(2)
    counting = Counting(pool)
    with counting.mediator:
        counting.send_all_ways()
        locks = locks_of_the_process()
        known = [locks_of(pool), locks_of_the_watchdog()]
        assert [2, 2] == [len(each) for each in known]
        assert {id(lock) for each in known for lock in each} <= set(map(id, locks))
        held, release = threading.Barrier(2), threading.Event()

        def hold_all():
            for lock in locks:
                assert lock.acquire(timeout=BOUND)
            held.wait(BOUND)
            assert release.wait(BOUND)
            for lock in locks:
                lock.release()

        with in_thread(hold_all):
            held.wait(BOUND)
            assert 0 == fork(counting.send_all_ways)
            release.set()
        counting.send_all_ways()


def test_t5_a_child_sends_though_it_was_forked_while_the_watchdog_was_started():
    """
    Also where the very first deadline of the process is just being set.
    """
    done = program("""
        import warnings
        from cqrs_sync.threads.watchdog import _watchdog

        warnings.simplefilter("ignore", DeprecationWarning)
        mediator = mediator_of(2, (Happened, lambda event: None))
        start = threading.Thread.start
        statuses = []

        def forking_start(thread):
            if thread.name == "cqrs-watchdog" and not statuses:
                statuses.append(None)
                statuses[0] = fork(lambda: mediator.send(happenings(3), timeout=4))
            start(thread)

        threading.Thread.start = forking_start
        mediator.send(happenings(3), timeout=10)
        print(json.dumps(statuses))
    """)

    assert [0] == answer_of(done)


def test_t5_a_deadline_is_watched_in_a_child(tmp_path):
    """
    The parent's watchdog is not in the child; the child starts its own.
    """
    done = program("""
        import warnings

        warnings.simplefilter("ignore", DeprecationWarning)
        gate, logged = Gate(), threading.Event()

        class Noting(logging.Handler):
            def emit(self, record):
                assert "at its deadline" in record.getMessage()
                logged.set()

        logging.getLogger("cqrs_sync.threads.watchdog").addHandler(Noting())

        def hang(event):
            assert logged.wait(4)

        def overrun():
            logged.clear()
            try:
                mediator.send(happenings(1), timeout=0.1)
            except cqrs.EventsFailed:
                return
            raise AssertionError("it was not reported")

        mediator = mediator_of(cqrs.SameThread(), (Happened, hang))
        overrun()
        print(json.dumps([fork(overrun), fork(overrun)]))
    """)

    assert [0, 0] == answer_of(done)


def test_t5_of_100_forks_each_child_sends_and_exits_clean():
    """
    After the pool was used, each child sends, leaves by the ordinary way with its exit hooks, and says nothing.
    """
    done = program(
        """
        import warnings

        warnings.simplefilter("ignore", DeprecationWarning)
        handled = []
        mediator = mediator_of(4, (Happened, lambda event: handled.append(1)))
        mediator.send(happenings(20), timeout=5)
        mediator.send(happenings(20))
        statuses, slowest = [], 0.0
        for number in range(100):
            begin = time.monotonic()
            child = os.fork()
            if child == 0:
                del handled[:]
                mediator.send(happenings(5), timeout=4)
                mediator.send(happenings(5))
                sys.exit(0 if len(handled) == 10 else 1)
            statuses.append(wait_for_exit(child, 5))
            slowest = max(slowest, time.monotonic() - begin)
            if number % 10 == 0:
                mediator.send(happenings(5))
        print(json.dumps([statuses, slowest]))
        """,
        timeout=110,
    )

    statuses, slowest = answer_of(done)
    assert [0] * 100 == statuses
    assert slowest < 5
    assert "" == done.stderr


@pytest.mark.parametrize("size", [1, 4])
def test_t5_children_forked_under_load_send(size):
    """
    While other threads send as fast as they can, with deadlines and nested, every child can too.
    """
    counting = Counting(size)
    stop = threading.Event()

    def load():
        while not stop.is_set():
            counting.mediator.send(happenings(2))
            counting.mediator.send(happenings(2), timeout=BOUND)

    def send():
        counting.mediator.send(happenings(3))
        counting.mediator.send(happenings(3), timeout=4)

    def fork_often():
        try:
            return [fork(send) for _ in range(20)]
        finally:
            stop.set()

    statuses = []
    with counting.mediator:
        in_threads(lambda: statuses.extend(fork_often()), load, load, load, timeout=110)
        eventually(lambda: counting.mediator.send(happenings(1)) == "gone")

    assert [0] * 20 == statuses


FORK_IN_FIRST_USE = """
import attrs
from cqrs_sync.memory import MemoryBroker, MemoryOutbox
from cqrs_sync.testing.contracts.executor import Calls

@attrs.frozen
class Ordered(cqrs.NotificationEvent, name="ordered", topic="orders", key="customer"):
    customer: str = "c"

class Slow:
    # An import that takes long, as from a cold disk.
    def find_spec(self, name, path=None, target=None):
        if not name.startswith("cqrs_sync"):
            importing.set()
            time.sleep(2)

# The fixtures have imported it.
del sys.modules["hashlib"]
importing = threading.Event()
if use == "pool":
    pool = cqrs.ThreadPool(2)
    first_use = lambda: pool.run(Calls((int,)), may_help=False)
else:
    outbox = MemoryOutbox(on_no_transaction=cqrs.OnNoTransaction.OPEN)
    threads = cqrs.SameThread()
    mediator = cqrs.bootstrap(outbox=outbox, broker=MemoryBroker(), threads=threads, fast_path=False, source="shop")
    first_use = lambda: mediator.publish(Ordered())
sys.meta_path.insert(0, Slow())
thread = threading.Thread(target=first_use)
thread.start()
importing.wait(0.5)
child = os.fork()
if child == 0:
    first_use()
    os._exit(0)
status = wait_for_exit(child, 5)
thread.join()
print(json.dumps([status, importing.is_set()]))
"""


@pytest.mark.parametrize("use", ["pool", "outbox"])
def test_t5_a_child_forked_during_the_first_use_in_a_thread_works(use):
    """
    No first use imports a module: the child would wait without end for the import of a thread that it does not have.
    """
    assert [0, False] == answer_of(program(f"use = {use!r}\n{FORK_IN_FIRST_USE}"))
