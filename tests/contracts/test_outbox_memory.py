"""MemoryOutbox keeps the promises of its socket: it is the reference."""

import pytest

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryOutbox, MemoryTransactions
from cqrs_sync.testing.contracts.outbox import OutboxContract, OutboxFeatures


class TestMemoryOutbox(OutboxContract):
    features = OutboxFeatures(is_shared=False)

    @pytest.fixture
    def transactions(self):
        return MemoryTransactions()

    @pytest.fixture
    def outbox(self, transactions):
        return MemoryOutbox(transactions)

    @pytest.fixture
    def lenient_outbox(self, transactions):
        return MemoryOutbox(transactions, on_no_transaction=cqrs.OnNoTransaction.OPEN)

    @pytest.fixture
    def atomic(self, transactions):
        return transactions.atomic
