"""
The application of the storms: a shop whose every order is a row, an event for others, and a note.

Run as a process: `python -m tests.storms.outbox.shop writer|relay ...`. It is configured by
`SHOP_DATABASE`, `SHOP_BROKER` and `SHOP_TOPIC`; `SHOP_FAULT` says what happens to it.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import sys
import threading
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any

import sqlalchemy as sa
from attrs import frozen
from sqlalchemy.orm import Session, sessionmaker

import cqrs_sync as cqrs
from cqrs_sync.integrations.sqlalchemy import Sessions, SQLAlchemyOutbox, tables

chance = random.SystemRandom()
METADATA = sa.MetaData()
OUTBOX = tables(METADATA)
ORDERS = sa.Table(
    "shop_order",
    METADATA,
    sa.Column("writer", sa.String(20), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
)
NOTES = sa.Table(
    "shop_note",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("handler", sa.String(20), nullable=False),
    sa.Column("writer", sa.String(20), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
)


@frozen
class PlaceOrder(cqrs.Command[None]):
    writer: str
    number: int
    fails: bool = False


@frozen
class OrderPlaced(
    cqrs.NotificationEvent, topic=os.environ.get("SHOP_TOPIC", "orders"), name="order.placed", key="writer"
):
    writer: str
    number: int


def _broker(url: str) -> cqrs.MessageBroker:
    if url.startswith("amqp"):
        from cqrs_sync.integrations.rabbitmq import RabbitMQBroker  # noqa: PLC0415 -- only one of them is used

        return RabbitMQBroker(url, exchange=os.environ["SHOP_EXCHANGE"])
    from cqrs_sync.integrations.kafka import KafkaBroker  # noqa: PLC0415

    return KafkaBroker(url)


class Refused(Exception):
    """The order is rolled back."""


class Shop:
    """Everything of one process, wired."""

    def __init__(self, **options: Any) -> None:
        self.engine = sa.create_engine(os.environ["SHOP_DATABASE"], pool_size=20)
        self.sessions = Sessions(sessionmaker(self.engine))
        self.outbox = SQLAlchemyOutbox(self.sessions)
        self.requests, self.events = cqrs.RequestMap(), cqrs.EventMap()
        #: The durable handler that this process does not survive.
        self.deadly: str | None = None
        for name in filter(None, os.environ.get("SHOP_DURABLE", "").split(",")):
            self.events.bind(OrderPlaced, partial(self._note, name), phase=cqrs.Phase.DURABLE, name=name)
        container = cqrs.PunqContainer()
        container.register(Session, factory=self.sessions.current)
        self.requests.bind(PlaceOrder, self._place)
        self.mediator = cqrs.bootstrap(
            self.requests,
            self.events,
            source="tests",
            container=container,
            broker=_broker(os.environ["SHOP_BROKER"]),
            outbox=self.outbox,
            threads=int(os.environ.get("SHOP_THREADS", "4")),
            middleware=cqrs.MiddlewareChain().add(self.sessions.atomic, cqrs.Command),
            **options,
        )
        _arm(self)

    def close(self) -> None:
        """Deliver what waits, and let go of everything."""
        self.mediator.close(10)
        self.engine.dispose()

    def last(self, writer: str) -> int:
        """The number of a writer's last order, 0 where there is none."""
        with self.engine.connect() as connection:
            query = sa.select(sa.func.max(ORDERS.c.number)).where(ORDERS.c.writer == writer)
            return connection.execute(query).scalar() or 0

    def _note(self, name: str, event: OrderPlaced) -> None:
        """Be a durable handler: write down that it has run."""
        if name == self.deadly:
            _strike(signal.SIGKILL)
        with self.engine.begin() as connection:
            connection.execute(NOTES.insert().values(handler=name, writer=event.writer, number=event.number))

    def _place(self, request: PlaceOrder) -> None:
        session = self.sessions.current()
        session.execute(ORDERS.insert().values(writer=request.writer, number=request.number))
        cqrs.raise_event(OrderPlaced(request.writer, request.number))
        if request.fails:
            raise Refused
        # What is raised before a later failure is rolled back as well.
        session.execute(sa.select(1))


def write(writer: str, count: int, refused: float, pace: float, *, fast_path: bool) -> None:
    """Place orders until there are `count` of this writer, `pace` seconds apart; a share of attempts is rolled back."""
    shop = Shop(fast_path=fast_path)
    never = threading.Event()
    number = shop.last(writer)
    while number < count:
        fails = chance.random() < refused
        with suppress(Refused):
            shop.mediator.send(PlaceOrder(writer, number + 1, fails))
            number += 1
        never.wait(pace)
    shop.close()


def relay(lease: float, publishers: int) -> None:
    """Relay until SIGTERM; say so on standard output once it runs."""
    shop = Shop(fast_path=False)
    assert shop.mediator.relay is not None
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    shop.mediator.relay.start(publishers=publishers, poll=(0.02, 0.2), lease=lease)
    sys.stdout.write("relaying\n")
    sys.stdout.flush()
    # In steps: a signal that another thread gets wakes nobody, and is seen at the next one.
    while not stop.wait(0.2):
        pass
    shop.mediator.relay.close(10)
    shop.close()


def _arm(shop: Shop) -> None:
    """
    Let something happen to this process, as `SHOP_FAULT` says.

    `settle:N` kills it before it settles for the Nth time, between a publication and its
    settlement; `stop-settle:N` stops it there, `stop-claim:N` after its Nth claim;
    `handler:NAME` kills it in that durable handler.
    """
    fault, _, rest = os.environ.get("SHOP_FAULT", "").partition(":")
    if fault == "handler":
        shop.deadly = rest
    elif fault == "settle":
        _before(shop.outbox, "settle", int(rest), signal.SIGKILL)
    elif fault == "stop-settle":
        # MariaDB ends no transaction of one that is stopped: not in the middle of a claim.
        claiming = _apart(shop.outbox, "claim")
        _before(shop.outbox, "settle", int(rest), signal.SIGSTOP, claiming)
    elif fault == "stop-claim":
        _after(shop.outbox, "claim", int(rest), signal.SIGSTOP)


def _skew(seconds: float) -> None:
    """Let the clock of this process be wrong, as that of a machine may be."""
    now, now_ns = time.time, time.time_ns  # noqa: TID251 -- this is the clock that may be wrong
    time.time = lambda: now() + seconds  # noqa: TID251 -- as above
    time.time_ns = lambda: now_ns() + round(seconds * 1e9)


def _apart(target: Any, method: str) -> threading.Lock:
    """Return a lock that is held while this method runs."""
    call, lock = getattr(target, method), threading.Lock()

    def hit(*arguments: Any, **keywords: Any) -> Any:
        with lock:
            return call(*arguments, **keywords)

    setattr(target, method, hit)
    return lock


def _before(
    target: Any, method: str, times: int, number: signal.Signals, apart: AbstractContextManager[object] | None = None
) -> None:
    call, left = getattr(target, method), times

    def hit(*arguments: Any, **keywords: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            with apart or nullcontext():
                _strike(number)
        return call(*arguments, **keywords)

    setattr(target, method, hit)


def _after(target: Any, method: str, times: int, number: signal.Signals) -> None:
    call, left = getattr(target, method), times

    def hit(*arguments: Any, **keywords: Any) -> Any:
        nonlocal left
        result = call(*arguments, **keywords)
        # Only with something in hand.
        left -= bool(result)
        if left == 0 and result:
            left = -1
            _strike(number)
        return result

    setattr(target, method, hit)


def _strike(number: signal.Signals) -> None:
    sys.stdout.write(f"struck by {number.name}\n")
    sys.stdout.flush()
    os.kill(os.getpid(), number)


def main() -> None:
    """Be one of the processes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["writer", "relay"])
    parser.add_argument("--name", default="w0")
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--refused", type=float, default=0.3)
    parser.add_argument("--pace", type=float, default=0.0)
    parser.add_argument("--no-fast-path", action="store_true")
    parser.add_argument("--lease", type=float, default=30.0)
    parser.add_argument("--publishers", type=int, default=2)
    parser.add_argument("--skew", type=float, default=0.0, help="seconds by which the clock of this process is wrong")
    options = parser.parse_args()
    _skew(options.skew)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    # As `cqrs-sync relay` does: what these say of an outage is said once by the relay.
    for vendor in ("pika", "kafka"):
        logging.getLogger(vendor).setLevel(logging.CRITICAL)
    if options.role == "writer":
        write(options.name, options.count, options.refused, options.pace, fast_path=not options.no_fast_path)
    else:
        relay(options.lease, options.publishers)


if __name__ == "__main__":
    main()
