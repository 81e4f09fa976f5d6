"""
An application with an outbox, `tests.integrations.outbox_app:mediator`; its environment says what it is like.

`PARCELS_DATABASE` and `PARCELS_BROKER` are URLs, without a broker's it is in memory; `PARCELS_EXCHANGE`. What happens
to it, `PARCELS_FAULT`: `hangs` in a handler, `stays` when it is to leave, `slow` to publish.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

import sqlalchemy as sa
from attrs import frozen
from sqlalchemy.orm import sessionmaker

import cqrs_sync as cqrs
from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.integrations.rabbitmq import RabbitMQBroker
from cqrs_sync.integrations.sqlalchemy import Sessions, SQLAlchemyOutbox, begin_immediate, tables
from cqrs_sync.memory import MemoryBroker

FAULTS = os.environ.get("PARCELS_FAULT", "").split(",")
METADATA = sa.MetaData()
tables(METADATA)


@frozen
class Sent(cqrs.NotificationEvent, topic="parcels", name="parcel.sent", key="street"):
    street: str
    number: int


@frozen
class Packed(cqrs.DomainEvent, name="parcel.packed", key="street"):
    street: str
    number: int


def say(*words: object) -> None:
    """Tell the test, which reads line by line, as long as it does."""
    with suppress(BrokenPipeError):
        sys.stdout.write(" ".join(map(str, words)) + "\n")
        sys.stdout.flush()


class TalkingBroker:
    """Tells of each batch before it publishes it."""

    def __init__(self, broker: cqrs.MessageBroker) -> None:
        self._broker = broker

    def publish(self, messages: Sequence[OutgoingMessage], /, *, timeout: float | None = None) -> None:
        say("publishing", len(messages))
        if "slow" in FAULTS:
            threading.Event().wait(0.3)
        self._broker.publish(messages, timeout=timeout)

    def close(self, timeout: float = 5.0) -> None:
        self._broker.close(timeout)


events = cqrs.EventMap()


@events.bind(phase=cqrs.Phase.DURABLE, name="label")
def label(event: Packed) -> None:
    say("begun", event.street, event.number)
    if "hangs" in FAULTS:
        threading.Event().wait()
    while os.path.exists(os.environ.get("PARCELS_GATE", "")):  # noqa: PTH110 -- what a shell would do
        threading.Event().wait(0.01)
    say("done", event.street, event.number)


def engine_of(url: str) -> sa.Engine:
    if url.startswith("sqlite"):
        return begin_immediate(sa.create_engine(url, connect_args={"timeout": 30}))
    return sa.create_engine(url)


def mediator() -> cqrs.Mediator:
    url = os.environ.get("PARCELS_BROKER")
    broker = RabbitMQBroker(url, exchange=os.environ["PARCELS_EXCHANGE"]) if url else MemoryBroker()
    if "stays" in FAULTS:
        threading.Thread(target=threading.Event().wait, name="of-the-application").start()
    return cqrs.bootstrap(
        source="tests",
        events=events,
        broker=TalkingBroker(broker),
        outbox=SQLAlchemyOutbox(Sessions(sessionmaker(engine_of(os.environ["PARCELS_DATABASE"])))),
        threads=1,
        fast_path=False,
    )


def keep(url: str, *raised: cqrs.Event) -> None:
    """Keep events in the outbox at this URL, in one transaction; makes its tables."""
    engine = engine_of(url)
    METADATA.create_all(engine)
    sessions = Sessions(sessionmaker(engine))
    with cqrs.bootstrap(
        source="tests", events=events, broker=MemoryBroker(), outbox=SQLAlchemyOutbox(sessions), fast_path=False
    ) as writing:
        with sessions.begin():
            for event in raised:
                writing.publish(event)
        # Its end delivers nothing either.
        writing.relay.close(0)
    engine.dispose()
