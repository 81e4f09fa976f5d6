"""Consumers on a broker in memory."""

from __future__ import annotations

import threading
from collections import defaultdict

import pytest
from attrs import frozen

import cqrs_sync as cqrs
from cqrs_sync.broker import Group
from cqrs_sync.consumer import Consumer
from cqrs_sync.memory import MemoryBroker
from cqrs_sync.memory.broker import MemorySubscription
from cqrs_sync.retry import RetryPolicy

#: Two attempts in which the key waits, and two for which the broker keeps the message.
RETRY = RetryPolicy(delays=(0.01, 0.01, 0.1, 0.2))


@frozen
class Joined(cqrs.NotificationEvent, topic="meetings", name="meeting.joined", key="meeting"):
    meeting: str
    number: int


@frozen
class Noticed(cqrs.NotificationEvent, topic="meetings", name="meeting.noticed"):
    number: int


class Gate:
    """Holds up handlers until it is opened: all of them, or those of one event."""

    def __init__(self, number: int | None) -> None:
        self.begun: list[int] = []
        self._number = number
        self._opened = threading.Event()
        self._came = threading.Semaphore(0)

    def __call__(self, event) -> None:
        if self._number in {None, event.number}:
            self.begun.append(event.number)
            self._came.release()
            self._opened.wait(30)

    def wait_for(self, count: int = 1) -> None:
        for _ in range(count):
            assert self._came.acquire(timeout=10), f"{self.begun} have begun, and {count} were to"

    def open(self) -> None:
        self._opened.set()


class RecordingBroker(MemoryBroker):
    """A broker that keeps the subscriptions of groups: closing one is what its loss looks like to a consumer."""

    def __init__(self) -> None:
        super().__init__()
        self.joined: list[MemorySubscription] = []

    def subscribe(self, group: Group, /) -> MemorySubscription:
        subscription = super().subscribe(group)
        self.joined.append(subscription)
        return subscription


class Workshop:
    """A publisher, consumers of one group, and what their handlers have seen."""

    def __init__(self) -> None:
        self.broker = RecordingBroker()
        self.publisher = cqrs.bootstrap(source="tests", broker=self.broker)
        self.seen: dict[str, list[int]] = defaultdict(list)
        self.changed = threading.Condition()
        self.react = lambda event: None
        self.consumers: list[Consumer] = []
        self.mediators = []
        self.gates: list[Gate] = []

    def handle(self, event) -> None:
        self.react(event)
        with self.changed:
            self.seen[getattr(event, "meeting", "")].append(event.number)
            self.changed.notify_all()

    def consumer(self, *types, threads=8, group="reports", inbox=None, **options) -> Consumer:
        events = cqrs.EventMap()
        for event_type in types or (Joined, Noticed):
            events.bind(event_type, self.handle)
        mediator = cqrs.bootstrap(source="tests", events=events, broker=self.broker, threads=threads, inbox=inbox)
        if "retry" not in options:
            options = {"retry": RETRY, "inline_limit": 0.01, **options}
        consumer = Consumer(mediator, group, **options)
        # Messages wait for a group from its first subscription on.
        self.broker.subscribe(consumer.group).close()
        self.consumers.append(consumer)
        self.mediators.append(mediator)
        return consumer

    def publish(self, *events) -> None:
        for event in events:
            self.publisher.publish(event)

    def hold_up(self, number: int | None = None) -> Gate:
        self.react = gate = Gate(number)
        self.gates.append(gate)
        return gate

    def waiting(self, consumer: Consumer) -> int:
        return sum(self.broker.backlog(consumer.group).waiting.values())

    def wait_for(self, count: int, timeout: float = 30.0) -> None:
        with self.changed:
            done = self.changed.wait_for(lambda: sum(map(len, self.seen.values())) >= count, timeout)
        assert done, f"{sum(map(len, self.seen.values()))} of {count} were handled within {timeout} s"

    def close(self) -> None:
        # Where a test has failed before it did so.
        for gate in self.gates:
            gate.open()
        for consumer in self.consumers:
            consumer.close(5)
        for mediator in [*self.mediators, self.publisher]:
            mediator.close()


@pytest.fixture
def workshop():
    workshop = Workshop()
    yield workshop
    workshop.close()
