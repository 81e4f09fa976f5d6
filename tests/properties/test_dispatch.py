"""
Promises about dispatching, for any tree of follow-up events, on any executor, from several callers at once.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from threading import Barrier

import punq
import pytest
from attrs import field, frozen
from hypothesis import given
from hypothesis import strategies as st

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker, MemoryTransactions
from cqrs_sync.threads.pool import Executor, SameThread, ThreadPool

HANDLERS = 3
SIZES = ["same thread", 1, 2, 16]

#: The request that a thread has sent; follows its events on to the pool.
sender: ContextVar[int] = ContextVar("sender")


@frozen
class Grow(cqrs.Command[int]):
    request: int


@frozen
class Grown(cqrs.DomainEvent):
    request: int
    number: int


@frozen
class Told(cqrs.NotificationEvent, topic="trees", name="told"):
    request: int
    number: int


@frozen
class Node:
    """An event of a tree, and who raises it: a handler of its parent, or the request."""

    parent: int | None
    raiser: int
    notification: bool
    #: Which of its handlers fail, after they raised its children.
    failing: frozenset[int] = field(default=frozenset())

    def event(self, request: int, number: int) -> cqrs.Event:
        return (Told if self.notification else Grown)(request, number)


Tree = list[Node]


@st.composite
def trees(draw: st.DrawFn, *, failing: bool = False) -> Tree:
    """Draw a tree of at most 12 events: any depth, any width."""
    which = st.frozensets(st.integers(0, HANDLERS - 1)) if failing else st.just(frozenset())
    return [
        Node(
            parent=draw(st.none() | st.integers(0, number - 1)) if number else None,
            raiser=draw(st.integers(0, HANDLERS - 1)),
            notification=draw(st.booleans()),
            failing=draw(which),
        )
        for number in range(draw(st.integers(0, 12)))
    ]


def children(tree: Tree, parent: int | None, raiser: int | None = None) -> list[int]:
    return [number for number, node in enumerate(tree) if node.parent == parent and raiser in (None, node.raiser)]


def breadth_first(tree: Tree) -> list[tuple[int, int]]:
    """Which handler is to be called with which event, in order: failing handlers' follow-ups are dropped."""
    calls = []
    waiting = deque(children(tree, None))
    while waiting:
        number = waiting.popleft()
        for handler in range(HANDLERS):
            calls.append((number, handler))
            if handler not in tree[number].failing:
                waiting.extend(children(tree, number, handler))
    return calls


class Forest:
    """A mediator whose handlers, all of them singletons, grow the trees of requests."""

    def __init__(
        self, forest: list[Tree], threads: Executor, meet: Callable[[], object] = lambda: None, **settings: object
    ) -> None:
        self.trees = forest
        #: Called by request handlers when they have raised their events.
        self.meet = meet
        self.calls: list[tuple[int, int, int]] = []
        self.leaks: list[tuple[int, int]] = []
        self.broker = MemoryBroker()
        requests, events, container = cqrs.RequestMap(), cqrs.EventMap(), punq.Container()
        requests.bind(self._singleton(container, self._request_handler()))
        for number in range(HANDLERS):
            handler = self._singleton(container, self._event_handler(number))
            events.bind(Grown, handler)
            events.bind(Told, handler)
        self.mediator = cqrs.bootstrap(
            requests, events, source="tests", container=container, broker=self.broker, threads=threads, **settings
        )

    def send(self, request: int) -> int:
        sender.set(request)
        return self.mediator.send(Grow(request))

    def calls_of(self, request: int) -> list[tuple[int, int]]:
        return [(number, handler) for asked, number, handler in self.calls if asked == request]

    def told(self) -> Counter[tuple[int, int]]:
        bodies = [json.loads(message.body) for message in self.broker.published]
        return Counter((body["request"], body["number"]) for body in bodies)

    def _singleton(self, container: punq.Container, handler: type) -> type:
        container.register(handler, scope=punq.Scope.singleton)
        return handler

    def _request_handler(self) -> type:
        forest = self

        class GrowHandler(cqrs.RequestHandler[Grow, int]):
            def handle(self, request: Grow) -> int:
                tree = forest.trees[request.request]
                for number in children(tree, None):
                    self.raise_event(tree[number].event(request.request, number))
                forest.meet()
                return request.request

        return GrowHandler

    def _event_handler(self, handler: int) -> type:
        forest = self

        class Handler(cqrs.EventHandler[cqrs.Event]):
            def handle(self, event: Grown | Told) -> None:
                tree = forest.trees[event.request]
                forest.calls.append((event.request, event.number, handler))
                if sender.get() != event.request:
                    forest.leaks.append((sender.get(), event.request))
                for number in children(tree, event.number, handler):
                    self.raise_event(tree[number].event(event.request, number))
                if handler in tree[event.number].failing:
                    raise LookupError(f"{event.number} {handler}")

        return Handler


@pytest.fixture(scope="module")
def executors() -> Iterator[Mapping[object, Executor]]:
    with ThreadPool(1) as one, ThreadPool(2) as two, ThreadPool(16) as sixteen:
        yield dict(zip(SIZES, (SameThread(), one, two, sixteen), strict=True))


@pytest.mark.parametrize("size", SIZES)
@given(forest=st.lists(trees(), min_size=1, max_size=6))
def test_each_event_is_handled_once_by_each_of_its_handlers_and_emitted_once(executors, size, forest):
    """
    D4: Whatever the tree, the executor, and what other callers do: all of it when `send` returns, none of it twice.
    """
    growing = Forest(forest, executors[size])

    def send(request):
        answer = growing.send(request)
        return answer, Counter(growing.calls_of(request))

    with ThreadPoolExecutor(len(forest)) as callers:
        results = list(callers.map(send, range(len(forest)), timeout=60))

    for request, tree in enumerate(forest):
        wanted = Counter((number, handler) for number in range(len(tree)) for handler in range(HANDLERS))
        assert (request, wanted) == results[request]
        assert wanted == Counter(growing.calls_of(request))
    told = Counter(
        (request, n) for request, tree in enumerate(forest) for n, node in enumerate(tree) if node.notification
    )
    assert told == growing.told()


@pytest.mark.parametrize("size", SIZES)
@given(forest=st.lists(trees(), min_size=2, max_size=6))
def test_no_event_leaks_from_one_request_into_another(executors, size, forest):
    """
    D3: Requests that are in one handler at the same time, as it is a singleton, keep their events apart.
    """
    growing = Forest(forest, executors[size], partial(Barrier(len(forest)).wait, 10))
    with ThreadPoolExecutor(len(forest)) as callers:
        list(callers.map(growing.send, range(len(forest)), timeout=60))

    assert [] == growing.leaks


@given(tree=trees())
def test_follow_ups_are_handled_breadth_first_in_the_same_thread(tree):
    """
    D4: First every handler of every event of the request, then those of their follow-ups, and so on.
    """
    growing = Forest([tree], SameThread())
    growing.send(0)

    assert breadth_first(tree) == growing.calls_of(0)


@pytest.mark.parametrize("size", SIZES)
@given(tree=trees())
def test_a_follow_up_is_handled_after_what_it_follows(executors, size, tree):
    """
    D4: On any pool the handler that raised an event has been called before those of the event are.
    """
    growing = Forest([tree], executors[size])
    growing.send(0)
    place = {call: index for index, call in enumerate(growing.calls_of(0))}

    for number, node in enumerate(tree):
        if node.parent is not None:
            raised = place[node.parent, node.raiser]
            assert all(raised < place[number, handler] for handler in range(HANDLERS))


@pytest.mark.parametrize("size", SIZES)
@given(tree=trees(failing=True))
def test_failures_drop_the_follow_ups_of_those_that_failed_and_nothing_else(executors, size, tree):
    """
    D6: All other handlers run, each failure comes back once, and what was raised by others is emitted.
    """
    growing = Forest([tree], executors[size])
    failures, response = [], None
    try:
        response = growing.send(0)
    except cqrs.EventsFailed as error:
        failures, response = [str(each) for each in error.exceptions], error.response

    wanted = breadth_first(tree)
    assert 0 == response
    assert Counter(wanted) == Counter(growing.calls_of(0))
    failing = [f"{number} {handler}" for number, handler in wanted if handler in tree[number].failing]
    assert sorted(failing) == sorted(failures)
    assert Counter({(0, number) for number, _ in wanted if tree[number].notification}) == growing.told()


# Transactions


@frozen
class Block:
    """A transaction, or a savepoint inside another: what is done in it, and how it ends."""

    commits: bool
    steps: tuple[Block | None, ...]


#: None stands for a send.
steps = st.recursive(
    st.none(),
    lambda inner: st.builds(Block, st.booleans(), st.lists(inner, max_size=4).map(tuple)),
    max_leaves=12,
)


class RolledBack(Exception):
    """Ends a block, and is expected."""


def played(program: list[Block | None], send: Callable[[int], object], transactions: MemoryTransactions) -> list[int]:
    """Send one request after the other as the program says; which of them have committed, in their order."""
    numbers = itertools.count()

    def play(steps: Iterable[Block | None]) -> list[int]:
        committed = []
        for step in steps:
            if step is None:
                request = next(numbers)
                send(request)
                committed.append(request)
                continue
            with suppress(RolledBack), transactions.atomic():
                inner = play(step.steps)
                if not step.commits:
                    raise RolledBack
                committed += inner
        return committed

    return play(program)


@pytest.mark.parametrize("size", SIZES)
@given(program=st.lists(steps, max_size=5), tree=trees())
def test_what_is_handled_and_emitted_is_what_was_committed(executors, size, program, tree):
    """
    D4: For any nesting of transactions and savepoints, kept or rolled back: no ghosts, nothing missing, in order.
    """
    transactions = MemoryTransactions()
    growing = Forest([tree] * 100, executors[size], transactions=transactions)

    committed = played(program, growing.send, transactions)

    calls = [(number, handler) for number in range(len(tree)) for handler in range(HANDLERS)]
    assert Counter((request, *call) for request in committed for call in calls) == Counter(growing.calls)
    assert Counter((request, n) for request in committed for n, node in enumerate(tree) if node.notification) == (
        growing.told()
    )
    assert committed == list(dict.fromkeys(request for request, *_ in growing.calls)) or not tree
