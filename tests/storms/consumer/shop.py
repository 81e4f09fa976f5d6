"""
The application of the consumers' storms: each message is to have one effect, a row.

`cqrs-sync consumer run --app tests.storms.consumer.shop:application` runs it. It is configured by the environment:
`STORM_DATABASE`, `STORM_BROKER`, `STORM_EXCHANGE`; what its handler does besides, `STORM_HANDLER`.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import sqlalchemy as sa
from attrs import frozen
from sqlalchemy.orm import Session, sessionmaker

import cqrs_sync as cqrs
from cqrs_sync.broker import ReceivingBroker
from cqrs_sync.integrations.sqlalchemy import Sessions, SQLAlchemyInbox, inbox_table

METADATA = sa.MetaData()
INBOX = inbox_table(METADATA)
EFFECTS = sa.Table(
    "storm_effect",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("counter", sa.String(20), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
)
TOPIC = "storm"


@frozen
class Counted(cqrs.NotificationEvent, topic=TOPIC, name="contract.happened", key="counter"):
    counter: str
    number: int


def broker_at(url: str, exchange: str) -> ReceivingBroker:
    """Return the broker of a URL; `confluent://` is Kafka by the other client."""
    if url.startswith("amqp"):
        from cqrs_sync.integrations.rabbitmq import RabbitMQBroker  # noqa: PLC0415 -- only one of them is used

        return RabbitMQBroker(url, exchange=exchange, publish_timeout=30)
    if url.startswith("confluent"):
        from cqrs_sync.integrations.confluent import ConfluentKafkaBroker  # noqa: PLC0415

        # Of the broker of tests: it lets a group wait half its session time-out at each join.
        quick = {"session.timeout.ms": 2000, "heartbeat.interval.ms": 500}
        return ConfluentKafkaBroker(url.replace("confluent", "kafka"), consumer_config=quick, publish_timeout=30)
    from cqrs_sync.integrations.kafka import KafkaBroker  # noqa: PLC0415

    options = {"session_timeout_ms": 2000, "heartbeat_interval_ms": 500, **_kafka_options()}
    return KafkaBroker(url, consumer_config=options, publish_timeout=30)


def _kafka_options() -> dict[str, int]:
    interval = os.environ.get("STORM_POLL_INTERVAL_MS")
    return {} if interval is None else {"max_poll_interval_ms": int(interval)}


def application() -> cqrs.Mediator:
    """Wire a worker."""
    engine = sa.create_engine(os.environ["STORM_DATABASE"], pool_size=20)
    sessions = Sessions(sessionmaker(engine))
    container, events = cqrs.PunqContainer(), cqrs.EventMap()
    container.register(Session, factory=sessions.current)
    events.bind(Counted, _handle, name="count")
    return cqrs.bootstrap(
        source="tests",
        events=events,
        container=container,
        broker=broker_at(os.environ["STORM_BROKER"], os.environ["STORM_EXCHANGE"]),
        inbox=SQLAlchemyInbox(sessions),
        threads=int(os.environ.get("STORM_THREADS", "8")),
        middleware=cqrs.MiddlewareChain().add(sessions.atomic, cqrs.Event),
    )


def _handle(event: Counted, session: Session) -> None:
    what, _, how = os.environ.get("STORM_HANDLER", "").partition(":")
    if what == "down" and Path(how).exists():
        raise ConnectionError("the bank does not answer")
    session.execute(EFFECTS.insert().values(counter=event.counter, number=event.number))
    if what == "slow":
        threading.Event().wait(float(how))
    elif what == "deadly" and event.number == int(how):
        os._exit(9)
