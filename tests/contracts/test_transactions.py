"""Both transactions sockets without a database keep their promises: none at all, and those in memory."""

import pytest

from cqrs_sync.memory import MemoryTransactions
from cqrs_sync.testing.contracts.transactions import OpenTransactionsContract, TransactionsContract
from cqrs_sync.transactions import NoTransactions


class TestNoTransactions(TransactionsContract):
    @pytest.fixture
    def transactions(self):
        return NoTransactions()

    def test_commit_is_now(self, transactions):
        """
        Callbacks run at once.
        """
        calls = []
        transactions.on_commit(lambda: calls.append("called"))

        assert ["called"] == calls


class TestMemoryTransactions(OpenTransactionsContract):
    @pytest.fixture
    def transactions(self):
        return MemoryTransactions()

    @pytest.fixture
    def atomic(self, transactions):
        return transactions.atomic
