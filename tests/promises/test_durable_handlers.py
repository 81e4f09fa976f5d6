"""A durable handler is written down in the transaction and runs after the commit; only one that failed runs again."""

from __future__ import annotations

import threading

import pytest

import cqrs_sync as cqrs
from cqrs_sync import context
from cqrs_sync.broker import IncomingMessage
from cqrs_sync.memory import MemoryOutbox
from cqrs_sync.outbox import DeadLetterSelection
from cqrs_sync.testing import record
from tests.promises.outbox_fixtures import Counted, Packed, Ran, Sell, Shipped, Shop, Sold, attempts_in, closing
from tests.waiting import eventually

QUICK = cqrs.RetryPolicy(attempts=3, first=0.01, ceiling=0.02)
DURABLE = cqrs.Phase.DURABLE


@pytest.fixture
def events():
    return cqrs.EventMap()


@pytest.fixture
def ran():
    return Ran()


def noting(events, ran, event_type, *names):
    """Bind durable handlers that note what they are given."""
    for name in names:
        events.bind(event_type, lambda event, name=name: ran.note(name, event.number), phase=DURABLE, name=name)


def test_it_runs_once_after_the_commit_on_the_pool(events, ran):
    """
    With the event that was raised.
    """
    threads = []
    noting(events, ran, Packed, "label")
    events.bind(Packed, lambda event: threads.append(threading.current_thread().name), phase=DURABLE, name="where")
    shop = Shop(events=events)
    with closing(shop):
        with shop.transactions.atomic():
            shop.sell(Packed("ada", 7))
            assert [] == ran.calls
        eventually(lambda: shop.waiting() == 0)

    assert [("label", 7)] == ran.calls
    assert threads[0].startswith("cqrs_")


def test_it_never_runs_after_a_rollback(events, ran):
    """
    Nor is anything left of it.
    """
    noting(events, ran, Packed, "label")
    shop = Shop(events=events)
    with closing(shop):
        with pytest.raises(ValueError, match="not sold"):
            shop.sell(Packed("ada", 7), fails=True)
        shop.sell(Packed("ada", 8))
        eventually(lambda: shop.waiting() == 0)

    assert [("label", 8)] == ran.calls


def test_only_the_handler_that_failed_runs_again(events, ran):
    """
    Its siblings have done what they had to.
    """
    noting(events, ran, Packed, "first", "third")

    @events.bind(phase=DURABLE, name="second")
    def second(event: Packed) -> None:
        ran.note("second", event.number)
        if len(ran.of("second")) < 3:
            raise ConnectionError("not yet")

    shop = Shop(events=events, retry=QUICK)
    with closing(shop):
        shop.sell(Packed("ada", 7))
        eventually(lambda: shop.waiting() == 0)

    assert ([7], [7, 7, 7], [7]) == (ran.of("first"), ran.of("second"), ran.of("third"))


def test_a_handler_that_fails_too_often_is_parked_with_its_reason(events, ran):
    """
    And runs when it is replayed.
    """
    broken = [True]

    @events.bind(phase=DURABLE, name="mail")
    def mail(event: Shipped) -> None:
        if broken[0]:
            raise ConnectionError("no mail server at 10.0.0.7")
        ran.note("mail", event.number)

    shop = Shop(events=events, retry=QUICK)
    with closing(shop):
        shop.sell(Shipped(1))
        eventually(lambda: shop.outbox.backlog().dead == 1)
        (dead,) = shop.outbox.dead_letters(DeadLetterSelection(target="mail"))
        assert ("mail", 3, "ConnectionError: no mail server at 10.0.0.7") == (dead.handler, dead.attempts, dead.error)
        broken[0] = False
        assert 1 == shop.outbox.replay(DeadLetterSelection(reason=dead.reason))
        shop.relay.wake()
        eventually(lambda: ran.calls == [("mail", 1)])


@pytest.mark.parametrize(
    ("named", "attempts"), [({}, 2), ({"mail": cqrs.RetryPolicy(attempts=4, first=0.01)}, 4), ({"orders": QUICK}, 2)]
)
def test_a_handler_may_have_a_retry_policy_and_settings_of_the_operator_come_first(events, ran, named, attempts):
    @events.durable("mail", retry=cqrs.RetryPolicy(attempts=2, first=0.01))
    def mail(event: Shipped) -> None:
        ran.note("mail", event.number)
        raise ConnectionError("no mail server")

    shop = Shop(events=events, retry=cqrs.RetryPolicies(QUICK, targets=named))
    with closing(shop):
        shop.sell(Shipped(1))
        eventually(lambda: shop.outbox.backlog().dead == 1)

    assert attempts == len(ran.of("mail"))


def test_a_handler_may_say_that_another_attempt_is_of_no_use(events, ran):
    """
    Then its event is a dead letter at once.
    """

    @events.bind(phase=DURABLE, name="mail")
    def mail(event: Shipped) -> None:
        ran.note("mail", event.number)
        raise cqrs.PermanentError("this order was cancelled")

    shop = Shop(events=events)
    with closing(shop):
        shop.sell(Shipped(1))
        eventually(lambda: shop.outbox.backlog().dead == 1)

    assert [1] == ran.of("mail")


def test_a_handler_may_say_how_long_to_wait(events, ran):
    @events.bind(phase=DURABLE, name="mail")
    def mail(event: Shipped) -> None:
        ran.note("mail", event.number)
        raise cqrs.TemporaryError("the limit is reached", after=30)

    shop = Shop(events=events, retry=QUICK)
    with closing(shop):
        shop.sell(Shipped(1))
        eventually(lambda: (shop.outbox.next_due(["mail"]) or 0) > 25)

    assert [1] == ran.of("mail")


def test_a_delivery_whose_failure_cannot_be_judged_is_settled_as_failed(events, ran):
    """
    Its lease would be renewed for as long as the process lives.
    """

    @events.bind(phase=DURABLE, name="mail")
    def mail(event: Shipped) -> None:
        ran.note("mail", event.number)
        error = cqrs.TemporaryError("the limit is reached")
        error.after = "soon"
        raise error

    shop = Shop(events=events, retry=QUICK)
    with closing(shop):
        shop.sell(Shipped(1))
        eventually(lambda: shop.outbox.backlog().dead == 1)

    assert [1] * 3 == ran.of("mail")


def test_a_delivery_is_settled_as_failed_if_its_retry_policy_raises(events, ran):
    class Broken(cqrs.RetryPolicy):
        def delay(self, attempts, error=None):
            raise ValueError("no delay")

    @events.bind(phase=DURABLE, name="mail")
    def mail(event: Shipped) -> None:
        raise cqrs.TemporaryError("the limit is reached")

    shop = Shop(events=events, retry=Broken())
    with closing(shop):
        shop.sell(Shipped(1))
        # Not the end of the lease.
        eventually(lambda: 0.5 < (shop.outbox.next_due(["mail"]) or 0) < 5)


def test_the_log_tells_where_a_handler_failed(events, ran, caplog):
    """
    In its own words, with a traceback for the first attempt and the last one: nothing else says which line it was.
    """

    @events.bind(phase=DURABLE, name="mail")
    def mail(event: Shipped) -> None:
        raise KeyError("address of " + str(event.number))

    shop = Shop(events=events, retry=QUICK)
    with closing(shop):
        shop.sell(Shipped(1))
        eventually(lambda: shop.outbox.backlog().dead == 1)

    told = [record for record in caplog.records if record.name == "cqrs_sync.relay.settlement"]
    assert 3 == sum("KeyError: 'address of 1'" in record.getMessage() for record in told)
    assert [True, False, True] == [bool(record.exc_info) for record in told]


def test_an_error_that_cannot_be_shown_is_a_failure_as_any(events, ran):
    """
    It costs no place on the pool, and its delivery is dead in the end.
    """

    class Mute(Exception):
        def __str__(self):
            raise ValueError("nothing to say")

    @events.bind(phase=DURABLE, name="mail")
    def mail(event: Shipped) -> None:
        if event.number < 2:
            raise Mute
        ran.note("mail", event.number)

    shop = Shop(events=events, retry=QUICK, threads=2)
    with closing(shop):
        shop.sell(*(Shipped(number) for number in range(5)))
        eventually(lambda: (shop.outbox.backlog().dead, shop.waiting()) == (2, 0))

    assert [2, 3, 4] == sorted(ran.of("mail"))
    assert {"Mute, which cannot be shown"} == {dead.error for dead in shop.outbox.dead_letters(DeadLetterSelection())}


def test_a_handler_whose_processes_died_too_often_is_parked(events, ran):
    """
    It is not run again, to end one more.
    """
    noting(events, ran, Shipped, "deadly")
    shop = Shop(events=events, retry=QUICK, fast_path=False)
    with closing(shop):
        shop.sell(Shipped(1))
        for _ in range(3):
            eventually(lambda: shop.outbox.claim(1, 0.01, handlers=["deadly"]))
        shop.relay.start(poll=(0.01, 0.02))
        eventually(lambda: shop.outbox.backlog().dead == 1)

    assert [] == ran.calls


def test_last_attempts_are_made_one_at_a_time(events, ran):
    """
    A handler that ends its process takes no other along for good.
    """
    running, most = [], []

    def run(name, event):
        running.append(name)
        most.append(len(running))
        # Long enough for another one to begin, if it may.
        threading.Event().wait(0.05)
        running.remove(name)
        ran.note(name, event.number)

    for name in ("first", "second", "third"):
        events.bind(Shipped, lambda event, name=name: run(name, event), phase=DURABLE, name=name)
    shop = Shop(events=events, retry=QUICK, fast_path=False)
    with closing(shop):
        shop.sell(Shipped(1))
        for _ in range(2):
            eventually(lambda: len(shop.outbox.claim(10, 0.02, handlers=["first", "second", "third"])) == 3)
        shop.relay.start(poll=(0.01, 0.02))
        eventually(lambda: shop.waiting() == 0, timeout=20)

    assert ["first", "second", "third"] == sorted(name for name, _ in ran.calls)
    assert [1, 1, 1] == most


def test_another_process_runs_what_this_one_did_not(events, ran):
    """
    A relay that has the same handlers.
    """
    noting(events, ran, Packed, "label")
    outbox = MemoryOutbox()
    writer, relay = (
        Shop(outbox=outbox, events=events, fast_path=False),
        Shop(outbox=outbox, events=events, fast_path=False),
    )
    with closing(writer, relay):
        writer.sell(Packed("ada", 1))
        relay.relay.start(poll=(0.01, 0.02))
        eventually(lambda: ran.calls == [("label", 1)])


def test_what_a_build_does_not_know_waits_and_costs_no_attempt(events, ran):
    """
    For one that knows it: a handler, or an event.
    """
    noting(events, ran, Packed, "label")
    noting(events, ran, Shipped, "mail")
    outbox = MemoryOutbox()
    old_events = cqrs.EventMap()
    noting(old_events, ran, Packed, "mail")
    new, old = (
        Shop(outbox=outbox, events=events, fast_path=False),
        Shop(outbox=outbox, events=old_events, fast_path=False),
    )
    with closing(new, old):
        new.sell(Packed("ada", 1), Shipped(2))
        old.relay.start(poll=(0.01, 0.02))
        eventually(lambda: any(target.tried for target in outbox.backlog().targets))
        eventually(lambda: not outbox.claim(1, 0.01, handlers=["mail"]))
    assert [] == ran.calls
    # Nobody has it now, and nobody has spent an attempt.
    assert {"label": [0], "mail": [0]} == attempts_in(outbox)


def test_a_notification_is_published_and_handled(events, ran):
    """
    As one message with two deliveries: neither waits for the other.
    """
    noting(events, ran, Sold, "points")
    shop = Shop(events=events)
    shop.broker.fail_with = cqrs.BrokerUnavailable("gone")
    with closing(shop):
        shop.sell(Sold("ada", 3))
        eventually(lambda: ran.calls == [("points", 3)])
        shop.broker.fail_with = None
        eventually(lambda: shop.published() == [3], timeout=20)


def test_handlers_keep_the_order_of_a_key(events, ran):
    """
    One after the other for each key, side by side for others.
    """
    noting(events, ran, Packed, "label")
    shop = Shop(events=events, threads=8)
    with closing(shop):
        for number in range(30):
            shop.sell(Packed("ada", number), Packed("bob", 100 + number))
        eventually(lambda: shop.waiting() == 0)

    numbers = ran.of("label")
    assert list(range(30)) == [number for number in numbers if number < 100]
    assert list(range(100, 130)) == [number for number in numbers if number >= 100]


def test_a_slow_handler_holds_up_no_other(events, ran):
    """
    As long as the pool has a thread.
    """
    go_on = threading.Event()

    @events.bind(phase=DURABLE, name="slow")
    def slow(event: Shipped) -> None:
        assert go_on.wait(20)
        ran.note("slow", event.number)

    noting(events, ran, Packed, "label")
    shop = Shop(events=events, threads=2)
    with closing(shop):
        shop.sell(Shipped(1))
        for number in range(20):
            shop.sell(Packed("ada", number))
        eventually(lambda: len(ran.of("label")) == 20)
        go_on.set()
        eventually(lambda: shop.waiting() == 0)


def test_what_runs_for_longer_than_a_lease_is_left_to_run(events, ran):
    """
    Nobody else gets it meanwhile.
    """
    go_on = threading.Event()

    @events.bind(phase=DURABLE, name="slow")
    def slow(event: Shipped) -> None:
        ran.note("slow", event.number)
        assert go_on.wait(20)

    outbox = MemoryOutbox()
    shops = [Shop(outbox=outbox, events=events, fast_path=False) for _ in range(2)]
    with closing(*shops):
        shops[0].sell(Shipped(1))
        for shop in shops:
            shop.relay.start(poll=(0.01, 0.02), lease=1.0)
        eventually(lambda: ran.calls)
        renewals = []
        renew = outbox.renew
        outbox.renew = lambda *arguments: renewals.append(arguments) or renew(*arguments)
        eventually(lambda: len(renewals) >= 4)
        go_on.set()
        eventually(lambda: outbox.backlog().waiting == 0)
    assert [("slow", 1)] == ran.calls


def test_what_it_raises_follows_and_carries_where_it_came_from(events, ran):
    """
    Its correlation, and as its cause the message it was stored as.
    """
    carried = []

    @events.bind(phase=DURABLE, name="label")
    def label(event: Packed) -> None:
        carried.append(dict(cqrs.current_attributes()))
        cqrs.raise_event(Plain(event.number))

    @events.bind
    def plain(event: Plain) -> None:
        carried.append(dict(cqrs.current_attributes()))
        ran.note("plain", event.number)

    shop = Shop(events=events)
    with closing(shop), context.message_attributes(correlationid="c-1", tenant="acme"):
        shop.sell(Packed("ada", 7))
        eventually(lambda: ran.calls == [("plain", 7)])

    assert [("c-1", "acme")] * 2 == [(each["correlationid"], each["tenant"]) for each in carried]
    assert carried[0]["causationid"] == carried[1]["causationid"]


def test_a_follow_up_that_fails_runs_no_durable_handler_again(events, ran, caplog):
    """
    It is logged: the durable handler has done what it had to.
    """

    @events.bind(phase=DURABLE, name="label")
    def label(event: Packed) -> None:
        ran.note("label", event.number)
        cqrs.raise_event(Plain(event.number))

    @events.bind
    def plain(event: Plain) -> None:
        raise ValueError("not my day")

    shop = Shop(events=events, retry=QUICK)
    with closing(shop):
        shop.sell(Packed("ada", 7))
        eventually(lambda: shop.waiting() == 0)

    assert [("label", 7)] == ran.calls
    assert "plain failed while handling Plain" in caplog.text


def test_it_receives_events_of_subclasses(events, ran):
    """
    Also in a process that has never seen one.
    """
    noting(events, ran, Packed, "label")
    shop = Shop(events=events)
    with closing(shop):
        shop.sell(PackedTwice("ada", 7))
        eventually(lambda: ran.calls == [("label", 7)])


def test_a_middleware_is_around_it(events, ran):
    """
    As around any handler of that event.
    """
    seen = []

    def note(message, call_next):
        seen.append(type(message).__name__)
        return call_next(message)

    noting(events, ran, Packed, "label")
    shop = Shop(events=events, middleware=[note])
    with closing(shop):
        shop.sell(Packed("ada", 7))
        eventually(lambda: shop.waiting() == 0)

    assert ["Sell", "Packed"] == seen


def test_one_that_was_received_runs_before_the_message_is_acknowledged(events, ran):
    """
    The broker keeps the message until it has: nothing is written down once more.
    """
    noting(events, ran, Sold, "points")
    shop = Shop(events=events, fast_path=False)
    with closing(shop):
        shop.sell(Sold("ada", 3))
        (claimed,) = shop.outbox.claim(10, 30)
        message = claimed.message
        shop.mediator.receive(
            IncomingMessage(topic=message.topic, body=message.body, key=message.key, attributes=message.attributes)
        )
        backlog = {(target.kind, target.target): target.pending for target in shop.outbox.backlog().targets}

    assert [3] == ran.of("points")
    assert 1 == backlog["handler", "points"]


def test_without_an_outbox_it_is_an_error(events, ran):
    """
    Which fails the command, and names the way out.
    """
    noting(events, ran, Packed, "label")
    requests = cqrs.RequestMap()
    requests.bind(Sell, lambda request: [cqrs.raise_event(event) for event in request.events])
    with (
        cqrs.bootstrap(requests, events) as mediator,
        pytest.raises(cqrs.ConfigurationError, match="give bootstrap an outbox"),
    ):
        mediator.send(Sell((Packed("ada"),)))


@pytest.mark.parametrize(
    ("event_type", "keywords", "words"),
    [
        (Packed, {"phase": DURABLE}, "has no stable name for other processes to find it by"),
        (Packed, {"phase": DURABLE, "name": ""}, "must be one line"),
        (Packed, {"phase": DURABLE, "name": "two\nlines"}, "must be one line"),
        (Packed, {"phase": DURABLE, "name": "x" * 300}, "must be one line"),
        (Packed, {"name": "two\nlines"}, "must be one line"),
    ],
)
def test_a_wrong_binding_is_refused_when_it_is_bound(events, event_type, keywords, words):
    """
    Not when the first process dies.
    """
    with pytest.raises(cqrs.InvalidBinding, match=words):
        events.bind(event_type, print, **keywords)


def test_an_event_without_a_name_cannot_be_stored(events):
    """
    The error says what to write.
    """
    with pytest.raises(cqrs.InvalidBinding, match=r"Plain has no stable name.*name=\"...\""):
        events.bind(Plain, print, phase=DURABLE, name="label")


def test_a_name_is_that_of_one_handler(events):
    """
    Two would run in each other's place.
    """
    events.bind(Packed, print, phase=DURABLE, name="label")
    events.bind(Shipped, print, phase=DURABLE, name="label")
    with pytest.raises(cqrs.AlreadyBound, match="is named 'label' already"):
        events.bind(Sold, repr, phase=DURABLE, name="label")


def test_a_recorder_runs_them_at_once(events, ran):
    """
    Nothing is written down in a test that records, and failures come out of `send`.
    """
    noting(events, ran, Packed, "label")
    shop = Shop(events=events, fast_path=False)
    with closing(shop), record(shop.mediator) as recorder:
        shop.sell(Packed("ada", 7), Counted(1))
        assert [("label", 7)] == ran.calls
        recorder.assert_published(Counted(1))
        assert 0 == shop.waiting()


def test_what_waits_for_a_thread_is_given_back_when_a_relay_stops(events, ran):
    """
    And what runs is finished.
    """
    begun, go_on = threading.Event(), threading.Event()

    @events.bind(phase=DURABLE, name="slow")
    def slow(event: Shipped) -> None:
        begun.set()
        assert go_on.wait(20)
        ran.note("slow", event.number)

    shop = Shop(events=events, fast_path=False, threads=1)
    with closing(shop):
        for number in range(5):
            shop.sell(Shipped(number))
        shop.relay.start(poll=(0.01, 0.02))
        assert begun.wait(10)
        stopping = threading.Thread(target=shop.relay.close, args=(20,))
        stopping.start()
        go_on.set()
        stopping.join(20)
        assert [("slow", 0)] == ran.calls
        assert {"slow": [0] * 4} == attempts_in(shop.outbox)
        assert 4 == shop.waiting()


def test_a_relay_that_leaves_a_handler_running_says_so(events, ran):
    """
    When its time is over.
    """
    begun, go_on = threading.Event(), threading.Event()

    @events.bind(phase=DURABLE, name="slow")
    def slow(event: Shipped) -> None:
        begun.set()
        assert go_on.wait(20)

    shop = Shop(events=events, fast_path=False)
    with closing(shop):
        shop.sell(Shipped(1))
        shop.relay.start(poll=(0.01, 0.02))
        assert begun.wait(10)
        assert not shop.relay.close(0.1)
        go_on.set()


def test_what_a_full_pool_has_not_begun_is_given_back_when_a_relay_stops(events, ran):
    """
    Others use the pool as well.
    """
    begun, go_on = threading.Event(), threading.Event()

    @events.bind
    def busy(event: Plain) -> None:
        begun.set()
        assert go_on.wait(20)

    noting(events, ran, Shipped, "label")
    shop = Shop(events=events, fast_path=False, threads=1)
    with closing(shop):
        # With a deadline the caller waits and does not help.
        sender = threading.Thread(target=shop.mediator.publish, args=(Plain(1),), kwargs={"timeout": 30})
        sender.start()
        assert begun.wait(10)
        shop.sell(Shipped(1))
        shop.relay.start(poll=(0.01, 0.02))
        eventually(lambda: shop.outbox.next_due(["label"]) not in (None, 0.0))
        stopping = threading.Thread(target=shop.relay.close, args=(20,))
        stopping.start()
        eventually(lambda: not shop.relay._threads)
        go_on.set()
        stopping.join(20)
        sender.join(20)

        assert [] == ran.calls
        assert {"label": [0]} == attempts_in(shop.outbox)


class Plain(cqrs.DomainEvent):
    """An event that is never stored."""

    def __init__(self, number: int) -> None:
        self.number = number


class PackedTwice(Packed, name="packed.twice"):
    """A subclass that nothing is bound to."""


def test_one_that_takes_longer_than_its_lease_stays_claimed_without_a_pool_as_well(events, ran):
    """
    With `SameThread` it runs in a thread of the relay's, which is not the one that renews.
    """
    begun, release = threading.Semaphore(0), threading.Event()

    def slow(event):
        ran.note("slow", event.number)
        begun.release()
        release.wait(20)

    events.bind(Packed, slow, phase=DURABLE, name="slow")
    shop = Shop(events=events, threads=cqrs.SameThread(), fast_path=False)
    with closing(shop):
        shop.sell(Packed("ada", 7))
        shop.relay.start(lease=1, poll=(0.05, 0.1))
        assert begun.acquire(timeout=10)
        # Two leases: somebody else would have it by now.
        assert not begun.acquire(timeout=2.5)
        assert () == tuple(shop.outbox.claim(10, 30, handlers=["slow"]))
        release.set()
        eventually(lambda: shop.waiting() == 0)

    assert [7] == ran.of("slow")
