"""A shop with an outbox in memory, for the promises about what it keeps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from attrs import frozen

import cqrs_sync as cqrs
from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.memory import MemoryBroker, MemoryOutbox, MemoryTransactions


@frozen
class Sell(cqrs.Command[None]):
    """Raise these events, or fail afterwards."""

    events: tuple[cqrs.Event, ...]
    fails: bool = False


@frozen
class Sold(cqrs.NotificationEvent, topic="sales", name="sold", key="customer"):
    customer: str
    number: int = 0


@frozen
class Counted(cqrs.NotificationEvent, topic="counts", name="counted"):
    number: int = 0


@frozen
class Packed(cqrs.DomainEvent, name="packed", key="customer"):
    customer: str
    number: int = 0


@frozen
class Shipped(cqrs.DomainEvent, name="shipped"):
    number: int = 0


def attempts_in(outbox: MemoryOutbox) -> dict[str, list[int]]:
    """Return the attempts of each delivery that is not done, by its topic or handler."""
    found: dict[str, list[int]] = {}
    for _, delivery in sorted(outbox._deliveries.items()):
        found.setdefault(delivery.target, []).append(delivery.attempts)
    return found


class Shop:
    """One process: a mediator with an outbox, which it may share with others."""

    def __init__(
        self,
        broker: MemoryBroker | None = None,
        outbox: MemoryOutbox | None = None,
        *,
        events: cqrs.EventMap | None = None,
        **options: Any,
    ) -> None:
        self.broker = MemoryBroker() if broker is None else broker
        self.outbox = MemoryOutbox() if outbox is None else outbox
        self.transactions: MemoryTransactions = self.outbox.transactions
        self.requests = cqrs.RequestMap()
        self.requests.bind(sell)
        chain = cqrs.MiddlewareChain(options.pop("middleware", ())).add(self._atomic, cqrs.Command)
        self.mediator = cqrs.bootstrap(
            self.requests,
            events,
            source="tests",
            broker=self.broker,
            outbox=self.outbox,
            middleware=chain,
            threads=options.pop("threads", 4),
            **options,
        )
        assert self.mediator.relay is not None
        self.relay = self.mediator.relay

    def sell(self, *events: cqrs.Event, fails: bool = False) -> None:
        self.mediator.send(Sell(events, fails))

    def published(self) -> list[Any]:
        """The numbers of what the broker has, in order."""
        return [int(message.body.rpartition(b":")[2].rstrip(b"}")) for message in self.broker.published]

    def waiting(self) -> int:
        return self.outbox.backlog().waiting

    def _atomic(self, message: Any, call_next: Callable[[Any], Any]) -> Any:
        with self.transactions.atomic():
            return call_next(message)


def sell(request: Sell) -> None:
    for event in request.events:
        cqrs.raise_event(event)
    if request.fails:
        raise ValueError("not sold")


class PickyBroker(MemoryBroker):
    """Refuses messages, or cannot be reached for them, as long as a function says so."""

    def __init__(self, trouble: Callable[[OutgoingMessage], cqrs.DeliveryError | None]) -> None:
        super().__init__()
        self.trouble = trouble
        #: How many messages each call had.
        self.calls: list[int] = []

    def publish(self, messages: Sequence[OutgoingMessage], /, *, timeout: float | None = None) -> None:
        self.calls.append(len(messages))
        failures = [(message, error) for message in messages if (error := self.trouble(message)) is not None]
        failing = [message.id for message, _ in failures]
        super().publish([message for message in messages if message.id not in failing], timeout=timeout)
        if failures:
            raise cqrs.PublishFailed(failures)


@contextmanager
def closing(*shops: Shop) -> Iterator[None]:
    try:
        yield
    finally:
        for shop in shops:
            shop.mediator.close(5)


class Ran:
    """What durable handlers were given, by the name of the handler."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.lock = threading.Lock()

    def note(self, name: str, number: int) -> None:
        with self.lock:
            self.calls.append((name, number))

    def of(self, name: str) -> list[int]:
        return [number for known, number in self.calls if known == name]
