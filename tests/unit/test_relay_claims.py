"""What a relay has claimed and not settled is in flight."""

from __future__ import annotations

import threading
import time

import pytest

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker, MemoryOutbox
from cqrs_sync.outbox import Outcome, OutcomeKind
from cqrs_sync.relay.settlement import ClaimTracker
from cqrs_sync.testing.contracts.outbox import handled, published
from tests.promises.outbox_fixtures import Counted, Shipped, Shop, closing
from tests.waiting import eventually


def kept(*entries):
    """An outbox with these entries in it."""
    outbox = MemoryOutbox(on_no_transaction=cqrs.OnNoTransaction.OPEN)
    outbox.add(entries)
    return outbox


def again(claimed, after, *, counted=False):
    return [Outcome(each, OutcomeKind.RETRY, after=after, counted=counted) for each in claimed]


def in_flight(claims):
    return [each.claimed for each in claims.in_flight()]


def test_what_is_claimed_is_in_flight_until_it_is_settled():
    claims = ClaimTracker(kept(*(published(f"{number}") for number in range(3))))
    claimed = claims.claim(10, 60)
    assert claimed == in_flight(claims)
    claims.settle([Outcome(claimed[0], OutcomeKind.DONE), Outcome.failed(claimed[1], "bad", after=None)])
    assert [claimed[2]] == in_flight(claims)
    claims.settle(again(claimed[2:], 0))

    assert [] == in_flight(claims)
    assert claims.idle_mark() is not None
    assert 1 == claims.delivered


def test_a_delivery_is_in_flight_until_its_renewed_lease_is_over():
    claims = ClaimTracker(kept(published("a"), handled("b", handlers=["label"])))
    claims.claim(1, 0.01)
    (renewed,) = claims.claim(1, 0.01, handlers=["label"])
    claims.renew([renewed.token], 60)

    eventually(lambda: in_flight(claims) == [renewed])


def test_the_mark_of_idle_claims_changes_with_each_claim():
    outbox = kept()
    claims = ClaimTracker(outbox)
    before = claims.idle_mark()
    assert before == claims.idle_mark()
    claims.claim(1, 60)
    assert before != claims.idle_mark()
    seen = []
    outbox.claim = lambda *_, **__: seen.append(claims.idle_mark()) or ()
    claims.claim(1, 60)

    assert [None] == seen


def test_claims_are_not_idle_while_the_broker_is_out_of_reach():
    """
    A message that did not reach the broker counts until shortly after it is due again; other failures do not count.
    """
    claims = ClaimTracker(kept(published("a"), handled("b", handlers=["label"])))
    first = claims.claim(1, 60)
    claims.settle(again(first, 0.01))
    assert claims.idle_mark() is None
    eventually(lambda: claims.claim(1, 60))
    claims.settle([Outcome.failed(in_flight(claims)[0], "no such topic", after=60)])
    assert claims.idle_mark() is not None
    claims.settle(again(claims.claim(1, 60, handlers=["label"]), 30))

    assert claims.idle_mark() is not None


def test_a_claim_that_fails_leaves_nothing_in_flight():
    outbox = kept()
    claims = ClaimTracker(outbox)

    def fail(*_, **__):
        raise cqrs.OutboxUnavailable("away")

    outbox.claim = fail
    with pytest.raises(cqrs.OutboxUnavailable):
        claims.claim(1, 60)

    assert claims.idle_mark() is not None


def test_a_relay_tells_what_is_in_flight_and_in_which_thread():
    entered, release = threading.Event(), threading.Event()
    ran_in = []

    def ship(_: Shipped) -> None:
        ran_in.append(threading.get_ident())
        entered.set()
        release.wait(10)

    events = cqrs.EventMap()
    events.bind(Shipped, ship, phase=cqrs.Phase.DURABLE, name="ship")
    shop = Shop(events=events)
    with closing(shop):
        assert [] == list(shop.relay.in_flight())
        shop.sell(Shipped(1))
        assert entered.wait(5)
        (running,) = shop.relay.in_flight()
        assert ("ship", 1, ran_in[0]) == (running.claimed.target, running.claimed.attempts, running.thread)
        assert not shop.relay.is_drained()
        release.set()
        eventually(shop.relay.is_drained)

        assert [] == list(shop.relay.in_flight())


def test_a_handler_that_outlives_its_worker_counts_as_running_until_it_has_finished():
    """
    The relay that has another worker by then, or none, does not settle the delivery any more.
    """
    entered, release = threading.Event(), threading.Event()

    def ship(_: Shipped) -> None:
        entered.set()
        release.wait(10)

    events = cqrs.EventMap()
    events.bind(Shipped, ship, phase=cqrs.Phase.DURABLE, name="ship")
    shop = Shop(events=events)
    with closing(shop):
        shop.sell(Shipped(1))
        assert entered.wait(5)
        assert not shop.relay.quiesce(0.1)
        assert 1 == shop.relay.running
        release.set()
        eventually(lambda: shop.relay.running == 0)

        assert shop.relay.quiesce(0.1)


def test_a_handler_that_outlives_its_lease_counts_as_running_until_it_has_finished():
    claims = ClaimTracker(kept(handled("a", handlers=["label"])))
    (first,) = claims.claim(1, 0.01, handlers=["label"])
    claims.note_thread(first)
    eventually(lambda: not in_flight(claims))
    assert 1 == claims.running
    (second,) = claims.claim(1, 60, handlers=["label"])
    claims.note_handled(first)
    assert 1 == claims.running
    claims.note_handled(second)

    assert 0 == claims.running
    assert [second] == in_flight(claims)


def test_messages_that_another_process_has_published_are_forgotten(monkeypatch):
    """
    They did not reach the broker from here. The next claim, long after they were due, forgets them.
    """
    claims = ClaimTracker(kept(published("a")))
    claims.settle(again(claims.claim(1, 60), 0.01))
    assert claims.idle_mark() is None
    now = time.monotonic()
    with monkeypatch.context() as later:
        later.setattr(time, "monotonic", lambda: now + 10)
        assert 1 == len(ClaimTracker(claims.outbox).claim(1, 60))
        assert 0 == len(claims.claim(1, 60))

    assert claims.idle_mark() is not None


def test_a_relay_is_not_drained_while_messages_wait_for_the_broker():
    class Away(MemoryBroker):
        is_back = False

        def publish(self, messages, /, *, timeout=None):
            if not self.is_back:
                raise cqrs.BrokerUnavailable("away")
            super().publish(messages, timeout=timeout)

    shop = Shop(Away())
    with closing(shop):
        shop.sell(Counted(1))
        eventually(lambda: shop.outbox.backlog().targets[0].tried == 1)
        assert not shop.relay.is_drained()
        shop.broker.is_back = True

        eventually(shop.relay.is_drained)
