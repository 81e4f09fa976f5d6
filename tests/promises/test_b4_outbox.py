"""B4: what is published is what was committed, in the order of its key; nobody waits for the broker."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker, MemoryOutbox
from cqrs_sync.outbox import DeadLetterSelection
from cqrs_sync.testing.waiting import in_forked_child
from tests.promises.outbox_fixtures import Counted, PickyBroker, Sell, Shop, Sold, closing
from tests.source import ROOT
from tests.waiting import eventually


@pytest.fixture
def shop():
    shop = Shop()
    with closing(shop):
        yield shop


def test_what_was_committed_is_published_by_the_process_that_did(shop):
    """
    With no relay process; the broker has it within a moment.
    """
    shop.sell(Counted(1), Sold("ada", 2))

    eventually(lambda: shop.waiting() == 0)
    assert [1, 2] == shop.published()


def test_what_was_rolled_back_is_not(shop):
    """
    Neither with its command, nor with a savepoint inside one that commits.
    """
    with pytest.raises(ValueError, match="not sold"):
        shop.sell(Counted(1), fails=True)
    with shop.transactions.atomic():
        shop.sell(Counted(2))
        with pytest.raises(ValueError, match="not sold"):
            shop.sell(Counted(3), fails=True)
    eventually(lambda: shop.waiting() == 0)

    assert [2] == shop.published()


def test_nothing_leaves_before_the_commit(shop):
    """
    However long the transaction takes.
    """
    with shop.transactions.atomic():
        shop.sell(Counted(1))
        shop.relay.wake()
        assert [] == shop.published()
    eventually(lambda: shop.published() == [1])


@pytest.mark.parametrize("error", [cqrs.BrokerUnavailable("gone"), cqrs.MessageRejected("no")])
def test_a_broker_that_fails_fails_no_command(error):
    """
    What was committed waits.
    """
    shop = Shop()
    shop.broker.fail_with = error
    with closing(shop):
        shop.sell(Counted(1))
        assert 1 == shop.waiting()


def test_outside_of_a_transaction_it_is_an_error():
    """
    What it tells of and the event could not be true together; the message names the way out.
    """
    shop = Shop(broker=MemoryBroker())
    with closing(shop), pytest.raises(cqrs.NotInTransaction, match="no transaction is open"):
        shop.mediator.publish(Counted(1))
    assert [] == shop.published()


def test_an_outbox_may_be_told_to_take_it_all_the_same():
    """
    Then it is kept in a transaction of its own.
    """
    shop = Shop(outbox=MemoryOutbox(on_no_transaction=cqrs.OnNoTransaction.OPEN))
    with closing(shop):
        shop.mediator.publish(Counted(1))
        eventually(lambda: shop.published() == [1])


def test_without_the_fast_path_only_a_relay_publishes():
    """
    The process that writes never talks to the broker.
    """
    outbox = MemoryOutbox()
    writer, relay = Shop(outbox=outbox, fast_path=False), Shop(outbox=outbox, fast_path=False)
    with closing(writer, relay):
        writer.sell(Counted(1))
        assert (1, []) == (writer.waiting(), writer.published())
        relay.relay.start(poll=(0.01, 0.02))
        eventually(lambda: relay.published() == [1])


def test_no_transaction_is_open_while_the_broker_is_talked_to():
    """
    Not in the thread that publishes.
    """
    open_ones = []
    broker = PickyBroker(lambda _: open_ones.append(shop.transactions.active()))
    shop = Shop(broker=broker)
    with closing(shop):
        shop.sell(Counted(1))
        eventually(lambda: shop.waiting() == 0)
    assert [False] == open_ones


def test_what_is_published_again_has_the_same_id():
    """
    A receiver that drops ids it has seen is not deceived.
    """
    seen = []

    def lose_the_first_confirmation(message):
        seen.append(message.id)
        return cqrs.BrokerUnavailable("no confirmation") if len(seen) == 1 else None

    shop = Shop(broker=PickyBroker(lose_the_first_confirmation))
    with closing(shop):
        shop.sell(Counted(1))
        eventually(lambda: shop.waiting() == 0)
    assert 2 == len(seen)
    assert 1 == len(set(seen))


def test_a_message_that_is_refused_holds_back_those_of_its_key_and_no_others():
    """
    Until somebody has dealt with it; then they come in order.
    """
    refused = {1}

    def refuse(message):
        number = int(message.body.rpartition(b":")[2].rstrip(b"}"))
        return cqrs.MessageRejected("no queue") if number in refused else None

    shop = Shop(broker=PickyBroker(refuse), retry=cqrs.RetryPolicy(attempts=1), fast_path=False)
    with closing(shop):
        shop.sell(*(Sold("ada", number) for number in range(4)), *(Sold("bob", number) for number in range(10, 14)))
        shop.relay.start(poll=(0.01, 0.02))
        eventually(lambda: shop.outbox.backlog().dead == 1)
        eventually(lambda: len(shop.published()) == 5)
        assert [0, 10, 11, 12, 13] == sorted(shop.published())
        refused.clear()
        shop.outbox.replay(DeadLetterSelection())
        eventually(lambda: shop.waiting() == 0)
        assert [0, 1, 2, 3] == [number for number in shop.published() if number < 10]


def test_a_policy_may_let_others_of_the_key_pass():
    """
    They are published in one go, and what is refused is stepped over.
    """
    broker = PickyBroker(lambda message: cqrs.MessageRejected("no") if b":1}" in message.body else None)
    policy = cqrs.RetryPolicy(attempts=2, first=0.01, on_dead_letter=cqrs.OnDeadLetter.SKIP)
    shop = Shop(broker=broker, retry=policy, fast_path=False)
    with closing(shop):
        shop.sell(*(Sold("ada", number) for number in range(4)))
        shop.relay.start(poll=(0.01, 0.02))
        eventually(lambda: shop.waiting() == 0)
        assert [0, 2, 3] == shop.published()
        assert 4 == broker.calls[0]


def test_many_relays_publish_each_message_once_and_keep_the_order_of_keys():
    """
    Eight of them share one outbox, while others write.
    """
    outbox, broker = MemoryOutbox(), MemoryBroker()
    shops = [Shop(broker, outbox, fast_path=bool(number % 2)) for number in range(8)]
    with closing(*shops):
        for shop in shops[:4]:
            shop.relay.start(poll=(0.01, 0.02))
        writers = [
            threading.Thread(
                target=lambda shop=shop, name=f"w{place}": [shop.sell(Sold(name, number)) for number in range(50)]
            )
            for place, shop in enumerate(shops)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(30)
        eventually(lambda: outbox.backlog().waiting == 0, timeout=30)

    assert 400 == len(broker.published)
    by_key = {}
    for message in broker.published:
        by_key.setdefault(message.key, []).append(int(message.body.rpartition(b":")[2].rstrip(b"}")))
    assert {f"w{place}": list(range(50)) for place in range(8)} == by_key


def test_closing_delivers_what_waits():
    """
    A script that ends leaves nothing for others.
    """
    shop = Shop()
    for number in range(500):
        shop.sell(Counted(number))
    shop.mediator.close(10)

    assert list(range(500)) == shop.published()


def test_closing_does_not_wait_for_a_broker_that_is_away():
    """
    What waits stays in the outbox.
    """
    shop = Shop()
    shop.broker.fail_with = cqrs.BrokerUnavailable("gone")
    shop.sell(Counted(1))
    eventually(lambda: shop.outbox.backlog().targets[0].tried == 1)
    done = threading.Event()
    threading.Thread(target=lambda: (shop.mediator.close(30), done.set()), daemon=True).start()

    assert done.wait(20)
    assert 1 == shop.waiting()


def test_a_script_that_ends_without_closing_delivers_what_waits():
    """
    As the interpreter leaves, within a limit.
    """
    code = """
import atexit
# What is registered first runs last.
atexit.register(lambda: print(shop.published()))
from tests.promises.outbox_fixtures import Counted, Shop
shop = Shop()
for number in range(3):
    shop.sell(Counted(number))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip

    assert ("[0, 1, 2]", 0) == (done.stdout.strip(), done.returncode), done.stderr


def test_a_forked_child_delivers_what_it_commits():
    """
    The parent's threads are not there; it starts its own.
    """
    shop = Shop()
    with closing(shop):
        shop.sell(Counted(1))
        eventually(lambda: shop.published() == [1])

        def child():
            shop.sell(Counted(2))
            eventually(lambda: shop.published() == [1, 2], timeout=20)

        assert 0 == in_forked_child(child, timeout=10)
        shop.sell(Counted(3))
        eventually(lambda: shop.published() == [1, 3])


def test_an_event_that_a_handler_raises_again_is_kept_once(shop):
    """
    What it was given was kept when it was raised first.
    """
    again = []
    shop.mediator.close()
    events = cqrs.EventMap()

    @events.bind
    def raise_it_again(event: Counted) -> None:
        again.append(event)
        cqrs.raise_event(event)

    shop = Shop(
        events=events, outbox=MemoryOutbox(on_no_transaction=cqrs.OnNoTransaction.OPEN), threads=cqrs.SameThread()
    )
    with closing(shop):
        shop.sell(Counted(1))
        eventually(lambda: shop.waiting() == 0)
    assert [1] == shop.published()
    assert 1 == len(again)


def test_a_middleware_around_publishing_is_around_the_relays(shop):
    """
    It sees the messages of a batch.
    """
    shop.mediator.close()
    seen = []

    def note(messages, call_next):
        seen.extend(message.type for message in messages)
        return call_next(messages)

    chain = cqrs.MiddlewareChain().add(note, cqrs.OutgoingMessage)
    outbox = MemoryOutbox(on_no_transaction=cqrs.OnNoTransaction.OPEN)
    broker = MemoryBroker()
    with cqrs.bootstrap(source="tests", broker=broker, outbox=outbox, middleware=chain) as mediator:
        mediator.publish(Counted(1))
        eventually(lambda: len(broker.published) == 1)
    assert ["counted"] == seen


def test_an_event_that_is_too_large_fails_its_command():
    """
    Before anything is written.
    """
    shop = Shop(outbox=MemoryOutbox(max_bytes=20))
    with closing(shop), pytest.raises(cqrs.EventTooLarge, match="20 are allowed"):
        shop.mediator.send(Sell((Sold("a" * 100, 1),)))
    assert 0 == shop.waiting()


def test_a_relay_that_rests_has_delivered_and_starts_again_with_the_next_commit(shop):
    """
    In between it has no thread, as a process wants it that is about to fork.
    """
    # Other tests may have left relays running.
    before = set(threading.enumerate())
    shop.sell(*(Counted(number) for number in range(50)))
    assert [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("cqrs-relay")]

    assert shop.relay.quiesce(10)
    assert list(range(50)) == shop.published()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("cqrs-relay")]
    shop.sell(Counted(50))
    eventually(lambda: shop.published()[-1] == 50)
