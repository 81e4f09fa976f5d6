"""Broker, outbox, inbox and transactions in memory: the reference of their sockets, and test doubles."""

from cqrs_sync.memory.broker import MemoryBroker, MemoryDelivery, MemorySubscription
from cqrs_sync.memory.inbox import MemoryInbox
from cqrs_sync.memory.outbox import MemoryOutbox, MemoryTransactions

__all__ = ["MemoryBroker", "MemoryDelivery", "MemoryInbox", "MemoryOutbox", "MemorySubscription", "MemoryTransactions"]
