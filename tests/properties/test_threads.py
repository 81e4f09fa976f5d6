"""
Promises about pools for any tree of calls: every call runs once, the limit holds, and nothing hangs.

Trees are made by Hypothesis: each call may run further calls and wait for them, add calls to the
work it belongs to, or both, with help, without, and with a deadline that is far away.
"""

from __future__ import annotations

import sys
import threading

import pytest
from attrs import field, frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cqrs_sync as cqrs
from cqrs_sync.testing.contracts.executor import Calls
from cqrs_sync.testing.waiting import BOUND, in_threads
from cqrs_sync.threads.pool import SameThread, ThreadPool
from tests.waiting import eventually

sizes = st.integers(1, 4)


@frozen
class Node:
    """A call: what it runs and waits for, what it adds to its work, and how it waits."""

    nested: tuple[Node, ...] = ()
    added: tuple[Node, ...] = ()
    may_help: bool = True
    deadline: bool = False

    @property
    def size(self) -> int:
        return 1 + sum(node.size for node in (*self.nested, *self.added))


def forests(nodes):
    return st.lists(nodes, max_size=3).map(tuple)


nodes = st.recursive(
    st.builds(Node, may_help=st.booleans(), deadline=st.booleans()),
    lambda nodes: st.builds(
        Node, nested=forests(nodes), added=forests(nodes), may_help=st.booleans(), deadline=st.booleans()
    ),
    max_leaves=25,
)
roots = st.builds(
    Node,
    nested=st.lists(nodes, min_size=1, max_size=4).map(tuple),
    may_help=st.booleans(),
    deadline=st.booleans(),
)


class Tree:
    """Makes the calls of nodes on an executor, and counts them."""

    def __init__(self, executor):
        self.executor = executor
        self.peak = 0
        self.made = []
        self.crowded = False
        self._lock = threading.Lock()
        self._depths = {}

    def run(self, node):
        work = Calls()
        for child in node.nested:
            work.add(self.make, child, work)
        timeout = 3600 if node.deadline else None
        assert self.executor.run(work, timeout=timeout, may_help=node.may_help)
        self.crowded = self.crowded or work.was_crowded
        assert [] == work.failed
        assert 0 == work.finished_late_calls

    def make(self, node, work):
        thread = threading.get_ident()
        with self._lock:
            self._depths[thread] = self._depths.get(thread, 0) + 1
            self.peak = max(self.peak, len(self._depths))
        for child in node.added:
            work.add(self.make, child, work)
        if node.nested:
            self.run(node)
        with self._lock:
            self.made.append(id(node))
            self._depths[thread] -= 1
            if not self._depths[thread]:
                del self._depths[thread]


def ids_of(node):
    for child in (*node.nested, *node.added):
        yield id(child)
        yield from ids_of(child)


@pytest.fixture(params=[None, 1e-6], ids=["calm", "impatient"], scope="module", autouse=True)
def _switching(request):
    interval = sys.getswitchinterval()
    if request.param:
        sys.setswitchinterval(request.param)
    yield
    sys.setswitchinterval(interval)


searching = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@searching
@given(size=sizes, callers=st.lists(roots, min_size=1, max_size=5))
def test_any_tree_of_calls_is_made_once_within_the_limit(size, callers):
    """
    Whatever calls run, add and wait for, from however many threads: each is made exactly once, on no
    more threads at a time than the limit, and the pool is as before.
    """
    with ThreadPool(size) as pool:
        tree = Tree(pool)
        in_threads(*[lambda root=root: tree.run(root) for root in callers])

        eventually(lambda: pool.busy_count == 0)
        eventually(lambda: not pool.queued_count)

    assert sorted(node for root in callers for node in ids_of(root)) == sorted(tree.made)
    assert tree.peak <= size
    assert not tree.crowded


@searching
@given(root=roots)
def test_a_tree_means_the_same_in_the_callers_thread(root):
    """
    The same calls are made by SameThread, one at a time.
    """
    tree = Tree(SameThread())
    tree.run(root)

    assert sorted(ids_of(root)) == sorted(tree.made)
    assert 1 == tree.peak


@searching
@given(size=sizes, callers=st.lists(roots, min_size=1, max_size=4), late=st.integers(0, 30))
def test_closing_at_any_time_loses_no_call(size, callers, late):
    """
    A pool that is closed in the middle of anything makes what it was given, and so do callers afterwards.
    """
    pool = ThreadPool(size)
    tree = Tree(pool)

    def close():
        eventually(lambda: len(tree.made) >= min(late, sum(root.size - 1 for root in callers)))
        pool.close(BOUND)

    in_threads(close, *[lambda root=root: tree.run(root) for root in callers])
    tree.run(callers[0])
    eventually(lambda: pool.busy_count == 0)
    pool.close()

    expected = [node for root in (*callers, callers[0]) for node in ids_of(root)]
    assert sorted(expected) == sorted(tree.made)


# The same through mediators


@frozen
class Do(cqrs.Command[int]):
    """Raises an event for each node that is nested in this one."""

    node: Step
    timeout: float | None = None


@frozen
class Step:
    """What the handler of an event does: send these, follow up with those, fail."""

    sends: tuple[Step, ...] = ()
    follows: tuple[Step, ...] = ()
    fails: bool = False
    timeout: float | None = None


@frozen
class Done(cqrs.DomainEvent):
    """Asks for a step."""

    step: Step = field(eq=False)


def steps_of(step):
    for child in (*step.sends, *step.follows):
        yield child
        yield from steps_of(child)


timeouts = st.sampled_from([None, 3600.0])
steps = st.recursive(
    st.builds(Step, fails=st.booleans(), timeout=timeouts),
    lambda steps: st.builds(Step, sends=forests(steps), follows=forests(steps), fails=st.booleans(), timeout=timeouts),
    max_leaves=20,
)


class Failing(Exception):
    """What a step that fails raises."""


class Doing:
    """A mediator whose handlers send, follow up and fail as steps tell."""

    def __init__(self, threads):
        self.done = []
        self._lock = threading.Lock()
        requests, events = cqrs.RequestMap(), cqrs.EventMap()
        requests.bind(Do, self.do)
        events.bind(Done, self.step)
        self.mediator = cqrs.bootstrap(requests, events, threads=threads, max_depth=1000)

    def do(self, request):
        for step in request.node.sends:
            cqrs.raise_event(Done(step))
        return len(request.node.sends)

    def step(self, event):
        step = event.step
        with self._lock:
            self.done.append(id(step))
        for follow in step.follows:
            cqrs.raise_event(Done(follow))
        if step.sends:
            self.send(step)
        if step.fails:
            raise Failing

    def send(self, step):
        """Send, and see that what failed below is reported, each failure once."""
        try:
            answer, failures = self.mediator.send(Do(step), timeout=step.timeout), ()
        except cqrs.EventsFailed as error:
            answer, failures = error.response, error.failures
        assert len(step.sends) == answer
        assert [Failing] * sum(map(failures_of, step.sends)) == [type(failure.error) for failure in failures]


def failures_of(step):
    """Count the failures of a step and its follow-ups: what a step that fails raises is dropped."""
    return 1 if step.fails else sum(map(failures_of, step.follows))


def reached(step):
    """Return the steps that are taken when this one's are sent."""
    for child in step.sends:
        yield from _taken(child)


def _taken(step):
    yield id(step)
    for child in step.sends:
        yield from _taken(child)
    if not step.fails:
        for child in step.follows:
            yield from _taken(child)


@searching
@given(size=st.none() | sizes, callers=st.lists(steps, min_size=1, max_size=4))
def test_any_tree_of_commands_and_events_is_handled_once_and_its_failures_reported_once(size, callers):
    """
    Nested sends, follow-ups and failures in any combination, on every executor: each event is handled
    once, those of failing handlers never, and every failure comes back to the send it belongs to.
    """
    doing = Doing(SameThread() if size is None else size)
    with doing.mediator:
        in_threads(*[lambda step=step: doing.send(step) for step in callers])

    assert sorted(step for caller in callers for step in reached(caller)) == sorted(doing.done)
