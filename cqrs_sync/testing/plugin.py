"""Fixtures for pytest, which finds them where the library is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    # Imported when a fixture is used: pytest loads this module in each test run where the library is installed.
    from cqrs_sync.mediator import Mediator
    from cqrs_sync.memory import MemoryBroker, MemoryTransactions
    from cqrs_sync.testing.recorder import Recorder


@pytest.fixture
def cqrs_record() -> Iterator[Callable[[Mediator], Recorder]]:
    """Record a mediator until the end of the test: call it with the mediator, and it returns the recorder."""
    from cqrs_sync.testing.recorder import record  # noqa: PLC0415 -- see above

    with ExitStack() as stack:
        yield lambda mediator: stack.enter_context(record(mediator))


@pytest.fixture
def cqrs_memory_broker() -> Iterator[MemoryBroker]:
    """A broker in memory, for `bootstrap(broker=...)`."""
    from cqrs_sync.memory import MemoryBroker  # noqa: PLC0415 -- see above

    broker = MemoryBroker()
    yield broker
    broker.close()


@pytest.fixture
def cqrs_memory_transactions() -> MemoryTransactions:
    """Transactions in memory, for `bootstrap(transactions=...)`."""
    from cqrs_sync.memory import MemoryTransactions  # noqa: PLC0415 -- see above

    return MemoryTransactions()
