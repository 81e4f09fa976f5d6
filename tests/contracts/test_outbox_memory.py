"""MemoryOutbox keeps the promises of its socket: it is the reference."""

import pytest

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
        return MemoryOutbox(transactions, strict=False)

    @pytest.fixture
    def atomic(self, transactions):
        return transactions.atomic
