"""MemoryInbox keeps the promises of its socket: it is the reference."""

import pytest

from cqrs_sync.memory import MemoryInbox, MemoryTransactions
from cqrs_sync.testing.contracts.inbox import InboxContract, InboxFeatures


class TestMemoryInbox(InboxContract):
    features = InboxFeatures(is_shared=False)

    @pytest.fixture
    def transactions(self):
        return MemoryTransactions()

    @pytest.fixture
    def inbox(self, transactions):
        return MemoryInbox(transactions)

    @pytest.fixture
    def atomic(self, transactions):
        return transactions.atomic
