"""Promises of what is told of handlers that run for too long while others make progress."""

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
from cqrs_sync.consumer import Health
from cqrs_sync.workers.overdue import Overdue
from cqrs_sync.workers.vitals import Lookout
from tests.consumer.conftest import Joined, Noticed
from tests.waiting import eventually


def told(caplog):
    return [each for each in caplog.records if each.name == "cqrs_sync.workers.overdue"]


def test_a_handler_that_hangs_is_named_with_its_stack_and_is_trouble(workshop, caplog):
    """
    While others make progress: the consumer is alive and ready. When it returns, nothing is wrong any more.
    """
    gate = workshop.hold_up(1)
    consumer = workshop.consumer(Joined)
    overdue = Overdue(consumer, 0.5)
    lookout = Lookout(consumer, 0.5, lambda: overdue.trouble)
    numbers = iter(range(2, 100_000))

    def seen(trouble):
        """How it is, once it is alive with this trouble; others make progress meanwhile."""
        workshop.publish(Joined("other", next(numbers)))
        overdue.look()
        vitals = lookout.look()
        return vitals if vitals.is_alive and vitals.trouble == trouble else None

    consumer.start()
    workshop.publish(Joined("hung", 1))
    gate.wait_for()
    eventually(lambda: seen("1 handler(s) run for more than 0.5 s") and told(caplog), pause=0.02)
    vitals = seen("1 handler(s) run for more than 0.5 s") or lookout.look()
    words = told(caplog)[0].getMessage()
    assert (logging.WARNING, True) == (told(caplog)[0].levelno, vitals.is_ready)
    assert re.match(r"Workshop.handle runs for \d+ s: 'meeting.joined' '[0-9a-f-]+'; what has its key waits", words)
    assert vitals.oldest.id in words
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
    workshop.react = lambda event: mediator.events.send(Greeted(1)) if isinstance(event, Joined) else gate(event)
    overdue = Overdue(consumer, 0.5)
    numbers = iter(range(2, 100_000))
    consumer.start()
    workshop.publish(Joined("m", 0), Noticed(1))
    gate.wait_for(3)

    def shown():
        """What is told of both; others make progress meanwhile."""
        workshop.publish(Noticed(next(numbers)))
        overdue.look()
        return len(told(caplog)) >= 2 and {each.args[2]: each.getMessage() for each in told(caplog)}

    messages = eventually(shown, pause=0.02)
    gate.open()

    assert 1 == messages["meeting.joined"].count("and a handler that it waits for is at:")
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

    def look(self, overdue, seconds, step=0.5):
        until = self.now + seconds
        while self.now < until:
            overdue.look()
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
    overdue = Overdue(consumer, 10.0)
    consumer.look(overdue, 200)
    assert [10, 20, 40, 80, 160] == pytest.approx([each.args[1] for each in told(caplog)], rel=0.1)
    consumer.items.append(consumer.item("b"))
    consumer.look(overdue, 25)
    assert ["b", "b"] == [each.args[3] for each in told(caplog)[5:]]
    consumer.items[0].begun = consumer.now
    consumer.look(overdue, 12)

    assert ["a"] == [each.args[3] for each in told(caplog)[7:]]


def test_who_was_frozen_says_nothing_of_handlers_that_could_not_run(workshop, monkeypatch, caplog):
    """
    They have as long again.
    """
    consumer = Hanging(workshop, monkeypatch)
    overdue = Overdue(consumer, 10.0)
    consumer.look(overdue, 8)
    consumer.now += 3600
    consumer.look(overdue, 9)
    assert ([], "") == (told(caplog), overdue.trouble)
    consumer.look(overdue, 3)

    assert 1 == len(told(caplog))


def test_a_process_that_is_stuck_is_left_to_say_so(workshop, monkeypatch, caplog):
    """
    Its end shows the same stacks.
    """
    consumer = Hanging(workshop, monkeypatch, is_alive=False)
    overdue = Overdue(consumer, 10.0)
    consumer.look(overdue, 30)
    assert [] == told(caplog)
    consumer.is_alive = True
    consumer.look(overdue, 1)

    assert 1 == len(told(caplog))


def test_what_was_finished_a_moment_ago_is_not_told_of(workshop, monkeypatch, caplog):
    """
    Its thread is at something else by then.
    """
    consumer = Hanging(workshop, monkeypatch)
    overdue = Overdue(consumer, 10.0)
    consumer.look(overdue, 8)
    consumer.items[0].thread = None
    consumer.look(overdue, 4)

    assert [] == told(caplog)
