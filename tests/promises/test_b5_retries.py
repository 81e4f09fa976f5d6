"""B5: what fails is tried again, an outage costs no attempt, what cannot be delivered is kept, its neighbours go on."""

from __future__ import annotations

import logging

import pytest

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryOutbox
from cqrs_sync.outbox import DeadLetterSelection
from tests.promises.outbox_fixtures import Counted, PickyBroker, Shop, Sold, closing
from tests.waiting import eventually

QUICK = cqrs.RetryPolicy(attempts=3, first=0.01, ceiling=0.02)


def number_of(message):
    return int(message.body.rpartition(b":")[2].rstrip(b"}"))


def test_a_poisoned_message_is_dead_in_the_end_and_its_neighbours_are_delivered(caplog):
    """
    With its reason and its attempts; the log has an error.
    """
    broker = PickyBroker(lambda message: cqrs.MessageRejected("too 'large' by 3") if number_of(message) == 5 else None)
    shop = Shop(broker, retry=QUICK)
    with closing(shop):
        shop.sell(*(Counted(number) for number in range(10)))
        eventually(lambda: shop.outbox.backlog().dead == 1)
        (dead,) = shop.outbox.dead_letters(DeadLetterSelection())

        assert [number for number in range(10) if number != 5] == sorted(shop.published())
        assert (5, 3, "MessageRejected: too 'large' by 3") == (number_of(dead.message), dead.attempts, dead.error)
        assert "MessageRejected: too … by …" == dead.reason
        assert ["counts"] == [target.target for target in shop.outbox.backlog().targets]
    (told,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "is a dead letter after 3 attempt(s): MessageRejected: too 'large' by 3" in told.message
    assert not told.exc_info


def test_a_batch_of_poison_holds_up_nothing():
    """
    There are more of them than a relay claims at a time.
    """
    broker = PickyBroker(lambda message: cqrs.MessageRejected("no") if number_of(message) < 0 else None)
    shop = Shop(broker, retry=QUICK, fast_path=False)
    with closing(shop):
        shop.sell(*(Counted(-1 - number) for number in range(25)), *(Counted(number) for number in range(10)))
        shop.relay.start(poll=(0.01, 0.02), batch=5)
        eventually(lambda: (shop.outbox.backlog().dead, shop.waiting()) == (25, 0), timeout=20)

    assert list(range(10)) == sorted(shop.published())


def test_what_was_refused_for_a_while_is_delivered():
    """
    As when somebody has made the queue that was missing.
    """
    refusals = []

    def refuse_twice(message):
        refusals.append(message.id)
        return cqrs.MessageRejected("no queue") if len(refusals) <= 2 else None

    shop = Shop(PickyBroker(refuse_twice), retry=QUICK)
    with closing(shop):
        shop.sell(Counted(1))
        eventually(lambda: shop.published() == [1])


def test_an_outage_costs_no_attempt():
    """
    However long it lasts, however often it is tried; the log has few lines.
    """
    away = [True]
    broker = PickyBroker(lambda _: cqrs.BrokerUnavailable("gone") if away[0] else None)
    shop = Shop(broker, retry=cqrs.RetryPolicy(attempts=1))
    with closing(shop):
        for number in range(50):
            shop.sell(Counted(number))
        eventually(lambda: len(broker.calls) >= 4)
        assert 0 == shop.outbox.backlog().dead
        away[0] = False
        eventually(lambda: shop.waiting() == 0, timeout=20)

    assert list(range(50)) == sorted(shop.published())


def test_while_the_broker_is_away_one_message_finds_out():
    """
    Not whole batches.
    """
    broker = PickyBroker(lambda _: cqrs.BrokerUnavailable("gone"))
    shop = Shop(broker, fast_path=False)
    with closing(shop):
        shop.sell(*(Counted(number) for number in range(50)))
        shop.relay.start(publishers=1, poll=(0.01, 0.02))
        eventually(lambda: len(broker.calls) >= 4)

    assert [50, 1, 1, 1] == broker.calls[:4]


def test_a_topic_that_cannot_be_reached_holds_up_no_other():
    """
    Nor is it charged.
    """
    broker = PickyBroker(lambda message: cqrs.BrokerUnavailable("not allowed") if message.topic == "sales" else None)
    shop = Shop(broker, retry=cqrs.RetryPolicy(attempts=1), fast_path=False)
    with closing(shop):
        shop.sell(*(Sold(str(number), number) for number in range(100)))
        shop.sell(*(Counted(number) for number in range(10)))
        shop.relay.start(poll=(0.01, 0.02), batch=20)
        # What is published is settled a moment later.
        eventually(lambda: shop.outbox.backlog().waiting == 100, timeout=20)
        backlog = shop.outbox.backlog()

    assert list(range(10)) == sorted(shop.published())
    assert 0 == backlog.dead


def test_a_middleware_that_fails_for_one_message_fails_for_no_other():
    """
    Each message of the batch is given to it alone then.
    """

    def choke(messages, call_next):
        if any(number_of(message) == 3 for message in messages):
            raise ValueError("cannot sign this")
        return call_next(messages)

    outbox, broker = MemoryOutbox(on_no_transaction=cqrs.OnNoTransaction.OPEN), PickyBroker(lambda _: None)
    chain = cqrs.MiddlewareChain().add(choke, cqrs.OutgoingMessage)
    options = {"broker": broker, "outbox": outbox, "middleware": chain, "retry": QUICK, "fast_path": False}
    with cqrs.bootstrap(source="tests", **options) as mediator:
        for number in range(6):
            mediator.publish(Counted(number))
        mediator.relay.start(poll=(0.01, 0.02))
        eventually(lambda: outbox.backlog().dead == 1)
        eventually(lambda: len(broker.published) == 5)
    assert [0, 1, 2, 4, 5] == sorted(map(number_of, broker.published))
    assert "ValueError: cannot sign this" == outbox.dead_letters(DeadLetterSelection())[0].error


@pytest.mark.parametrize(
    "error", [cqrs.ConfigurationError("no such option"), cqrs.ClosedError("closed"), TimeoutError("slow")]
)
def test_a_broker_that_is_set_up_wrongly_costs_no_message_an_attempt(error):
    """
    Somebody has to mend it, and nothing is lost until then.
    """
    calls = []

    class WrongBroker(PickyBroker):
        def publish(self, messages, /, *, timeout=None):
            calls.append(len(messages))
            if len(calls) < 3:
                raise error
            super().publish(messages, timeout=timeout)

    shop = Shop(WrongBroker(lambda _: None), retry=cqrs.RetryPolicy(attempts=1))
    with closing(shop):
        shop.sell(Counted(1), Counted(2))
        eventually(lambda: shop.waiting() == 0)

    assert [1, 2] == sorted(shop.published())


def test_an_attempt_counts_from_its_beginning():
    """
    What was claimed that often by processes that died is dead when its last lease is over.
    """
    shop = Shop(retry=QUICK, fast_path=False)
    with closing(shop):
        shop.sell(Counted(1))
        for attempt in range(1, 4):
            (claimed,) = eventually(lambda: shop.outbox.claim(10, 0.01))
            assert attempt == claimed.attempts
        shop.relay.start(poll=(0.01, 0.02))
        eventually(lambda: shop.outbox.backlog().dead == 1)

    assert [] == shop.published()
    assert "attempted 3 times" in shop.outbox.dead_letters(DeadLetterSelection())[0].error


def test_each_topic_has_its_own_policy():
    """
    The other one is tried on.
    """
    retries = cqrs.RetryPolicies(default=cqrs.RetryPolicy(first=30), targets={"counts": cqrs.RetryPolicy(attempts=1)})
    shop = Shop(PickyBroker(lambda _: cqrs.MessageRejected("no")), retry=retries)
    with closing(shop):
        shop.sell(Counted(1), Sold("ada", 2))
        eventually(lambda: shop.outbox.backlog().dead == 1)
        eventually(lambda: not any(target.pending for target in shop.outbox.backlog().targets))

    assert {("counts", 1), ("sales", 0)} == {(each.target, each.dead) for each in shop.outbox.backlog().targets}


@pytest.mark.parametrize("wrong", [3, "often", {"counts": cqrs.RetryPolicy()}])
def test_retries_that_are_none_are_refused(wrong):
    """
    When the mediator is made.
    """
    with pytest.raises(cqrs.ConfigurationError, match="retry must be"):
        cqrs.bootstrap(source="tests", outbox=MemoryOutbox(), retry=wrong)
