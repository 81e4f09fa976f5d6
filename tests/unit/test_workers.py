"""Promises of the parts of a relay process."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
from attrs import frozen

import cqrs_sync as cqrs
from cqrs_sync.broker import GroupBacklog
from cqrs_sync.memory import MemoryOutbox
from cqrs_sync.outbox import Backlog, Outcome, Selection, TargetBacklog, Verdict
from cqrs_sync.testing.contracts.outbox import handled, published
from cqrs_sync.workers.desk import count_of, in_chunks, seconds
from cqrs_sync.workers.health import HealthFile
from cqrs_sync.workers.held import Held
from cqrs_sync.workers.purge import Purging
from cqrs_sync.workers.signals import Signals
from cqrs_sync.workers.silence import Silence
from cqrs_sync.workers.vitals import Vitals, tell_of_what_runs
from cqrs_sync.workers.worker import Errand, Gauge, Pace
from tests.consumer.conftest import Joined, Workshop
from tests.source import ROOT
from tests.waiting import eventually


def kept(*entries):
    """An outbox with these entries in it."""
    outbox = MemoryOutbox(strict=False)
    outbox.add(entries)
    return outbox


def again(claimed, after, *, counted=False):
    return [Outcome(each, Verdict.AGAIN, after=after, counted=counted) for each in claimed]


# What is held


def test_what_is_claimed_is_held_until_it_is_settled():
    """
    In whatever way it is settled.
    """
    held = Held(kept(*(published(f"{number}") for number in range(3))))
    claimed = held.claim(10, 60)
    assert claimed == held.under_way()
    held.settle([Outcome(claimed[0], Verdict.DONE), Outcome.failed(claimed[1], "bad", after=None)])
    assert [claimed[2]] == held.under_way()
    held.settle(again(claimed[2:], 0))

    assert [] == held.under_way()
    assert held.at_rest() is not None


def test_what_is_anyones_again_is_held_no_more():
    """
    By the end of its lease, which is that of the last renewal.
    """
    held = Held(kept(published("a"), handled("b", handlers=["label"])))
    held.claim(1, 0.01)
    (renewed,) = held.claim(1, 0.01, handlers=["label"])
    assert 1 == held.renew([renewed.token], 60)

    eventually(lambda: held.under_way() == [renewed])


def test_an_outbox_is_at_rest_where_nothing_is_claimed_meanwhile():
    """
    Its number changes with each claim: whoever looked before and after knows that there was none in between.
    """
    outbox = kept()
    held = Held(outbox)
    before = held.at_rest()
    assert before == held.at_rest()
    held.claim(1, 60)
    assert before != held.at_rest()
    seen = []
    outbox.claim = lambda *_, **__: seen.append(held.at_rest()) or ()
    held.claim(1, 60)

    assert [None] == seen


def test_an_outage_is_no_rest():
    """
    What did not reach the broker is under way until it is due again and a little longer; what failed otherwise is not.
    """
    held = Held(kept(published("a"), handled("b", handlers=["label"])))
    first = held.claim(1, 60)
    held.settle(again(first, 0.01))
    assert held.at_rest() is None
    eventually(lambda: held.claim(1, 60))
    held.settle([Outcome.failed(held.under_way()[0], "no such topic", after=60)])
    assert held.at_rest() is not None
    held.settle(again(held.claim(1, 60, handlers=["label"]), 30))

    assert held.at_rest() is not None


def test_a_claim_that_fails_is_over():
    """
    A database that was away is no reason never to rest.
    """
    outbox = kept()
    held = Held(outbox)

    def fail(*_, **__):
        raise cqrs.OutboxUnavailable("away")

    outbox.claim = fail
    with pytest.raises(cqrs.OutboxUnavailable):
        held.claim(1, 60)

    assert held.at_rest() is not None


def test_everything_else_is_passed_on():
    """
    It is an outbox like the one it notes.
    """
    outbox = kept(published("a"))

    assert outbox.backlog().waiting == Held(outbox).backlog().waiting == 1


# Errands


@pytest.fixture
def errand():
    started = []

    def start(do, release_connection=lambda: None):
        started.append(Errand("cqrs-test", do, release_connection))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        each.end()


def test_an_errand_is_done_again_until_it_is_done_for_good(errand):
    """
    In one thread, which lets go of its connection at the end.
    """
    pauses, threads, release_connection = [0.0, 0.0, None], set(), []

    def do():
        threads.add(threading.current_thread().name)
        return pauses.pop(0)

    errand(do, lambda: release_connection.append(1))

    eventually(lambda: release_connection)
    assert ([], {"cqrs-test"}) == (pauses, threads)


@pytest.mark.parametrize(("error", "lines"), [(cqrs.OutboxUnavailable("away"), 0), (ValueError("a bug"), 1)])
def test_an_errand_survives_what_goes_wrong(errand, caplog, monkeypatch, error, lines):
    """
    A database that is away is told of by others; anything else is told of once.
    """
    monkeypatch.setattr("cqrs_sync.workers.worker._AGAIN", 0.01)
    calls = []

    def do():
        calls.append(1)
        raise error

    errand(do)

    eventually(lambda: len(calls) > 3)
    assert lines == len([record for record in caplog.records if record.levelname != "DEBUG"])


def test_an_errand_ends_in_its_pause(errand):
    """
    At once, and so does one that pauses in between.
    """
    begun, paused = threading.Event(), []

    def do():
        begun.set()
        paused.append(running.pause(60))

    running = Errand("cqrs-test", do, lambda: None)
    running.start()
    assert begun.wait(10)
    running.end()

    eventually(lambda: paused == [True])


# Signals


def test_signals_are_noted_one_after_the_other():
    """
    And what was in force before is again afterwards.
    """
    before = signal.getsignal(signal.SIGTERM)
    with Signals() as signals:
        assert signals.wait(0) is None
        signal.raise_signal(signal.SIGTERM)
        assert signal.SIGTERM == signals.wait(0)
        signal.raise_signal(signal.SIGINT)
        assert signal.SIGINT == signals.wait(20)

    assert before == signal.getsignal(signal.SIGTERM)


def test_a_signal_wakes_whoever_waits():
    """
    Within a step, not at the end of the wait.
    """
    with Signals() as signals:
        threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGTERM]).start()
        begun = time.monotonic()

        assert signal.SIGTERM == signals.wait(30)
        assert time.monotonic() - begun < 5


def test_signals_outside_of_the_main_thread_are_not_noted():
    """
    Python takes none there.
    """
    seen = []

    def look():
        with Signals() as signals:
            seen.append(signals.wait(0))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(10)

    assert [None] == seen


def test_a_signal_ends_a_process_that_has_not_looked_at_the_last_one():
    """
    It waits for something it never gets, such as a terminal that takes no output.
    """
    program = (
        "import signal\nfrom cqrs_sync.workers.signals import Signals\n"
        "with Signals():\n    signal.raise_signal(signal.SIGTERM)\n    signal.raise_signal(signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, check=False)

    assert 130 == done.returncode


# Leaving


LEAVING = """
import atexit, sys, threading, time
from cqrs_sync.workers.worker import Deadline, leave
def words():
    print("last words", file=sys.stderr)
def met_within(seconds):
    deadline = Deadline(time.monotonic() + seconds, lambda: None)
    deadline.start()
    deadline.met(0)
"""


@pytest.mark.parametrize(
    ("program", "status", "said"),
    [
        ("Deadline(time.monotonic() + 0.2, words).start(); threading.Event().wait()", 1, "last words"),
        ("leave(3, words=lambda: threading.Event().wait())", 3, ""),
        ("leave(3, words=lambda: 1 / 0)", 3, ""),
        ("met_within(0.5); atexit.register(threading.Event().wait)", 0, "does not end"),
        ("met_within(0.2); threading.Event().wait(0.6); words(); sys.exit(4)", 4, "last words"),
    ],
    ids=["hangs", "hanging words", "failing words", "hanging hook", "goes on"],
)
def test_a_process_ends_by_its_deadline(program, status, said):
    """
    Whatever hangs in it; unless it was done in time, and goes on with something else.
    """
    done = subprocess.run(
        [sys.executable, "-c", LEAVING + program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )

    assert (status, True) == (done.returncode, said in done.stderr), done.stderr


# How far it is


def test_the_pace_is_that_of_the_last_seconds(monkeypatch):
    """
    Not the average since the beginning.
    """
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace = Pace(0.5)
    rates = []
    for delivered in (0, 1000, 1000, 1000, 1000, 1100):
        now[0] += 2.0
        rates.append(round(pace.progress(delivered, None).per_second))

    assert [0, 250, 167, 167, 0, 17] == rates


def test_a_backlog_that_takes_long_to_count_is_counted_seldom(monkeypatch):
    """
    Counting takes a twentieth of the time at most.
    """
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    class Slow:
        took = 0.0

        def backlog(self):
            now[0] += self.took
            return Backlog((), (), None)

    outbox = Slow()
    gauge = Gauge(outbox, 0.5)
    quick = gauge.look()
    outbox.took = 3.0

    assert (5.0, 60.0) == (quick, gauge.look())
    assert gauge.backlog is not None


def test_a_backlog_that_cannot_be_counted_is_not_known():
    """
    Nobody takes the last one for it.
    """

    backlogs = [Backlog((), (), None)]

    class Outbox:
        def backlog(self):
            if not backlogs:
                raise cqrs.OutboxUnavailable("away")
            return backlogs.pop()

        def release_connection(self):
            pass

    gauge = Gauge(Outbox(), 60)
    gauge.look()
    gauge.try_to_look()

    assert gauge.backlog is None


# The desk


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("1.5s", 1.5), ("15m", 900), ("12h", 43_200), ("7d", 604_800), (" 2w ", 1_209_600), ("0s", 0)],
)
def test_durations_are_read(text, expected):
    """
    As seconds, or with a unit.
    """
    assert expected == seconds(text)


@pytest.mark.parametrize("text", ["", "soon", "-1", "7 days", "1e3", "7d12h", "\u0663", "9" * 400, "9999w"])
def test_what_is_no_duration_is_refused(text):
    """
    With what can be written.
    """
    with pytest.raises(ValueError, match="write 90s, 15m, 12h or 7d"):
        seconds(text)


@pytest.mark.parametrize(("text", "written"), [("1500ms", "1.5"), ("5 ms", "0.005"), ("2000ms", "2")])
def test_milliseconds_are_told_as_what_to_write(text, written):
    """
    Seconds, as everywhere.
    """
    with pytest.raises(ValueError, match=f"write seconds, which is {written}$"):
        seconds(text)
    assert int(text.removesuffix("ms")) == seconds(written) * 1000


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), 3),
        (Selection(reason="bad"), 2),
        (Selection(reason="gone"), 0),
        (Selection(target="orders"), 2),
        (Selection(target="orders", reason="worse"), 1),
        (Selection(target="orders", reason="bad"), 1),
        (Selection(numbers=(1, 2, 99)), 2),
    ],
)
def test_dead_deliveries_are_counted(selection, expected):
    """
    Those that are meant.
    """
    outbox = kept(published("a"), published("b"), handled("c", handlers=["label"]))
    for error, claimed in zip(("bad", "worse"), outbox.claim(2, 60), strict=True):
        outbox.settle([Outcome.failed(claimed, error, after=None)])
    outbox.settle([Outcome.failed(each, "bad", after=None) for each in outbox.claim(1, 60, handlers=["label"])])

    assert expected == count_of(outbox, selection)


def test_no_more_are_changed_than_there_were():
    """
    Those that are dead again meanwhile are left: otherwise it would never end.
    """
    asked = []

    def change(_, limit):
        asked.append(limit)
        return limit

    assert [500, 500, 200] == list(in_chunks(change, Selection(), 1200))
    assert [500, 500, 200] == asked
    assert [] == list(in_chunks(lambda *_: 0, Selection(), 1200))


def test_messages_are_purged_chunk_by_chunk():
    """
    Until there are none left that are old enough.
    """
    outbox = kept(*(published(f"{number}") for number in range(1100)))
    while claimed := outbox.claim(500, 60):
        outbox.settle([Outcome(each, Verdict.DONE) for each in claimed])

    assert [1000, 100] == list(Purging(outbox, 0, "message").chunks())


@pytest.mark.parametrize(("last", "lines"), [(0, "1500 receipt(s) purged"), (None, "receipts cannot be purged")])
def test_what_is_purged_now_and_then_leaves_time_for_others(caplog, last, lines):
    """
    It ends between two chunks when it is told to, and a database that is away is told of.
    """
    caplog.set_level(logging.INFO)

    class Store:
        def __init__(self):
            self.left = [1000, 500, last]

        def purge(self, older_than, limit):
            count = self.left.pop(0)
            if count is None:
                raise cqrs.InboxUnavailable("away")
            return count

    pauses = []
    assert 20 < Purging(Store(), 60, "receipt").do(pauses.append) < 100
    assert lines in caplog.text
    assert 2 == len(pauses)
    store = Store()
    Purging(store, 60, "receipt").do(lambda seconds: True)
    assert [500, last] == store.left


def test_a_target_backlog_adds_up():
    """
    What waits is what nobody has tried and what is tried again.
    """
    backlog = Backlog((TargetBacklog("topic", "orders", 1, 2, 3),), (("bad", 3),), 1.0)

    assert (3, 3) == (backlog.waiting, backlog.dead)


# How a consumer is


class StandIn:
    """A consumer that receives what it is told to, of a group for which messages wait."""

    def __init__(self, waiting):
        self.received = self.in_flight_count = self.rejoined = 0
        self.group = None
        self.broker = self
        self.waiting = iter(waiting)
        self.is_connected = True

    def backlog(self, group):
        return GroupBacklog({"letters": next(self.waiting)}, 0, 0)

    def rejoin(self):
        self.rejoined += 1


def looked(silence, times):
    """Let it look as often as it wants to."""
    never = threading.Event()
    for _ in range(times):
        never.wait(silence.look())


@pytest.mark.parametrize(
    ("waiting", "rejoined"),
    [
        pytest.param([5] * 30, 1, id="nothing-moves"),
        pytest.param([0] * 30, 0, id="nothing-waits"),
        pytest.param([5, 6, 7, 4] * 8, 0, id="others-receive"),
    ],
)
def test_where_messages_wait_and_none_comes_the_group_is_joined_anew_once(waiting, rejoined):
    """
    Whoever stands by for others does it once at most, and never where fewer wait than before.
    """
    consumer = StandIn(waiting)
    looked(Silence(consumer, 0.4), 20)

    assert rejoined == consumer.rejoined


def test_a_broker_that_is_away_is_no_silence():
    """
    Whoever waits for it says so, and has nothing to join.
    """
    consumer = StandIn([5] * 30)
    consumer.is_connected = False
    looked(Silence(consumer, 0.2), 15)

    assert 0 == consumer.rejoined


def test_a_process_that_was_frozen_was_not_silent(monkeypatch):
    """
    What was published meanwhile waits, and nobody could receive it.
    """
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    consumer = StandIn([0, *[5] * 30])
    silence = Silence(consumer, 10.0)
    for pause in (2.0, 2.0, 3600.0, 2.0, 2.0):
        now[0] += pause
        silence.look()
    assert 0 == consumer.rejoined
    for _ in range(5):
        now[0] += 2.0
        silence.look()

    assert 1 == consumer.rejoined


def test_each_silence_is_one_of_its_own():
    """
    Whatever has come in between; what is in hand is none.
    """
    consumer = StandIn([5] * 60)
    silence = Silence(consumer, 0.3)
    looked(silence, 10)
    consumer.in_flight_count = 1
    looked(silence, 10)
    assert 1 == consumer.rejoined
    consumer.received, consumer.in_flight_count = 1, 0
    looked(silence, 10)

    assert 2 == consumer.rejoined


def test_the_health_file_is_not_there_where_the_consumer_is_not_alive(tmp_path):
    """
    And again when it is; never after the end.
    """
    path, alive = tmp_path / "health", [True]
    facts = dict.fromkeys(("received", "handled", "delayed", "dead", "dropped", "in_hand", "running"), 0)
    health = HealthFile(
        path, lambda: Vitals("stuck", is_alive=alive[0], is_ready=False, trouble="it hangs", oldest=None, **facts)
    )
    health.start()
    assert path.exists()
    alive[0] = False
    health._renew()
    assert not path.exists()
    alive[0] = True
    health._renew()
    assert path.exists()
    health.end()
    health._renew()

    assert not path.exists()


# What is said of what was not finished


@pytest.fixture
def workshop():
    workshop = Workshop()
    yield workshop
    workshop.close()


@frozen
class Hung(cqrs.DomainEvent):
    number: int


def test_the_threads_in_which_handlers_of_its_events_run_are_shown(workshop, caplog):
    """
    Beside the thread that handles the message and waits for them.
    """
    gate = workshop.hold_up()
    consumer = workshop.consumer(Joined)
    events = cqrs.EventMap()
    events.bind(Hung, gate.__call__)
    events.bind(Hung, partial(gate.__call__))
    workshop.mediators.append(mediator := cqrs.bootstrap(events=events, threads=cqrs.ThreadPool(2, name="inner")))
    workshop.react = lambda event: mediator.events.send(Hung(event.number))
    with consumer:
        workshop.publish(Joined("m", 1))
        gate.wait_for(2)
        tell_of_what_runs(consumer, 60.0)
        gate.open()
    stacks = {each.args[0].rpartition("_")[0]: each.args[1] for each in caplog.records if "is left" in each.msg}

    assert {"cqrs", "inner"} == stacks.keys()
    assert all(" in __call__" in stack for stack in stacks.values())


def deaf_after_one(broker, goes_on):
    """Let subscriptions of this broker hang once they have handed out a message."""
    join = broker.join

    def joined(group):
        subscription = join(group)
        receive = subscription.receive_many

        def receive_many(most, timeout):
            came = receive(1, timeout)
            if came:
                subscription.receive_many = lambda *_: goes_on.wait(30) and []
            return came

        subscription.receive_many = receive_many
        return subscription

    broker.join = joined


def shown(caplog, consumer, stall):
    """The threads whose stacks are logged: the one that receives, and those of the pool."""
    caplog.clear()
    tell_of_what_runs(consumer, stall)
    threads = [each.args[0] for each in caplog.records if each.msg.startswith("the thread %s is left")]
    return sorted({"receiver" if name == "cqrs-receiver" else "pool" for name in threads})


def test_the_thread_that_receives_is_shown_only_where_it_is_at_fault(workshop, caplog):
    """
    It hangs, or no handler runs; beside a handler that hangs it would only lead astray.
    """
    gate, goes_on = workshop.hold_up(), threading.Event()
    consumer = workshop.consumer(Joined)
    deaf_after_one(workshop.broker, goes_on)
    try:
        with consumer:
            assert ["receiver"] == shown(caplog, consumer, 60.0)
            workshop.publish(Joined("m", 1))
            gate.wait_for()
            assert ["pool"] == shown(caplog, consumer, 60.0)
            eventually(lambda: consumer.health(0.2).is_receiver_hung)
            assert ["pool", "receiver"] == shown(caplog, consumer, 0.2)
            gate.open()
            goes_on.set()
    finally:
        goes_on.set()
