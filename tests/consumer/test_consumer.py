"""A consumer handles what its group receives, and decides what becomes of what fails."""

from __future__ import annotations

import re
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace

import attrs
import pytest

import cqrs_sync as cqrs
from cqrs_sync.broker import Group, IncomingMessage
from cqrs_sync.consumer import Consumer, OnUnknownType, processor
from cqrs_sync.errors import BrokerUnavailable, ConfigurationError, PermanentError, TemporaryError
from cqrs_sync.memory import MemoryBroker, MemoryInbox, MemoryTransactions
from cqrs_sync.memory.broker import MemorySubscription
from cqrs_sync.retry import RetryPolicy
from cqrs_sync.workers.purge import Purge, purge_of_receipts
from tests.consumer.conftest import RETRY, Joined, Noticed
from tests.waiting import eventually


def joined(count, meetings=1):
    return [Joined(f"m{number % meetings}", number) for number in range(count)]


def noticed(count):
    return [Noticed(number) for number in range(count)]


def dead_letters(workshop, consumer):
    found = []
    with workshop.broker.read_dead_letters(consumer.group) as letters:
        while (delivery := letters.receive(timeout=0)) is not None:
            found.append(delivery.message)
    return found


def test_of_each_key_messages_are_handled_in_order_and_keys_side_by_side(workshop):
    together, most = [], []
    lock = threading.Lock()

    def react(event):
        with lock:
            together.append(event.meeting)
            most.append(len(together))
            assert len(together) == len(set(together))
        threading.Event().wait(0.001)
        with lock:
            together.remove(event.meeting)

    workshop.react = react
    consumer = workshop.consumer(threads=8)
    workshop.publish(*joined(400, meetings=20))
    consumer.start()
    workshop.wait_for(400)

    assert 20 == len(workshop.seen)
    assert all(numbers == sorted(numbers) for numbers in workshop.seen.values())
    assert max(most) > 2


def test_messages_without_a_key_wait_for_no_one(workshop):
    """One that takes long holds up no other."""
    gate = workshop.hold_up(0)
    consumer = workshop.consumer(threads=2)
    workshop.publish(*noticed(50))
    consumer.start()

    workshop.wait_for(49)
    gate.open()
    workshop.wait_for(50)


def test_a_slow_handler_gets_company_even_where_handlers_were_quick_so_far(workshop):
    """Quick handlers are served by few threads; a slow one among them holds up nobody for long."""
    gate = workshop.hold_up(500)
    consumer = workshop.consumer(threads=4)
    workshop.publish(*noticed(1000))
    consumer.start()

    workshop.wait_for(999, timeout=10)
    gate.open()
    workshop.wait_for(1000)


def test_as_many_are_handled_at_a_time_as_may_be_in_hand(workshop):
    """Where `prefetch` is the number of threads, a message comes for each one that is done."""
    running, release = [], threading.Semaphore(0)

    def react(event):
        running.append(event.number)
        assert release.acquire(timeout=20)
        running.remove(event.number)

    workshop.react = react
    consumer = workshop.consumer(threads=8, prefetch=8)
    workshop.publish(*[Noticed(number) for number in range(20)])
    consumer.start()

    for done in range(1, 12):
        eventually(lambda: 8 == len(running), timeout=20)
        release.release()
        workshop.wait_for(done)
    release.release(20)
    workshop.wait_for(20)


def test_a_failed_message_is_tried_again_in_its_place(workshop):
    """What comes after it with its key waits for it, others do not."""
    failures = iter([True, True])
    workshop.react = lambda event: event.number == 1 and next(failures, False) and _fail()
    consumer = workshop.consumer()
    workshop.publish(*joined(5), Joined("other", 9))
    consumer.start()
    workshop.wait_for(6)

    assert [0, 1, 2, 3, 4] == workshop.seen["m0"]
    assert 0 == consumer.counts.delayed


def test_after_the_inline_attempts_the_broker_keeps_it(workshop):
    """Meanwhile what comes after it with its key goes on, and it is not in hand."""
    failures = iter([True] * 3)
    workshop.react = lambda event: event.number == 1 and next(failures, False) and _fail()
    consumer = workshop.consumer()
    workshop.publish(*joined(5))
    consumer.start()
    workshop.wait_for(5)

    assert [0, 2, 3, 4, 1] == workshop.seen["m0"]
    assert 1 == consumer.counts.delayed


def test_the_log_shows_where_a_handler_failed_at_first_and_at_last(workshop, caplog):
    """What fails on and on fails in the same place: the attempts between are a line each."""
    workshop.react = lambda event: _fail()
    consumer = workshop.consumer(retry=RetryPolicy(delays=(0.01, 0.01)))
    workshop.publish(Noticed(1))
    consumer.start()
    eventually(lambda: consumer.counts.dead == 1, timeout=10)

    lines = [record for record in caplog.records if "meeting.noticed" in record.getMessage()]
    assert ["attempt 1", "attempt 2", "dead letter"] == [
        next(words for words in ("attempt 1", "attempt 2", "dead letter") if words in line.getMessage())
        for line in lines
    ]
    assert [True, False, True] == [line.exc_info is not None for line in lines]


def test_the_log_says_once_that_it_receives(workshop, caplog):
    """Not only that it was started: the broker may be away."""
    caplog.set_level("INFO", "cqrs_sync.consumer")
    consumer = workshop.consumer()
    workshop.publish(*joined(3))
    consumer.start()
    eventually(lambda: consumer.counts.handled == 3, timeout=10)

    assert 1 == caplog.text.count("connected: receiving messages")


def test_a_dead_letter_names_the_handler_as_its_receipt_does():
    """By its stable name, where it has one."""
    events = cqrs.EventMap()

    @events.bind(name="write-invoice")
    def write(event: Noticed) -> None:
        raise cqrs.PermanentError("no")

    broker = MemoryBroker()
    with (
        cqrs.bootstrap(source="others", broker=broker) as others,
        cqrs.bootstrap(events=events, source="tests", broker=broker) as mediator,
        Consumer(mediator, "reports") as consumer,
    ):
        eventually(lambda: consumer.health().is_ready)
        others.publish(*noticed(1))
        eventually(lambda: consumer.counts.dead == 1, timeout=10)
        (letter,) = dead_letters(SimpleNamespace(broker=broker), consumer)
    assert ("write-invoice", "write-invoice: PermanentError: no") == (letter.notes["handlers"], letter.notes["reason"])


def test_after_the_last_attempt_it_is_a_dead_letter_that_says_why(workshop):
    """With its reason, how often it was tried, where it came from and which handlers failed."""
    tries = []

    def react(event):
        if event.number == 1:
            tries.append(event)
            raise ValueError("no meeting 4711")

    workshop.react = react
    consumer = workshop.consumer()
    workshop.publish(*joined(3))
    consumer.start()
    eventually(lambda: consumer.counts.dead == 1, timeout=10)

    (letter,) = dead_letters(workshop, consumer)
    assert 5 == len(tries) == RETRY.attempts
    assert "5" == letter.notes["attempts"]
    assert "ValueError: no meeting …" in letter.notes["reason"]
    assert "ValueError: no meeting 4711" in letter.notes["error"]
    assert "Workshop.handle" in letter.notes["handlers"]
    assert ("reports", "meetings") == (letter.notes["group"], letter.topic)
    assert letter.notes["origin"]


def test_a_fatal_error_is_not_tried_again(workshop):
    tries = []

    def react(event):
        tries.append(event)
        raise PermanentError("this order was cancelled")

    workshop.react = react
    consumer = workshop.consumer()
    workshop.publish(*joined(1))
    consumer.start()
    eventually(lambda: consumer.counts.dead == 1, timeout=10)

    assert 1 == len(tries)
    assert "1" == dead_letters(workshop, consumer)[0].notes["attempts"]


def test_a_retryable_error_says_how_long_to_wait(workshop):
    begun = []

    def react(event):
        begun.append(time.monotonic())
        if len(begun) == 1:
            raise TemporaryError("the limit is reached", after=0.4)

    workshop.react = react
    consumer = workshop.consumer()
    workshop.publish(*joined(1))
    consumer.start()
    workshop.wait_for(1)

    assert begun[1] - begun[0] >= 0.4


@pytest.mark.parametrize(
    "message",
    [
        IncomingMessage("meetings", b"\xff\xfe{"),
        IncomingMessage("meetings", b"[" * 100_000, attributes={"id": "1", "source": "s", "type": "meeting.joined"}),
        IncomingMessage("meetings", b"{}", attributes={"id": "\0", "source": "s", "type": "meeting.joined"}),
        IncomingMessage("meetings", b"{}", attributes={"specversion": "1.0", "id": "1", "type": "os.system"}),
        IncomingMessage("meetings", b"{}", attributes={}, key="\0" * 500, notes={"attempts": "-9" * 9999}),
    ],
    ids=["bytes", "deep", "fields", "no-source", "nothing"],
)
def test_bad_messages_are_dead_letters_at_once_and_others_go_on(workshop, message):
    consumer = workshop.consumer()
    workshop.broker.defer([message], consumer.group, after=0)
    workshop.publish(*joined(1))
    consumer.start()
    workshop.wait_for(1)
    eventually(lambda: consumer.counts.dead == 1, timeout=10)

    letter = dead_letters(workshop, consumer)[0]
    assert message.body == letter.body
    assert "MalformedMessage" in letter.notes["reason"]


@pytest.mark.parametrize("on_unknown", list(OnUnknownType))
def test_messages_of_unknown_types_are_parked_dropped_or_dead(workshop, on_unknown):
    consumer = workshop.consumer(Noticed, on_unknown=on_unknown)
    workshop.publish(*joined(1), Noticed(1))
    consumer.start()
    workshop.wait_for(1)
    counts = {OnUnknownType.PARK: "delayed", OnUnknownType.ACK: "dropped", OnUnknownType.DEAD_LETTER: "dead"}
    eventually(lambda: getattr(consumer.counts, counts[on_unknown]) >= 1, timeout=10)
    consumer.close()

    backlog = workshop.broker.backlog(consumer.group)
    left = sum(backlog.waiting.values()) + backlog.delayed, backlog.dead
    assert {OnUnknownType.PARK: (1, 0), OnUnknownType.ACK: (0, 0), OnUnknownType.DEAD_LETTER: (0, 1)}[
        on_unknown
    ] == left


def test_what_was_parked_is_handled_by_a_build_that_knows_it(workshop):
    old = workshop.consumer(Noticed)
    workshop.publish(*joined(3))
    old.start()
    eventually(lambda: old.counts.delayed >= 3, timeout=10)
    old.close()
    workshop.consumer(Joined, Noticed).start()

    workshop.wait_for(3)


def test_an_unknown_type_is_not_parked_for_ever(workshop):
    """After a day it is a dead letter."""
    consumer = workshop.consumer(Noticed, retry=RetryPolicy(delays=(50000.0,)), inline_limit=0)
    message = IncomingMessage(
        "meetings", b"{}", attributes={"specversion": "1.0", "id": "1", "source": "s", "type": "x"}
    )
    workshop.broker.defer([attrs.evolve(message, notes={"parked": "2"})], consumer.group, after=0)
    consumer.start()

    eventually(lambda: consumer.counts.dead == 1, timeout=10)


def test_while_nothing_succeeds_one_at_a_time_is_tried_and_no_attempts_are_spent(workshop, caplog):
    """A dependency is down: few messages pay for it, looks at it grow rare, and all are handled when it is back."""
    is_down = threading.Event()
    is_down.set()

    def react(event):
        if is_down.is_set():
            raise ConnectionError("the bank does not answer")

    workshop.react = react
    consumer = workshop.consumer(threads=8, circuit_threshold=5, retry=RetryPolicy(delays=(1.0,)), inline_limit=0)
    workshop.publish(*joined(2000, meetings=500))
    consumer.start()
    eventually(lambda: failures_in_a_row(consumer) and not consumer.running(), timeout=20)
    spent, failed, begun = consumer.counts.delayed, failures_in_a_row(consumer), time.monotonic()
    eventually(lambda: failures_in_a_row(consumer) >= failed + 4, timeout=30)
    assert spent == consumer.counts.delayed
    assert time.monotonic() - begun > 0.8
    assert consumer.health(stall=10).is_alive
    is_down.clear()
    workshop.wait_for(2000)

    assert spent < 20
    assert 0 == consumer.counts.dead
    assert "circuit opened after" in caplog.text
    assert "circuit closed" in caplog.text


def test_a_poisoned_message_does_not_keep_an_outage_going(workshop):
    """Each time another one is tried: it has to fail for all of them."""
    is_down = threading.Event()
    is_down.set()

    def react(event):
        if is_down.is_set() or event.number == 0:
            raise ConnectionError("away")

    workshop.react = react
    consumer = workshop.consumer(circuit_threshold=3, retry=RetryPolicy(delays=(0.01,)))
    workshop.publish(*noticed(20))
    consumer.start()
    eventually(lambda: failures_in_a_row(consumer), timeout=10)
    is_down.clear()

    eventually(lambda: set(workshop.seen[""]) | {0} >= set(range(20)), timeout=20)
    eventually(lambda: consumer.counts.dead >= 1, timeout=20)


def test_a_handler_that_is_broken_holds_up_no_other_type(workshop):
    """Of those that wait the first one to be tried is one of a type that has not failed."""

    def react(event):
        if isinstance(event, Joined):
            _fail()

    workshop.react = react
    consumer = workshop.consumer(circuit_threshold=3, retry=RetryPolicy(delays=(60.0,)), inline_limit=60)
    workshop.publish(*joined(100, meetings=100), *noticed(5))
    consumer.start()

    workshop.wait_for(5)
    assert [*range(5)] == sorted(workshop.seen[""])


def test_what_was_not_tried_yet_is_tried_before_what_has_failed(workshop, monkeypatch):
    """A bad message, or a few of them, do not keep the next good one waiting for their turns."""
    monkeypatch.setattr(processor, "_PROBE_MOST", 0.1)
    tried = []

    def react(event):
        tried.append(event.number)
        if event.number < 8:
            _fail()

    workshop.react = react
    consumer = workshop.consumer(threads=1, circuit_threshold=3, retry=RetryPolicy(delays=(0.01,) * 50))
    workshop.publish(*noticed(8))
    consumer.start()
    eventually(lambda: len(tried) >= 10)
    workshop.publish(Noticed(8))
    eventually(lambda: consumer.received == 9)
    before = len(tried)
    workshop.wait_for(1)

    # One may have been on its way.
    assert tried.index(8) <= before + 1


def test_an_outage_is_told_to_whoever_asks_how_it_is(workshop):
    workshop.react = lambda event: _fail()
    consumer = workshop.consumer(circuit_threshold=2, retry=RetryPolicy(delays=(0.01,) * 50))
    workshop.publish(Noticed(1))
    consumer.start()

    eventually(lambda: "attempts in a row have failed" in consumer.health().trouble)
    assert consumer.health().is_ready
    workshop.react = lambda event: None
    workshop.wait_for(1)
    eventually(lambda: not consumer.health().trouble)


def test_stopping_finishes_what_runs_and_gives_back_the_rest(workshop):
    """Nothing is handled twice by whoever comes next."""
    gate = workshop.hold_up()
    consumer = workshop.consumer(threads=4)
    workshop.publish(*noticed(50))
    consumer.start()
    gate.wait_for(4)
    stopping = threading.Thread(target=consumer.close)
    stopping.start()
    stopping.join(0.5)
    assert stopping.is_alive()
    gate.open()
    stopping.join(10)
    assert 4 == consumer.counts.handled
    assert 46 == workshop.waiting(consumer)
    workshop.consumer(threads=4).start()
    workshop.wait_for(50)

    assert list(range(50)) == sorted(workshop.seen[""])


def test_a_handler_that_does_not_end_keeps_no_one_from_stopping(workshop):
    """Its message comes again, to somebody else."""
    gate = workshop.hold_up()
    consumer = workshop.consumer()
    workshop.publish(Noticed(1))
    consumer.start()
    gate.wait_for()

    assert not consumer.close(0.3)
    assert [1] == [item.delivery.message.key is None for item in consumer.running()]
    gate.open()
    assert 1 == workshop.waiting(consumer)


def test_what_is_lost_with_a_subscription_is_not_begun(workshop):
    """It is somebody else's by then: it would be handled twice."""
    gate = workshop.hold_up()
    consumer = workshop.consumer(threads=1)
    workshop.publish(*noticed(10))
    consumer.start()
    gate.wait_for()
    eventually(lambda: consumer.in_flight_count == 10, timeout=10)
    workshop.broker.joined[-1].close()
    gate.open()
    workshop.wait_for(10)
    eventually(lambda: consumer.in_flight_count == 0, timeout=10)

    assert list(range(10)) == sorted(workshop.seen[""])


def test_what_another_consumer_has_by_now_is_not_begun(workshop):
    """What was in hand and not begun when a subscription was lost is handled by the one who has it then."""
    gate = workshop.hold_up(0)
    first = workshop.consumer(Noticed, threads=1, prefetch=10)
    workshop.publish(*noticed(10))
    first.start()
    gate.wait_for()
    eventually(lambda: first.in_flight_count == 10, timeout=10)
    workshop.broker.joined[-1].close()
    workshop.react = lambda event: None
    second = workshop.consumer(Noticed, threads=1)
    second.start()
    workshop.wait_for(10)
    gate.open()
    eventually(lambda: first.in_flight_count == 0, timeout=10)
    first.close()

    assert list(range(1, 10)) == sorted(number for number in workshop.seen[""] if number)


def test_a_message_that_comes_again_while_it_is_handled_is_not_handled_twice(workshop):
    """As after a broker's time-out for a handler that takes long: the answer goes to the latest delivery."""
    gate = workshop.hold_up()
    consumer = workshop.consumer(threads=4)
    workshop.publish(Noticed(1))
    consumer.start()
    gate.wait_for()
    [item] = consumer.running()
    item.delivery.nack()
    eventually(lambda: consumer.received == 2, timeout=10)
    gate.open()
    workshop.wait_for(1)
    eventually(lambda: consumer.in_flight_count == 0, timeout=10)
    consumer.close()

    assert [1] == workshop.seen[""]
    assert 0 == workshop.waiting(consumer)


def test_a_message_that_comes_again_when_it_was_done_meanwhile_is_only_settled(workshop):
    """It was handled while its delivery was stale: whoever gives it back cannot know."""
    gate = workshop.hold_up()
    consumer = workshop.consumer(prefetch=1)
    workshop.publish(Noticed(1))
    consumer.start()
    gate.wait_for()
    workshop.broker.joined[-1].close()
    gate.open()
    eventually(lambda: consumer.received == 2 and consumer.in_flight_count == 0, timeout=10)
    consumer.close()

    assert [1] == workshop.seen[""]
    assert 0 == workshop.waiting(consumer)


class CountingInbox(MemoryInbox):
    """Shows the attempts it counts."""

    def __init__(self):
        super().__init__(MemoryTransactions())
        self.attempts = {}

    def count_attempt(self, key):
        self.attempts[key] = self.attempts.get(key, 0) + 1
        return self.attempts[key]

    def counted_attempts(self, key):
        return self.attempts.get(key, 0)

    def uncount_attempt(self, key):
        self.attempts[key] -= 1
        if not self.attempts[key]:
            del self.attempts[key]

    def reset_attempts(self, key):
        self.attempts.pop(key, None)


def deliver_again(workshop, consumer, times=1):
    """Let the messages that wait count as delivered before, by somebody who died."""
    for _ in range(times):
        with workshop.broker.subscribe(consumer.group) as dying:
            while dying.receive(timeout=0) is not None:
                pass


def test_without_the_table_of_its_inbox_it_does_not_begin(workshop):
    """Whatever came would be charged for it: it ends, and says why."""

    class Missing(CountingInbox):
        def counted_attempts(self, key):
            raise cqrs.InboxNotInstalled("the inbox is not there: migrate")

    consumer = workshop.consumer(inbox=Missing())
    workshop.publish(Noticed(1))
    consumer.start()
    eventually(lambda: consumer.fatal_error, timeout=10)

    assert "migrate" in str(consumer.fatal_error)
    assert not consumer.health().is_alive
    assert 0 == consumer.received


def test_what_was_in_hand_when_a_process_died_is_counted_before_it_is_begun(workshop):
    inbox, counted = CountingInbox(), []

    def react(event):
        counted.extend(inbox.attempts.values())
        _fail()

    workshop.react = react
    consumer = workshop.consumer(inbox=inbox, max_crashes=5, retry=RetryPolicy(attempts=1))
    workshop.publish(Noticed(1))
    deliver_again(workshop, consumer)
    consumer.start()
    eventually(lambda: consumer.counts.dead == 1, timeout=10)

    assert [1] == counted


@pytest.mark.parametrize(
    ("delays", "inline_limit", "times"), [((0.01,) * 5, 1, 6), ((0.01,), 0, 1)], ids=["inline", "deferred"]
)
def test_what_fails_has_not_ended_its_process(workshop, delays, inline_limit, times):
    """However often it fails: each attempt is counted before it is begun, and none of them is taken for a crash."""
    inbox, counted = CountingInbox(), []

    def react(event):
        counted.extend(inbox.attempts.values())
        _fail()

    workshop.react = react
    consumer = workshop.consumer(
        inbox=inbox, max_crashes=2, retry=RetryPolicy(delays=delays), inline_limit=inline_limit
    )
    workshop.publish(Noticed(1))
    deliver_again(workshop, consumer)
    consumer.start()
    eventually(lambda: consumer.counts.dead == 1, timeout=20)

    assert [1] * times == counted
    assert {} == inbox.attempts
    assert "its process died" not in dead_letters(workshop, consumer)[0].notes["error"]


def test_what_fails_before_it_ends_its_process_is_counted_all_the_same(workshop):
    """A failure takes back that it was begun this time, and none of the times before."""
    inbox, counted = CountingInbox(), []

    def react(event):
        counted.extend(inbox.attempts.values())
        if len(counted) < 3:
            _fail()

    workshop.react = react
    consumer = workshop.consumer(inbox=inbox, retry=RetryPolicy(delays=(0.01,) * 5))
    workshop.publish(Noticed(1))
    deliver_again(workshop, consumer)
    inbox.attempts[f"tests {workshop.broker.published[0].id}"] = 1
    consumer.start()
    workshop.wait_for(1)

    assert [2, 2, 2] == counted
    eventually(lambda: inbox.attempts == {})


def test_what_is_given_back_in_an_outage_has_not_ended_its_process(workshop):
    """By each of many processes that were told to stop, and did."""
    inbox = CountingInbox()

    def react(event):
        raise ConnectionError("the bank does not answer")

    workshop.react = react
    workshop.consumer()
    workshop.publish(Noticed(1))
    for _ in range(4):
        consumer = workshop.consumer(inbox=inbox, max_crashes=2, circuit_threshold=1)
        deliver_again(workshop, consumer)
        consumer.start()
        eventually(lambda consumer=consumer: failures_in_a_row(consumer), timeout=10)
        consumer.close()

    assert {} == inbox.attempts
    assert 0 == consumer.counts.dead


def test_what_ends_each_process_that_begins_it_is_a_dead_letter(workshop):
    """After `max_crashes` times, the first of which nobody has counted; its count begins anew if it is replayed."""
    inbox = CountingInbox()
    consumer = workshop.consumer(inbox=inbox, max_crashes=3)
    workshop.publish(Noticed(1), Noticed(2))
    deliver_again(workshop, consumer)
    often, seldom = (f"tests {message.id}" for message in workshop.broker.published)
    inbox.attempts.update({often: 2, seldom: 1})
    consumer.start()
    eventually(lambda: consumer.counts.dead == 1, timeout=10)
    workshop.wait_for(1)

    assert {"": [2]} == workshop.seen
    eventually(lambda: inbox.attempts == {})
    [letter] = dead_letters(workshop, consumer)
    assert "each time its process died" in letter.notes["error"]
    assert "2" == letter.notes["attempts"]


def test_what_may_end_its_process_runs_with_nothing_beside_it(workshop):
    """So that nothing else is counted for it."""
    beside = []
    inbox = CountingInbox()
    consumer = workshop.consumer(inbox=inbox, threads=4)
    workshop.publish(*noticed(40))
    deliver_again(workshop, consumer)
    suspect = f"tests {workshop.broker.published[7].id}"
    inbox.attempts[suspect] = 2

    def react(event):
        if event.number == 7:
            beside.append(len(consumer.running()))
        threading.Event().wait(0.002)
        if event.number == 7:
            beside.append(len(consumer.running()))

    workshop.react = react
    consumer.start()
    workshop.wait_for(40)
    workshop.publish(Noticed(40))
    workshop.wait_for(41)

    assert [1, 1] == beside
    eventually(lambda: suspect not in inbox.attempts, timeout=20)


def test_what_waits_to_run_alone_is_not_counted_before_it_does(workshop):
    """Those that were beside it when it ended its process would be dead letters with it."""
    inbox, gate = CountingInbox(), workshop.hold_up()
    consumer = workshop.consumer(inbox=inbox, threads=4)
    workshop.publish(*noticed(6))
    deliver_again(workshop, consumer)
    inbox.attempts.update({f"tests {message.id}": 2 for message in workshop.broker.published})
    consumer.start()
    gate.wait_for()
    eventually(lambda: all(item.runs_alone for item in consumer._queue._by_id.values()), timeout=10)

    assert [2, 2, 2, 2, 2, 3] == sorted(inbox.attempts.values())
    gate.open()
    workshop.wait_for(6)


def test_a_broker_that_goes_away_is_waited_for(workshop):
    """Setting aside is tried again until it is back; nothing is lost."""
    handled = []
    workshop.react = lambda event: handled.append(event) or _fail()
    consumer = workshop.consumer(retry=RetryPolicy(attempts=1))
    workshop.publish(Noticed(1))
    workshop.broker.fail_with = BrokerUnavailable("away")
    consumer.start()
    eventually(lambda: handled and not consumer.running() and consumer.in_flight_count == 1, timeout=10)
    workshop.broker.fail_with = None

    eventually(lambda: consumer.counts.dead == 1, timeout=10)


def test_a_consumer_that_hangs_is_not_well(workshop):
    gate = workshop.hold_up()
    consumer = workshop.consumer()
    workshop.publish(Noticed(1))
    consumer.start()
    eventually(lambda: consumer.in_flight_count == 1, timeout=10)
    assert consumer.health(stall=20).is_alive

    eventually(lambda: "no message finished for" in consumer.health(stall=0.2).trouble, timeout=10)
    assert not consumer.health(stall=0.2).is_alive
    gate.open()
    workshop.wait_for(1)
    eventually(lambda: consumer.health(stall=0.2).is_alive, timeout=10)


def test_a_consumer_that_nobody_could_ask_for_long_has_all_its_time_again(workshop, monkeypatch):
    """Its process was frozen, with a message in hand: neither that nor the thread that receives could go on."""
    gate, ahead, clock = workshop.hold_up(), [0.0], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + ahead[0])
    consumer = workshop.consumer()
    workshop.publish(Noticed(1))
    consumer.start()
    gate.wait_for()
    assert consumer.health(stall=20).is_alive
    ahead[0] = 60.0
    frozen = consumer.health(stall=20)

    assert (True, "") == (frozen.is_alive, frozen.trouble)


@pytest.mark.parametrize(("concurrency", "lines"), [(50, 1), (8, 0), (None, 0)])
def test_more_at_a_time_than_there_are_threads_is_warned_of_at_the_start(workshop, caplog, concurrency, lines):
    """Not where it is made: who only looks at its dead letters has no use for that."""
    consumer = workshop.consumer(threads=8, concurrency=concurrency)
    assert "" == caplog.text
    consumer.start()

    words = "concurrency is 50 but the mediator has 8 thread(s), so 8 message(s) are handled at a time: use "
    assert lines == caplog.text.count(words + "bootstrap(threads=50)") == caplog.text.count("WARNING")


def test_a_consumer_that_has_not_begun_is_alive_and_not_ready(workshop):
    health = workshop.consumer().health()

    assert (True, False, "not connected to the broker") == (health.is_alive, health.is_ready, health.trouble)


def test_a_consumer_that_its_group_has_not_let_in_is_alive_and_not_ready(workshop, monkeypatch):
    """As on Kafka, where that takes seconds: who waits for it to be ready keeps those that receive until then."""
    has_joined = [False]
    monkeypatch.setattr(MemorySubscription, "has_joined", property(lambda _: has_joined[0]))
    consumer = workshop.consumer()
    consumer.start()
    eventually(lambda: consumer.is_connected)
    health = consumer.health()
    has_joined[0] = True

    assert (True, False, "connected, but not a member of the group yet") == (
        health.is_alive,
        health.is_ready,
        health.trouble,
    )
    assert consumer.health().is_ready


def test_a_pause_longer_than_any_patience_is_no_stall(workshop):
    """A message that waits in hand for its next attempt is in nobody's way."""
    handled = []
    workshop.react = lambda event: handled.append(event) or _fail()
    consumer = workshop.consumer(retry=RetryPolicy(delays=(30.0,)), inline_limit=30)
    workshop.publish(Noticed(1))
    consumer.start()
    eventually(lambda: handled and not consumer.running())
    # Longer than the stall, which is longer than a busy machine keeps a thread waiting.
    until = time.monotonic() + 2.5

    while time.monotonic() < until:
        assert consumer.health(stall=2).is_alive
        threading.Event().wait(0.05)


def test_why_nothing_is_received_is_told_to_whoever_asks(workshop):
    """Also where it is the inbox that is away: then the broker is well."""
    inbox = CountingInbox()
    inbox.counted_attempts = _be_away
    consumer = workshop.consumer(inbox=inbox)
    consumer.start()

    eventually(lambda: "the inbox cannot be reached: OperationalError" in consumer.health().trouble)
    assert not consumer.health().is_ready
    del inbox.counted_attempts
    eventually(lambda: consumer.health().is_ready)
    assert "" == consumer.health().trouble


def _be_away(*_):
    raise cqrs.InboxUnavailable("OperationalError: there is no database 'nope'")


def test_what_is_in_hand_is_tried_again_while_the_broker_is_away(workshop, monkeypatch):
    """Nobody would take it for stuck."""
    tried = []

    def react(event):
        tried.append(event.number)
        _fail()

    workshop.react = react
    consumer = workshop.consumer(retry=RetryPolicy(delays=(0.3,) * 50))
    workshop.publish(Noticed(1))
    consumer.start()
    eventually(lambda: tried)
    monkeypatch.setattr(MemorySubscription, "receive_many", _be_away)
    eventually(lambda: not consumer.is_connected)
    before = len(tried)

    eventually(lambda: len(tried) > before + 3)
    assert not consumer.is_connected


def test_a_moment_in_which_nothing_fails_is_not_the_end_of_trouble(workshop, monkeypatch, caplog):
    """A client that reports a lost connection now and then would be said to receive again in between."""
    calls, is_away = [], [True]

    def receive_many(subscription, most, timeout):
        calls.append(timeout)
        if len(calls) % 2 and is_away[0]:
            raise cqrs.BrokerUnavailable("nobody answers")
        return []

    monkeypatch.setattr(MemorySubscription, "receive_many", receive_many)
    consumer = workshop.consumer()
    consumer.start()
    eventually(lambda: len(calls) > 6)
    assert not consumer.health().is_ready
    assert "receiving messages again" not in caplog.text
    is_away[0] = False

    eventually(lambda: "receiving messages again" in caplog.text)
    eventually(lambda: consumer.health().is_ready)


def test_a_consumer_that_cannot_go_on_says_so(workshop):
    consumer = workshop.consumer()
    consumer.broker = MemoryBroker(topics=["others"])
    consumer.start()
    eventually(lambda: consumer.fatal_error is not None, timeout=10)

    assert not consumer.health().is_alive
    assert "meetings" in consumer.health().trouble


def test_one_thread_is_enough(workshop):
    """Also where handlers were to run in the caller's thread: the one that receives is not kept."""
    consumer = workshop.consumer(threads=cqrs.SameThread())
    workshop.publish(*joined(20, meetings=4))
    consumer.start()
    workshop.wait_for(20)

    assert consumer.close()


def test_where_no_thread_can_serve_that_is_tried_ever_more_rarely(workshop, caplog):
    """What is around calls fails: it is said once, nothing is lost, and messages are handled when it works."""
    tried, works = [], threading.Event()

    def around():
        tried.append(time.monotonic())
        if works.is_set():
            return nullcontext()
        raise ConnectionError("no connection is left")

    consumer = workshop.consumer(threads=cqrs.ThreadPool(4, around=around), concurrency=1)
    workshop.publish(*joined(10, meetings=5))
    consumer.start()
    eventually(lambda: len(tried) >= 5, timeout=10)
    assert tried[4] - tried[0] > 0.75
    assert not workshop.seen
    works.set()
    workshop.wait_for(10)
    eventually(lambda: "pool threads handle messages again" in caplog.text, timeout=10)

    assert 1 == caplog.text.count("no connection is left")
    assert 0 == consumer.counts.dead


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"group": ""}, "group"),
        ({"group": "a\nb"}, "group"),
        ({"topics": ("meetings", "")}, "a topic needs a name"),
        ({"topics": "meetings"}, r"are a list: write topics=\['meetings'\]"),
        ({"group": Group("reports", ["meetings"])}, r"takes the name of its group and topics="),
        ({"prefetch": 0}, "prefetch"),
        ({"concurrency": 0}, "concurrency"),
        ({"max_crashes": "5"}, "max_crashes"),
        ({"circuit_threshold": -1}, "circuit_threshold"),
    ],
)
def test_what_makes_no_consumer_is_said_at_once(workshop, options, words):
    with pytest.raises(ConfigurationError, match=words):
        workshop.consumer(**options)


class Sender:
    """A broker that publishes."""

    def publish(self, messages, /, *, timeout=None): ...

    def close(self, timeout=5.0): ...


def test_a_mediator_that_receives_nothing_makes_no_consumer():
    with pytest.raises(ConfigurationError, match=r"has no broker: give .* such as RabbitMQBroker"):
        Consumer(cqrs.bootstrap(), "reports")
    with pytest.raises(ConfigurationError, match=r"has a Sender, which only publishes: give .* such as RabbitMQBroker"):
        Consumer(cqrs.bootstrap(source="tests", broker=Sender()), "reports")
    with pytest.raises(ConfigurationError, match=r"nothing to consume: bind one .* and import the module"):
        Consumer(cqrs.bootstrap(source="tests", broker=MemoryBroker()), "reports")


def test_a_group_keeps_order_where_an_event_has_a_key(workshop):
    assert workshop.consumer(Joined).group.ordered
    assert workshop.consumer(Joined, Noticed).group.ordered
    assert not workshop.consumer(Noticed).group.ordered
    assert Group("reports", ("meetings",), (0.1, 0.2)) == workshop.consumer(Joined).group


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"retry": 3}, "retry must be a RetryPolicy"),
        ({"inline_limit": "5"}, "number of seconds"),
        ({"inline_limit": -1}, "between 0 and 60"),
        ({"inline_limit": 61}, "between 0 and 60"),
        ({"on_unknown": "park"}, "on_unknown must be an OnUnknownType"),
    ],
)
def test_options_out_of_range_are_refused(workshop, options, words):
    with pytest.raises(ConfigurationError, match=words):
        workshop.consumer(**options)


@pytest.mark.parametrize(
    ("retry", "delays"),
    [
        (RetryPolicy(delays=(0.1, 5, 10, 60, 10)), (10, 60)),
        (RetryPolicy(attempts=5, first=2), (8, 16)),
        (RetryPolicy(attempts=1), ()),
    ],
)
def test_the_broker_keeps_messages_for_delays_above_the_inline_limit(workshop, retry, delays):
    assert delays == workshop.consumer(retry=retry).group.delays


def failures_in_a_row(consumer):
    """How many attempts in a row have failed, by the health of the consumer; 0 while its circuit is closed."""
    found = re.match(r"(\d+) attempts in a row", consumer.health(stall=300).trouble)
    return int(found[1]) if found else 0


def _fail():
    raise ValueError("not today")


def test_joining_anew_loses_nothing_and_begins_nothing_twice(workshop):
    """What is in hand stays there; it comes once more, and is not begun again."""
    gate = workshop.hold_up()
    consumer = workshop.consumer(threads=2)
    workshop.publish(*joined(6, meetings=3))
    consumer.start()
    gate.wait_for(2)
    first = workshop.broker.joined[-1]
    consumer.rejoin()
    eventually(lambda: workshop.broker.joined[-1] is not first)
    gate.open()
    workshop.wait_for(6)
    assert consumer.close(5)

    assert list(range(6)) == sorted(gate.begun)
    assert 0 == workshop.waiting(consumer)


def test_receipts_are_forgotten_when_they_are_old_and_never_while_a_message_may_come_again(workshop):
    inbox = MemoryInbox(MemoryTransactions())
    consumer = workshop.consumer(inbox=inbox)
    with inbox.once("k"):
        pass
    with pytest.raises(ConfigurationError, match="172800 s at least"):
        purge_of_receipts(consumer.mediator, 3600, consumer.group.delays)
    with pytest.raises(ConfigurationError, match="1728000 s at least"):
        purge_of_receipts(consumer.mediator, 172_800, [10.0, 864_000.0 - 10.0])
    assert [] == list(purge_of_receipts(consumer.mediator, 30 * 86_400, consumer.group.delays).chunks())
    with inbox.once("k") as kept:
        assert not kept.is_first

    assert 15 < Purge(inbox, -1.0, "receipt").run(lambda seconds: False) < 100

    with inbox.once("k") as forgotten:
        assert forgotten.is_first
    with pytest.raises(ConfigurationError, match="no inbox"):
        purge_of_receipts(workshop.consumer().mediator, 30 * 86_400)
