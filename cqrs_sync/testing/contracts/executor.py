"""
The promises of an executor as a test class: T1 to T5.

```python
class TestMyExecutor(ExecutorContract):
    features = ExecutorFeatures(limit=4)

    @pytest.fixture
    def executor(self):
        executor = MyExecutor(4)
        yield executor
        executor.close()
```
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextvars import ContextVar

import attrs
import pytest

from cqrs_sync.bootstrap import bootstrap
from cqrs_sync.testing.contracts.transactions import Order, order_maps
from cqrs_sync.testing.waiting import BOUND, in_forked_child, in_threads
from cqrs_sync.threads.executor import Call, Executor

_value: ContextVar[str] = ContextVar("cqrs_sync.testing.value", default="unset")


@attrs.frozen
class ExecutorFeatures:
    """What an executor can do."""

    #: It makes calls in threads of its own as well.
    has_threads: bool = True
    #: How many calls run at a time, those of all callers together; None where nothing limits them.
    limit: int | None = None


class Calls:
    """These calls, and those added while they are made."""

    def __init__(self, *calls: Call) -> None:
        self.finished_late_calls: int = 0
        self.failed: list[tuple[Call, BaseException]] = []
        self.late: threading.Event = threading.Event()
        #: Whether two threads have asked for a call at once.
        self.was_crowded: bool = False
        self._ahead = deque(calls)
        self._asking = threading.Lock()

    def add(self, *call: object) -> None:
        """Add a function and its arguments."""
        self._ahead.append(call)

    def next_call(self) -> Call | None:
        """Return the next call."""
        if not self._asking.acquire(blocking=False):
            self.was_crowded = True
            return None
        try:
            return self._ahead.popleft() if self._ahead else None
        finally:
            self._asking.release()

    def call_failed(self, call: Call, error: BaseException, /) -> None:
        """Note the error."""
        self.failed.append((call, error))

    def finished_late(self) -> None:
        """Count."""
        self.finished_late_calls += 1
        self.late.set()


class ExecutorContract:
    """What every Executor promises."""

    features: ExecutorFeatures = ExecutorFeatures()

    # Calls

    def test_every_call_is_made_once_before_run_returns(self, executor: Executor) -> None:
        """`run` makes each of any number of calls once."""
        for count in (0, 1, 2, 3, 10, 300):
            made: list[int] = []
            work = Calls(*[(made.append, number) for number in range(count)])

            assert executor.run(work)

            assert list(range(count)) == sorted(made)
            assert [] == work.failed
            assert not work.was_crowded

    def test_calls_that_come_while_others_are_made_are_made(self, executor: Executor) -> None:
        """Handlers raise events while they run: `run` returns when no call is left."""
        made: list[int] = []
        work = Calls()

        def make(depth: int) -> None:
            made.append(depth)
            if depth:
                work.add(make, depth - 1)
                work.add(make, depth - 1)

        work.add(make, 6)

        assert executor.run(work)

        assert [2**level for level in range(7)] == [made.count(6 - level) for level in range(7)]
        assert not work.was_crowded

    def test_calls_of_an_only_thread_are_made_in_their_order(self, executor: Executor) -> None:
        """An executor with one thread makes calls in their order."""
        if self.features.has_threads and self.features.limit != 1:
            return
        made: list[int] = []

        assert executor.run(Calls(*[(made.append, number) for number in range(50)]))

        assert list(range(50)) == made

    def test_an_event_is_handled_when_send_returns(self, executor: Executor) -> None:
        """The executor does what the library needs of it."""
        handled: list[str] = []
        mediator = bootstrap(*order_maps(handled), threads=executor)
        for number in range(20):
            assert "ordered" == mediator.send(Order(f"lamp {number}"), timeout=None if number % 2 else BOUND)
            assert f"lamp {number}" == handled[-1]

        assert 20 == len(handled)

    # Contexts

    def test_each_call_has_its_own_copy_of_the_callers_context(self, executor: Executor) -> None:
        """A call sees what its caller has set; what the call sets, no other call sees."""
        seen: list[str] = []

        def make(number: int) -> None:
            seen.append(_value.get())
            _value.set(f"call {number}")

        token = _value.set("the caller's")
        try:
            executor.run(Calls(*[(make, number) for number in range(50)]))
            assert ["the caller's"] * 50 == seen
            assert "the caller's" == _value.get()
        finally:
            _value.reset(token)

        executor.run(Calls(*[(make, number) for number in range(50)]))
        assert ["unset"] * 50 == seen[50:]

    # Threads

    def test_a_call_may_run_calls_and_wait(self, executor: Executor) -> None:
        """Calls are nested five deep, two at each level, with and without a deadline, whatever the limit."""
        lock, made = threading.Lock(), [0]

        def make(depth: int, timeout: float | None) -> None:
            with lock:
                made[0] += 1
            if depth:
                assert executor.run(Calls((make, depth - 1, timeout), (make, depth - 1, timeout)), timeout=timeout)

        for timeout in (None, BOUND):
            in_threads(lambda timeout=timeout: executor.run(Calls((make, 5, timeout)), timeout=timeout))  # type: ignore[misc]

        assert 2 * 63 == made[0]

    def test_any_thread_may_run_calls(self, executor: Executor) -> None:
        """Sixteen threads run calls at once, with and without helping, with and without a deadline."""
        lock, made = threading.Lock(), [0]

        def make() -> None:
            with lock:
                made[0] += 1

        def run() -> None:
            for _ in range(10):
                assert executor.run(Calls(*[(make,)] * 5))
                assert executor.run(Calls(*[(make,)] * 5), may_help=False)
                assert executor.run(Calls(*[(make,)] * 5), timeout=BOUND)

        in_threads(*[run] * 16)

        assert 16 * 10 * 15 == made[0]

    def test_no_more_calls_run_at_a_time_than_the_limit(self, executor: Executor) -> None:
        """The limit counts the calls of all callers together."""
        if self.features.limit is None:
            return
        changed, running, peak = threading.Condition(), [0], [0]

        def make() -> None:
            with changed:
                running[0] += 1
                peak[0] = max(peak[0], running[0])
                # One call too many would end this wait at once.
                changed.notify_all()
                changed.wait_for(lambda: running[0] > limit, 0.02)
                running[0] -= 1

        limit = self.features.limit
        in_threads(*[lambda: executor.run(Calls(*[(make,)] * 5))] * 6)

        assert 1 <= peak[0] <= limit

    def test_calls_run_in_the_callers_thread_only_where_they_may(self, executor: Executor) -> None:
        """A caller that must not help, as with an open transaction, runs no call itself."""
        seen: list[threading.Thread] = []

        executor.run(Calls(*[(lambda: seen.append(threading.current_thread()),)] * 30), may_help=False)

        assert 30 == len(seen)
        if self.features.has_threads:
            assert threading.current_thread() not in seen
        else:
            assert {threading.current_thread()} == set(seen)

    # Deadlines

    def test_a_caller_waits_until_its_deadline_and_no_longer(self, executor: Executor) -> None:
        """The other calls are made later, and `finished_late` is called once, in the caller's context."""
        if not self.features.has_threads:
            return
        gate, made, seen = threading.Event(), threading.Semaphore(0), []

        def make() -> None:
            assert gate.wait(BOUND)
            made.release()

        class Seeing(Calls):
            def finished_late(self) -> None:
                seen.append(_value.get())
                super().finished_late()

        work = Seeing(*[(make,)] * 20)
        token = _value.set("the caller's")
        begin = time.monotonic()
        finished = executor.run(work, timeout=0.2)
        took = time.monotonic() - begin
        _value.reset(token)

        assert not finished
        assert 0.2 <= took < 2
        assert not work.late.is_set()

        gate.set()
        for _ in range(20):
            assert made.acquire(timeout=BOUND)
        assert work.late.wait(BOUND)
        assert 1 == work.finished_late_calls
        assert ["the caller's"] == seen

    def test_a_deadline_that_is_kept_is_not_reported(self, executor: Executor) -> None:
        """`run` returns True, and `finished_late` is not called."""
        made: list[int] = []
        work = Calls(*[(made.append, number) for number in range(20)])

        assert executor.run(work, timeout=BOUND)

        assert 20 == len(made)
        assert 0 == work.finished_late_calls

    # Closing

    def test_calls_after_close_are_made(self, executor: Executor) -> None:
        """`close` ends threads and not work, and may be called twice."""
        executor.run(Calls(*[(int,)] * 5), may_help=False)
        before = threading.active_count()
        executor.close()
        executor.close(timeout=0.1)
        made: list[int] = []

        assert executor.run(Calls(*[(made.append, number) for number in range(5)]))
        assert executor.run(Calls((made.append, 5)), may_help=False)

        assert [0, 1, 2, 3, 4, 5] == sorted(made)
        assert threading.active_count() <= before

    def test_close_waits_no_longer_than_it_is_given(self, executor: Executor) -> None:
        """A call that hangs is left running; it is not killed."""
        if not self.features.has_threads:
            return
        gate, ended = threading.Event(), threading.Event()

        def hang() -> None:
            assert gate.wait(BOUND)
            ended.set()

        executor.run(Calls((hang,)), timeout=0)
        begin = time.monotonic()
        executor.close(timeout=0.2)

        assert time.monotonic() - begin < 2
        gate.set()
        assert ended.wait(BOUND)

    # Forks

    @pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
    def test_a_forked_child_runs_calls(self, executor: Executor) -> None:
        """The child has threads of its own, and the parent keeps its own."""

        def run() -> None:
            made: list[int] = []
            assert executor.run(Calls(*[(made.append, number) for number in range(20)]), timeout=5)
            assert executor.run(Calls(*[(made.append, number) for number in range(20)]), may_help=False)
            assert sorted([*range(20), *range(20)]) == sorted(made)

        run()
        for _ in range(3):
            assert 0 == in_forked_child(run, timeout=10)
            run()
