"""Promises about the test doubles, beyond what the contract of brokers asks."""

from __future__ import annotations

import threading

import pytest

from cqrs_sync.broker import Group
from cqrs_sync.errors import BrokerUnavailable, ClosedError, PublishFailed
from cqrs_sync.memory import MemoryBroker, MemoryTransactions
from cqrs_sync.testing.contracts.broker import message


class RolledBack(Exception):
    """Ends a block, and is expected."""


@pytest.fixture
def transactions():
    return MemoryTransactions()


@pytest.fixture
def done():
    return []


def test_outside_of_a_transaction_commit_is_now(transactions, done):
    """
    And none is active.
    """
    assert not transactions.active()
    transactions.on_commit(lambda: done.append("now"))

    assert ["now"] == done


def test_callbacks_run_after_the_commit_in_their_order(transactions, done):
    """
    When the transaction is no longer active.
    """
    with transactions.atomic():
        assert transactions.active()
        for name in "ab":
            transactions.on_commit(lambda name=name: done.append((name, transactions.active())))
        assert [] == done

    assert [("a", False), ("b", False)] == done


def roll_back(transactions, *callbacks):
    """Do this in a block that fails."""
    with transactions.atomic():
        for callback in callbacks:
            transactions.on_commit(callback)
        raise RolledBack


def test_callbacks_of_what_was_rolled_back_never_run(transactions, done):
    """
    Of a transaction, and of a savepoint in one that is kept.
    """
    with pytest.raises(RolledBack):
        roll_back(transactions, lambda: done.append("ghost"))
    with transactions.atomic():
        transactions.on_commit(lambda: done.append("outer"))
        with pytest.raises(RolledBack):
            roll_back(transactions, lambda: done.append("ghost"))
        with transactions.atomic():
            transactions.on_commit(lambda: done.append("inner"))
        assert [] == done

    assert ["outer", "inner"] == done
    assert not transactions.active()


def test_a_callback_may_open_a_transaction(transactions, done):
    """
    It runs outside of any.
    """

    def again():
        with transactions.atomic():
            transactions.on_commit(lambda: done.append("inner"))
            done.append("outer")

    with transactions.atomic():
        transactions.on_commit(again)

    assert ["outer", "inner"] == done


def test_each_thread_has_its_own_transactions(transactions, done):
    """
    As it has its own database connection.
    """
    with transactions.atomic():
        other = threading.Thread(target=lambda: done.append(transactions.active()))
        other.start()
        other.join(10)

    assert [False] == done


def test_a_broker_keeps_the_newest_messages():
    """
    So many as it is told to: a test double does not eat the machine.
    """
    broker = MemoryBroker(keep=3)
    batch = [message("meetings", b"%d" % number) for number in range(5)]
    broker.publish(batch)

    assert batch[2:] == list(broker.published)


def test_a_broker_fails_as_it_is_told():
    """
    For every message, until it is told otherwise.
    """
    broker = MemoryBroker()
    batch = [message("meetings"), message("meetings")]
    broker.fail_with = BrokerUnavailable("gone")
    with pytest.raises(PublishFailed) as caught:
        broker.publish(batch)
    broker.fail_with = None
    broker.publish(batch)

    assert batch == [failed for failed, _ in caught.value.failures] == list(broker.published)
    assert caught.value.retryable


def test_a_subscription_waits_for_what_is_published_later():
    """
    Another thread's publish wakes it.
    """
    broker = MemoryBroker()
    subscription = broker.subscribe(Group("g", ["meetings"]))
    received = []
    receiver = threading.Thread(target=lambda: received.append(subscription.receive(timeout=10)))
    receiver.start()
    broker.publish([message("elsewhere"), message("meetings", b"1")])
    receiver.join(10)

    assert [b"1"] == [delivery.message.body for delivery in received]


def test_a_subscription_gives_back_what_was_not_settled():
    """
    In its order; what was is not delivered again.
    """
    broker = MemoryBroker()
    subscription = broker.subscribe(Group("g", ["meetings"]))
    broker.publish([message("meetings", b"%d" % number) for number in range(4)])
    deliveries = [subscription.receive(timeout=1) for _ in range(3)]
    deliveries[1].ack()
    subscription.close()

    again = broker.subscribe(Group("g", ["meetings"]))
    assert [b"0", b"2", b"3"] == [again.receive(timeout=1).message.body for _ in range(3)]
    assert again.receive(timeout=0) is None


def test_the_subscriptions_of_a_group_share_its_messages():
    """
    Each is delivered to one of them.
    """
    broker = MemoryBroker()
    one, two = broker.subscribe(Group("g", ["meetings"])), broker.subscribe(Group("g", ["meetings"]))
    broker.publish([message("meetings", b"%d" % number) for number in range(4)])

    bodies = [subscription.receive(timeout=1).message.body for subscription in (one, two, one, two)]
    assert [b"0", b"1", b"2", b"3"] == bodies


def test_a_closed_broker_has_no_subscriptions():
    """
    As a real one.
    """
    broker = MemoryBroker()
    broker.close()
    with pytest.raises(ClosedError):
        broker.subscribe(Group("g", ["meetings"]))
