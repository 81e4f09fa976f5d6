"""Promises of the watchdogs of a consumer: slow handlers are logged, and idle consumers join their group again."""

from __future__ import annotations

import logging
import re
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest
from attrs import frozen

import cqrs_sync as cqrs
from cqrs_sync.broker import GroupBacklog
from cqrs_sync.consumer import Health
from cqrs_sync.workers.health import take_snapshot
from cqrs_sync.workers.watchdogs import IdleWatchdog, SlowHandlerWatchdog
from tests.consumer.conftest import Joined, Noticed
from tests.waiting import eventually


def told(caplog):
    return [each for each in caplog.records if each.name == "cqrs_sync.workers.watchdogs"]


def test_a_handler_that_hangs_is_named_with_its_stack_and_is_trouble(workshop, caplog):
    """
    While others make progress: the consumer is alive and ready. When it returns, nothing is wrong any more.
    """
    gate = workshop.hold_up(1)
    consumer = workshop.consumer(Joined)
    watchdog = SlowHandlerWatchdog(consumer, 0.5)
    numbers = iter(range(2, 100_000))

    def seen(trouble):
        """How it is, once it is alive with this trouble; others make progress meanwhile."""
        workshop.publish(Joined("other", next(numbers)))
        watchdog.check()
        snapshot = take_snapshot(consumer, 0.5, watchdog)
        return snapshot if snapshot.is_alive and snapshot.trouble == trouble else None

    consumer.start()
    workshop.publish(Joined("hung", 1))
    gate.wait_for()
    eventually(lambda: seen("1 handler(s) running for more than 0.5 s") and told(caplog), pause=0.02)
    snapshot = seen("1 handler(s) running for more than 0.5 s") or take_snapshot(consumer, 0.5, watchdog)
    words = told(caplog)[0].getMessage()
    assert (logging.WARNING, True) == (told(caplog)[0].levelno, snapshot.is_ready)
    assert re.match(
        r"message 'meeting.joined' '[0-9a-f-]+' has been in handling for \d+ s \(bound handlers: Workshop.handle\); "
        "messages with its key wait",
        words,
    )
    assert snapshot.oldest.id in words
    assert re.search(r'conftest.py", line \d+, in __call__', words)
    gate.open()

    eventually(lambda: seen(""), pause=0.02)


@frozen
class Greeted(cqrs.DomainEvent):
    number: int


def test_the_handlers_that_a_message_waits_for_are_shown_too(workshop, caplog):
    """
    They run in other threads; those of other messages are left out.
    """
    gate = workshop.hold_up(1)
    consumer = workshop.consumer(Joined, Noticed)
    events = cqrs.EventMap()
    events.bind(Greeted, gate.__call__)
    events.bind(Greeted, partial(gate.__call__))
    mediator = cqrs.bootstrap(events=events, threads=2)
    workshop.mediators.append(mediator)
    workshop.react = lambda event: mediator.publish(Greeted(1)) if isinstance(event, Joined) else gate(event)
    watchdog = SlowHandlerWatchdog(consumer, 0.5)
    numbers = iter(range(2, 100_000))
    consumer.start()
    workshop.publish(Joined("m", 0), Noticed(1))
    gate.wait_for(3)

    def shown():
        """What is told of both; others make progress meanwhile."""
        workshop.publish(Noticed(next(numbers)))
        watchdog.check()
        return len(told(caplog)) >= 2 and {each.args[0]: each.getMessage() for each in told(caplog)}

    messages = eventually(shown, pause=0.02)
    gate.open()

    assert 1 == messages["meeting.joined"].count("stack of a handler that it waits for:")
    assert 2 == messages["meeting.joined"].count(" in __call__")
    assert 1 == messages["meeting.noticed"].count(" in __call__")


class Hanging:
    """A consumer that runs these items, and is well or not, by a clock that is moved."""

    def __init__(self, workshop, monkeypatch, *, is_alive=True):
        self.now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.mediator = workshop.consumer(Joined).mediator
        self.is_alive = is_alive
        self.items = [self.item("a")]

    def item(self, name):
        message = SimpleNamespace(attributes={"type": "meeting.joined", "id": name})
        return Item(SimpleNamespace(message=message), threading.get_ident(), self.now)

    def running(self):
        return list(self.items)

    def health(self, stall):
        return Health(is_alive=self.is_alive, is_ready=True)

    def look(self, watchdog, seconds, step=0.5):
        until = self.now + seconds
        while self.now < until:
            watchdog.check()
            self.now += step


class Item:
    """A message in hand."""

    def __init__(self, delivery, thread, begun):
        self.delivery, self.thread, self.begun = delivery, thread, begun


def test_it_is_told_of_ever_more_rarely(workshop, monkeypatch, caplog):
    """
    Each time its age has doubled; another one is told of for itself, and so is another attempt at it.
    """
    consumer = Hanging(workshop, monkeypatch)
    watchdog = SlowHandlerWatchdog(consumer, 10.0)
    consumer.look(watchdog, 200)
    assert [10, 20, 40, 80, 160] == pytest.approx([each.args[2] for each in told(caplog)], rel=0.1)
    consumer.items.append(consumer.item("b"))
    consumer.look(watchdog, 25)
    assert ["b", "b"] == [each.args[1] for each in told(caplog)[5:]]
    consumer.items[0].begun = consumer.now
    consumer.look(watchdog, 12)

    assert ["a"] == [each.args[1] for each in told(caplog)[7:]]


def test_who_was_frozen_says_nothing_of_handlers_that_could_not_run(workshop, monkeypatch, caplog):
    """
    They have as long again.
    """
    consumer = Hanging(workshop, monkeypatch)
    watchdog = SlowHandlerWatchdog(consumer, 10.0)
    consumer.look(watchdog, 8)
    consumer.now += 3600
    consumer.look(watchdog, 9)
    assert ([], "") == (told(caplog), watchdog.trouble)
    consumer.look(watchdog, 3)

    assert 1 == len(told(caplog))


def test_a_process_that_is_stuck_is_left_to_say_so(workshop, monkeypatch, caplog):
    """
    Its end shows the same stacks.
    """
    consumer = Hanging(workshop, monkeypatch, is_alive=False)
    watchdog = SlowHandlerWatchdog(consumer, 10.0)
    consumer.look(watchdog, 30)
    assert [] == told(caplog)
    consumer.is_alive = True
    consumer.look(watchdog, 1)

    assert 1 == len(told(caplog))


def test_what_was_finished_a_moment_ago_is_not_told_of(workshop, monkeypatch, caplog):
    """
    Its thread is at something else by then.
    """
    consumer = Hanging(workshop, monkeypatch)
    watchdog = SlowHandlerWatchdog(consumer, 10.0)
    consumer.look(watchdog, 8)
    consumer.items[0].thread = None
    consumer.look(watchdog, 4)

    assert [] == told(caplog)


# Messages wait and none comes


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


def checked(watchdog, times):
    """Let it look as often as it wants to."""
    never = threading.Event()
    for _ in range(times):
        never.wait(watchdog.check())


@pytest.mark.parametrize(
    ("waiting", "rejoined"),
    [
        pytest.param([5] * 30, 1, id="nothing-moves"),
        pytest.param([0] * 30, 0, id="nothing-waits"),
        pytest.param([5, 6, 7, 4] * 8, 0, id="others-receive"),
    ],
)
def test_where_messages_wait_and_none_comes_the_group_is_joined_again_once(waiting, rejoined):
    """
    Whoever stands by for others does it once at most, and never where fewer wait than before.
    """
    consumer = StandIn(waiting)
    checked(IdleWatchdog(consumer, 0.4), 20)

    assert rejoined == consumer.rejoined


def test_a_consumer_that_waits_for_its_broker_is_not_idle():
    """
    Whoever waits for it says so, and has nothing to join.
    """
    consumer = StandIn([5] * 30)
    consumer.is_connected = False
    checked(IdleWatchdog(consumer, 0.2), 15)

    assert 0 == consumer.rejoined


def test_a_process_that_was_frozen_was_not_idle(monkeypatch):
    """
    What was published meanwhile waits, and nobody could receive it.
    """
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    consumer = StandIn([0, *[5] * 30])
    watchdog = IdleWatchdog(consumer, 10.0)
    for pause in (2.0, 2.0, 3600.0, 2.0, 2.0):
        now[0] += pause
        watchdog.check()
    assert 0 == consumer.rejoined
    for _ in range(5):
        now[0] += 2.0
        watchdog.check()

    assert 1 == consumer.rejoined


def test_each_idle_period_is_one_of_its_own():
    """
    Whatever has come in between; what is in hand is none.
    """
    consumer = StandIn([5] * 60)
    watchdog = IdleWatchdog(consumer, 0.3)
    checked(watchdog, 10)
    consumer.in_flight_count = 1
    checked(watchdog, 10)
    assert 1 == consumer.rejoined
    consumer.received, consumer.in_flight_count = 1, 0
    checked(watchdog, 10)

    assert 2 == consumer.rejoined
