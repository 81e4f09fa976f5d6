"""
The promises of a transactions socket as test classes.

```python
class TestMyTransactions(OpenTransactionsContract):
    @pytest.fixture
    def transactions(self):
        return MyTransactions(...)

    @pytest.fixture
    def atomic(self):
        return my_database.transaction   # a context manager that commits, or rolls back after an error
```

With a database, give `write`, `written` and `careless` as well. `TransactionsContract` alone is for sockets whose
transactions no test can open.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TypeAlias

import attrs
import pytest

from cqrs_sync.bootstrap import bootstrap
from cqrs_sync.context import raise_event
from cqrs_sync.mediator import Mediator
from cqrs_sync.messages import Command, DomainEvent
from cqrs_sync.registry import EventMap, RequestMap
from cqrs_sync.threads.executor import Executor
from cqrs_sync.threads.pool import SameThread, ThreadPool
from cqrs_sync.transactions import Transactions

#: Opens a transaction in the calling thread; inside one, a savepoint.
Atomic: TypeAlias = Callable[[], AbstractContextManager[object]]


@attrs.frozen
class TransactionsFeatures:
    """What transactions can do."""

    #: A block inside a block may fail alone.
    has_savepoints: bool = True


class Rollback(Exception):
    """Raised to roll back."""


@contextmanager
def rolled_back(atomic: Atomic) -> Iterator[None]:
    """Open a transaction, or a savepoint, and roll it back."""
    with pytest.raises(Rollback), atomic():  # noqa: PT012 -- the block under test is the caller's
        yield
        raise Rollback


class WritingFixtures:
    """What a subclass with a database gives; without these fixtures nothing is written."""

    @pytest.fixture
    def write(self) -> Callable[[str], object]:
        """Write a text in the open transaction, and in no table where there is none."""
        return lambda _: None

    @pytest.fixture
    def written(self) -> Callable[[], list[str]] | None:
        """Read what was written and has committed, in order; None where nothing is written."""
        return None

    @pytest.fixture
    def careless(self) -> Mapping[str, Callable[[], object]]:
        """What code may do to the open transaction without raising, such as catching an error; by a name."""
        return {}


@attrs.frozen
class Order(Command[str]):
    """Raises one event."""

    item: str


@attrs.frozen
class Ordered(DomainEvent):
    """The event that Order raises."""

    item: str


def order_maps(handled: list[str]) -> tuple[RequestMap, EventMap]:
    """Bind a handler to each; the event's handler notes the item."""

    def order(request: Order) -> str:
        raise_event(Ordered(request.item))
        return "ordered"

    def note(event: Ordered) -> None:
        handled.append(event.item)

    requests, events = RequestMap(), EventMap()
    requests.bind(Order, order)
    events.bind(Ordered, note)
    return requests, events


class TransactionsContract:
    """What every Transactions promises."""

    @pytest.fixture
    def handled(self) -> list[str]:
        """The items of the events that were handled."""
        return []

    @pytest.fixture(params=[None, 1, 4], ids=["same-thread", "pool-of-1", "pool-of-4"])
    def mediator(self, request: pytest.FixtureRequest, transactions: Transactions, handled: list[str]) -> object:
        """A mediator with these transactions, whose handlers run in the same thread or on pools."""
        threads: Executor = SameThread() if request.param is None else ThreadPool(request.param)
        with bootstrap(*order_maps(handled), threads=threads, transactions=transactions) as mediator:
            yield mediator

    def test_none_is_active_where_none_was_opened(self, transactions: Transactions) -> None:
        """No transaction is active, in this thread and in any other."""
        assert [False, False] == [transactions.active(), _elsewhere(transactions.active)]

    def test_events_of_no_transaction_are_handled_when_send_returns(
        self, mediator: Mediator, handled: list[str]
    ) -> None:
        """Without a transaction, events are handled at once."""
        assert "ordered" == mediator.send(Order("lamp"))

        assert ["lamp"] == handled


class OpenTransactionsContract(WritingFixtures, TransactionsContract):
    """What every Transactions promises whose transactions a test can open."""

    features: TransactionsFeatures = TransactionsFeatures()

    # active

    def test_one_is_active_inside_its_block(self, transactions: Transactions, atomic: Atomic) -> None:
        """It is not active before the block, after the commit, and after a rollback."""
        assert not transactions.active()
        with atomic():
            assert transactions.active()
        assert not transactions.active()
        with rolled_back(atomic):
            assert transactions.active()
        assert not transactions.active()

    def test_one_is_active_until_the_outermost_block_ends(self, transactions: Transactions, atomic: Atomic) -> None:
        """The end of an inner block is not a commit."""
        with atomic():
            with atomic():
                assert transactions.active()
            assert transactions.active()
        assert not transactions.active()

    def test_it_belongs_to_its_thread(self, transactions: Transactions, atomic: Atomic) -> None:
        """Another thread has its own transaction, as it has its own connection."""
        with atomic():
            assert not _elsewhere(transactions.active)

    # on_commit

    def test_what_waits_for_the_commit_is_called_once_after_it(
        self, transactions: Transactions, atomic: Atomic
    ) -> None:
        """Callbacks run in their order, in the thread that commits, when no transaction is open there any more."""
        calls: list[tuple[int, threading.Thread, bool]] = []

        def note(number: int) -> None:
            calls.append((number, threading.current_thread(), transactions.active()))

        with atomic():
            for number in range(5):
                transactions.on_commit(lambda number=number: note(number))  # type: ignore[misc]
            assert [] == calls

        assert [(number, threading.current_thread(), False) for number in range(5)] == calls
        with atomic():
            pass
        assert 5 == len(calls)

    def test_nothing_is_called_after_a_rollback(self, transactions: Transactions, atomic: Atomic) -> None:
        """Its callbacks run neither then nor after the next commit."""
        calls: list[str] = []
        with rolled_back(atomic):
            transactions.on_commit(lambda: calls.append("rolled back"))
            with atomic():
                transactions.on_commit(lambda: calls.append("rolled back with what is around it"))
        with atomic():
            transactions.on_commit(lambda: calls.append("committed"))

        assert ["committed"] == calls

    def test_nothing_is_called_of_which_nothing_is_there(
        self,
        transactions: Transactions,
        atomic: Atomic,
        write: Callable[[str], object],
        written: Callable[[], list[str]] | None,
        careless: Mapping[str, Callable[[], object]],
    ) -> None:
        """Whatever the block has done to its transaction: callbacks run only if it has committed."""
        waiting: list[str] = []
        calls: list[str] = []
        for name, act in {"nothing": lambda: None, **careless}.items():
            # Any error: the one that opens the transaction may have errors of its own.
            with suppress(Exception), atomic():
                write(name)
                act()
                if transactions.active():
                    transactions.on_commit(lambda name=name: calls.append(name))  # type: ignore[misc]
                    waiting.append(name)
            assert not transactions.active()

        there = ["nothing", *careless] if written is None else written()
        assert "nothing" in calls
        assert [name for name in waiting if name in there] == calls

    def test_what_a_block_inside_a_block_waits_for_is_the_outermost_commit(
        self, transactions: Transactions, atomic: Atomic
    ) -> None:
        """Callbacks of an inner block run with the others, in order."""
        calls: list[int] = []
        with atomic():
            transactions.on_commit(lambda: calls.append(1))
            with atomic():
                transactions.on_commit(lambda: calls.append(2))
            transactions.on_commit(lambda: calls.append(3))
            assert [] == calls

        assert [1, 2, 3] == calls

    def test_what_a_rolled_back_savepoint_waited_for_is_dropped(
        self, transactions: Transactions, atomic: Atomic
    ) -> None:
        """The rest of the transaction commits without it."""
        if not self.features.has_savepoints:
            return
        calls: list[str] = []
        with atomic():
            transactions.on_commit(lambda: calls.append("before"))
            with rolled_back(atomic):
                transactions.on_commit(lambda: calls.append("rolled back"))
            assert transactions.active()
            transactions.on_commit(lambda: calls.append("after"))

        assert ["before", "after"] == calls

    def test_what_is_called_may_open_a_transaction(self, transactions: Transactions, atomic: Atomic) -> None:
        """That transaction has a commit of its own."""
        calls: list[str] = []

        def open_another() -> None:
            with atomic():
                transactions.on_commit(lambda: calls.append("of the second"))
                calls.append("in the second")

        with atomic():
            transactions.on_commit(open_another)
            calls.append("in the first")

        assert ["in the first", "in the second", "of the second"] == calls
        assert not transactions.active()

    # As the library uses it

    def test_events_are_handled_when_their_transaction_has_committed(
        self, mediator: Mediator, handled: list[str], atomic: Atomic
    ) -> None:
        """`send` returns before that."""
        with atomic():
            mediator.send(Order("lamp"))
            with atomic():
                mediator.send(Order("table"))
            assert [] == handled

        assert ["lamp", "table"] == sorted(handled)

    def test_events_of_a_rolled_back_transaction_are_never_handled(
        self, mediator: Mediator, handled: list[str], atomic: Atomic
    ) -> None:
        """What did not happen is not handled."""
        with rolled_back(atomic):
            mediator.send(Order("lamp"))
        with atomic():
            mediator.send(Order("table"))

        assert ["table"] == handled

    def test_events_of_a_rolled_back_savepoint_are_never_handled(
        self, mediator: Mediator, handled: list[str], atomic: Atomic
    ) -> None:
        """Events of the transaction around it are handled."""
        if not self.features.has_savepoints:
            return
        with atomic():
            mediator.send(Order("lamp"))
            with rolled_back(atomic):
                mediator.send(Order("table"))
            assert [] == handled

        assert ["lamp"] == handled

    def test_handlers_have_no_transaction_but_their_own(self, transactions: Transactions, atomic: Atomic) -> None:
        """Wherever a handler runs, no transaction is open there."""
        seen: list[bool] = []
        requests, events = order_maps([])
        events.bind(Ordered, lambda _: seen.append(transactions.active()))
        for threads in (SameThread(), ThreadPool(1), ThreadPool(4)):
            with bootstrap(requests, events, threads=threads, transactions=transactions) as mediator, atomic():
                for number in range(5):
                    mediator.send(Order(str(number)))

        assert [False] * 15 == seen


def _elsewhere(function: Callable[[], bool]) -> bool | None:
    """Call `function` in another thread; None where it did not answer."""
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(function()), daemon=True)
    thread.start()
    thread.join(10)
    return answers[0] if answers else None
