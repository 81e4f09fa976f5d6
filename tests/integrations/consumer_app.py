"""
An application that consumes, `tests.integrations.consumer_app:mediator`; its environment says what it is like.

It publishes to itself, through a broker in memory, or reads from `LETTERS_BROKER` on `LETTERS_EXCHANGE`. As many
messages as `LETTERS_COUNT` are there at first. What its handler does, `LETTERS_FAULT`: `hangs`, `hangs-first` at the
first message, `waits` a moment, `grows`; `stays` is a thread that keeps the process, `refused` a broker that refuses
the group.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from pathlib import Path

from attrs import frozen

import cqrs_sync as cqrs
from cqrs_sync.broker import Group
from cqrs_sync.consumer import Consumer
from cqrs_sync.errors import ConfigurationError
from cqrs_sync.memory import MemoryBroker

FAULTS = os.environ.get("LETTERS_FAULT", "").split(",")
COUNT = int(os.environ.get("LETTERS_COUNT", "0"))
GROUP = os.environ.get("LETTERS_GROUP", "post")


@frozen
class Written(cqrs.NotificationEvent, topic="letters", name="letter.written", key="street"):
    street: str
    number: int


def say(*words: object) -> None:
    """Tell the test, which reads line by line, as long as it does."""
    if "JSON" not in os.environ.get("LETTERS_SAYS", ""):
        with suppress(BrokenPipeError):
            sys.stdout.write(" ".join(map(str, words)) + "\n")
            sys.stdout.flush()


events = cqrs.EventMap()
_kept: list[bytes] = []


def deliver(event: Written) -> None:
    say("begun", event.number)
    if "hangs" in FAULTS or ("hangs-first" in FAULTS and event.number == 0):
        threading.Event().wait()
    if "grows" in FAULTS:
        _kept.append(b"x" * 2**24)
    if "waits" in FAULTS:
        threading.Event().wait(0.02)
    while (gate := os.environ.get("LETTERS_GATE")) and Path(gate).exists():
        threading.Event().wait(0.01)
    say("done", event.number)


events.bind(Written, deliver)


class Refusing(MemoryBroker):
    """Has a queue of this name already, which is different."""

    def subscribe(self, group, /):
        raise ConfigurationError(f"the queue of {group.name!r} is different")


def _broker() -> cqrs.MessageBroker:
    url = os.environ.get("LETTERS_BROKER")
    if url:
        from cqrs_sync.integrations.rabbitmq import RabbitMQBroker  # noqa: PLC0415 -- only where it is asked for

        return RabbitMQBroker(url, exchange=os.environ["LETTERS_EXCHANGE"])
    return Refusing() if "refused" in FAULTS else MemoryBroker()


def mediator() -> cqrs.Mediator:
    broker = _broker()
    if COUNT:
        # Messages wait for a group from its first subscription on.
        broker.subscribe(Group(GROUP, ["letters"])).close()
        writer = cqrs.bootstrap(source="tests", broker=broker)
        for number in range(COUNT):
            writer.publish(Written(f"street {number % 10}", number))
        # Closing the mediator would close the broker.
        writer.wiring.threads.close()
    if "stays" in FAULTS:
        threading.Thread(target=threading.Event().wait, name="of-the-application").start()
    return cqrs.bootstrap(source="tests", events=events, broker=broker, threads=4)


def consumer() -> Consumer:
    return Consumer(mediator(), GROUP)


nothing = cqrs.bootstrap()
