"""The table of messages is as docs/how-to/debezium.md says, and a message is one INSERT and nothing else."""

from __future__ import annotations

import json
import re

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import sessionmaker

import cqrs_sync as cqrs
from cqrs_sync.integrations.sqlalchemy import Sessions, SQLAlchemyOutbox, tables
from tests.promises.outbox_fixtures import Shipped, Sold
from tests.source import ROOT
from tests.waiting import eventually

pytestmark = pytest.mark.broker

PAGE = (ROOT / "docs/how-to/debezium.md").read_text("utf-8")
CONNECTOR = json.loads(re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1])
OUTBOX = "transforms.outbox."


@pytest.fixture
def engine(postgresql_url_of_module):
    engine = sa.create_engine(postgresql_url_of_module)
    metadata = sa.MetaData()
    tables(metadata)
    metadata.create_all(engine)
    yield engine
    metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture
def mediator(engine):
    events = cqrs.EventMap()
    events.bind(Shipped, print, phase=cqrs.Phase.DURABLE, name="label")
    sessions = Sessions(sessionmaker(engine))
    outbox = SQLAlchemyOutbox(sessions, published_by=cqrs.PublishedBy.CHANGE_DATA_CAPTURE)
    serializer = cqrs.JsonSerializer(source="/shop", structured=True)
    with cqrs.bootstrap(events=events, outbox=outbox, serializer=serializer, fast_path=False) as mediator:
        with sessions.begin():
            mediator.publish(Sold("ada", 7))
            mediator.publish(Shipped(1))
        yield mediator


def rows_of(engine, table):
    with engine.connect() as connection:
        return [dict(row._mapping) for row in connection.execute(sa.text(f"SELECT * FROM {table} ORDER BY 1"))]  # noqa: S608


def test_the_connector_names_existing_columns(engine):
    """
    All that the router reads.
    """
    named = {
        value
        for name, value in CONNECTOR.items()
        if name.startswith((f"{OUTBOX}table.field.event", f"{OUTBOX}route.by"))
    }
    placed = {each.split(":")[0] for each in CONNECTOR[f"{OUTBOX}table.fields.additional.placement"].split(",")}
    columns = {column["name"] for column in sa.inspect(engine).get_columns("cqrs_message")}

    assert named | placed <= columns
    assert named == {"id", "partition_key", "type", "payload", "topic"}


def test_a_row_has_what_the_router_needs_for_a_record(mediator, engine):
    """
    Its payload is a complete CloudEvent; an event that only has durable handlers has no topic.
    """
    sold, shipped = sorted(rows_of(engine, "cqrs_message"), key=lambda row: row["topic"], reverse=True)
    event = json.loads(bytes(sold["payload"]))

    assert ("sales", "ada", "sold") == (sold["topic"], sold["partition_key"], sold["type"])
    assert (sold["id"], "sold", {"customer": "ada", "number": 7}) == (event["id"], event["type"], event["data"])
    assert "application/cloudevents+json" == sold["content_type"]
    assert re.fullmatch(CONNECTOR["predicates.stored.pattern"], f"cqrs.{shipped['topic']}")
    assert not re.fullmatch(CONNECTOR["predicates.stored.pattern"], f"cqrs.{sold['topic']}")


def test_only_durable_handlers_have_deliveries(mediator, engine):
    """
    The router reads messages for topics from the database's log.
    """
    assert [("handler", "label")] == [(row["kind"], row["target"]) for row in rows_of(engine, "cqrs_delivery")]


def test_delivering_changes_no_message(mediator, engine):
    """
    Debezium sees one INSERT for each.
    """
    before = rows_of(engine, "cqrs_message")
    with engine.connect() as connection:
        versions = connection.execute(sa.text("SELECT xmin::text FROM cqrs_message ORDER BY id")).all()
    mediator.relay.start(poll=(0.01, 0.02))
    eventually(lambda: mediator.relay.outbox.backlog().waiting == 0)
    mediator.relay.close(5)

    assert before == rows_of(engine, "cqrs_message")
    with engine.connect() as connection:
        assert versions == connection.execute(sa.text("SELECT xmin::text FROM cqrs_message ORDER BY id")).all()
