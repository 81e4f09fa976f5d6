"""X1: when a command or a handler has ended well, its transaction has committed; else it is an error."""

from __future__ import annotations

from contextlib import suppress

import attrs
import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

import cqrs_sync as cqrs
from cqrs_sync.broker import IncomingMessage
from cqrs_sync.integrations.sqlalchemy import (
    ExternalSessions,
    Sessions,
    SQLAlchemyInbox,
    SQLAlchemyOutbox,
    inbox_table,
    sessions,
    tables,
)
from cqrs_sync.memory import MemoryBroker
from cqrs_sync.retry import is_transient
from cqrs_sync.sql.database import TransactionStatus
from tests.waiting import eventually

pytestmark = pytest.mark.broker

METADATA = sa.MetaData()
tables(METADATA)
inbox_table(METADATA)
NAMES = sa.Table("names", METADATA, sa.Column("name", sa.String(50), primary_key=True))

QUICK = cqrs.RetryPolicy(attempts=3, first=0.01, ceiling=0.02)


@attrs.frozen
class Buy(cqrs.Command[str]):
    name: str = "lamp"


@attrs.frozen
class Bought(cqrs.NotificationEvent, topic="sales", name="bought"):
    name: str


ARRIVED = IncomingMessage(
    topic="sales",
    body=b'{"name":"lamp"}',
    attributes={"specversion": "1.0", "id": "1", "source": "/s", "type": "bought"},
)


@pytest.fixture
def engine(postgresql_url_of_module):
    engine = sa.create_engine(postgresql_url_of_module)
    METADATA.create_all(engine)
    with engine.begin() as connection:
        connection.execute(NAMES.insert().values(name="known"))
    yield engine
    METADATA.drop_all(engine)
    engine.dispose()


class Shop:
    """Sells what has a name; `spoil` is what its handlers do after that."""

    def __init__(self, engine, spoil, *, around=(cqrs.Command,), **parts):
        self.engine, self.spoil = engine, spoil
        self.sessions, self.broker, self.after = Sessions(sessionmaker(engine)), MemoryBroker(), []
        self.events, requests = cqrs.EventMap(), cqrs.RequestMap()
        requests.bind(Buy, self.buy)
        self.mediator = cqrs.bootstrap(
            requests,
            self.events,
            source="tests",
            broker=self.broker,
            middleware=cqrs.MiddlewareChain().add(self.sessions.atomic, *around),
            transactions=None if "outbox" in parts else self.sessions,
            threads=1,
            retry=QUICK,
            **{name: make(self.sessions) for name, make in parts.items()},
        )

    def buy(self, request):
        self.write(request.name)
        cqrs.raise_event(Bought(request.name))
        return "bought"

    def write(self, name):
        self.sessions.current().execute(NAMES.insert().values(name=name))
        self.spoil(self.sessions.current())

    def names(self):
        with self.engine.connect() as connection:
            return sorted(connection.scalars(sa.select(NAMES)))

    def published(self):
        return [message.type for message in self.broker.published]


def caught(session):
    """Insert it, and let it be where it is there already."""
    with suppress(IntegrityError):
        session.execute(NAMES.insert().values(name="known"))


class Name:
    """A row of names, for the unit of work."""


orm.registry().map_imperatively(Name, NAMES)


def caught_of_a_flush(session):
    """The same with the unit of work, which rolls back by itself."""
    name = Name()
    name.name = "known"
    session.add(name)
    with suppress(IntegrityError):
        session.flush()


def caught_in_a_savepoint(session):
    with suppress(IntegrityError), session.begin_nested():
        session.execute(NAMES.insert().values(name="known"))


def never_raised(session):
    assert session.in_transaction()


WORDS = r"has aborted this transaction.*session\.begin_nested\(\)"


@pytest.fixture(params=[{}, {"outbox": SQLAlchemyOutbox}], ids=["without", "with-outbox"])
def kept(request):
    return request.param


# Commands


def test_x1_a_command_that_would_not_commit_fails(engine, kept):
    """
    Nothing is there, so nobody is told anything else.
    """
    shop = Shop(engine, caught, **kept)
    shop.events.bind(Bought, shop.after.append)
    with shop.mediator, pytest.raises(cqrs.TransactionLost, match=WORDS):
        shop.mediator.send(Buy())

    assert (["known"], [], []) == (shop.names(), shop.after, shop.published())


@pytest.mark.parametrize(
    "spoil", [Session.rollback, Session.close, caught_of_a_flush], ids=["rollback", "close", "flush"]
)
def test_x1_a_command_whose_session_was_rolled_back_fails(engine, spoil):
    """
    On any database: SQLAlchemy says nothing of it at the end of its block.
    """
    shop = Shop(engine, spoil)
    shop.events.bind(Bought, shop.after.append)
    with shop.mediator, pytest.raises(cqrs.TransactionLost, match="rolled back before its end"):
        shop.mediator.send(Buy())

    assert (["known"], [], []) == (shop.names(), shop.after, shop.published())


def test_x1_a_command_that_commits_by_hand_has_committed(engine):
    """
    It is told as what it is.
    """
    shop = Shop(engine, Session.commit)
    with shop.mediator:
        assert "bought" == shop.mediator.send(Buy())

    assert (["known", "lamp"], ["bought"]) == (shop.names(), shop.published())


def test_x1_an_error_that_is_caught_around_a_savepoint_is_caught(engine, kept):
    """
    The rest commits, and is told.
    """
    shop = Shop(engine, caught_in_a_savepoint, **kept)
    shop.events.bind(Bought, shop.after.append)
    with shop.mediator:
        assert "bought" == shop.mediator.send(Buy())
        eventually(lambda: shop.published() == ["bought"])

    assert (["known", "lamp"], [Bought("lamp")]) == (shop.names(), shop.after)


@pytest.mark.parametrize("spoil", [caught, Session.rollback, Session.close], ids=["caught", "rollback", "close"])
def test_x1_a_command_that_would_not_commit_is_no_savepoint(engine, spoil):
    """
    Inside a transaction it fails alone, as long as that is there.
    """
    shop = Shop(engine, spoil)
    with shop.mediator, suppress(cqrs.TransactionLost), shop.sessions.begin() as session:
        session.execute(NAMES.insert().values(name="before"))
        with pytest.raises(cqrs.TransactionLost):
            shop.mediator.send(Buy())

    assert ["before", "known"] if spoil is caught else ["known"] == shop.names()
    assert [] == shop.published()


def test_x1_sessions_of_the_application_do_not_commit_a_lost_transaction_either(engine):
    """
    What waits for their commit is dropped.
    """
    calls = []
    with Session(engine) as session:
        transactions = ExternalSessions(lambda: session)
        session.execute(NAMES.insert().values(name="lamp"))
        transactions.on_commit(lambda: calls.append("never"))
        caught(session)
        with pytest.raises(cqrs.TransactionLost, match=WORDS):
            session.commit()

    assert [] == calls


def test_x1_a_driver_that_does_not_tell_is_asked(engine, monkeypatch):
    """
    Only then: it costs a round trip.
    """
    monkeypatch.setattr(sessions, "transaction_status", lambda _: TransactionStatus.UNKNOWN)
    lost, good = Shop(engine, caught), Shop(engine, caught_in_a_savepoint)
    with lost.mediator, pytest.raises(cqrs.TransactionLost, match=WORDS):
        lost.mediator.send(Buy())
    with good.mediator:
        assert "bought" == good.mediator.send(Buy())

    assert ["known", "lamp"] == good.names()


# What is received, what is durable


def test_x1_a_handler_of_a_message_that_would_not_commit_fails(engine):
    """
    It is no outage either, that would be over some day: its attempts count, and the message becomes a dead letter.
    """
    shop = Shop(engine, caught, inbox=SQLAlchemyInbox)
    shop.events.bind(Bought, lambda event: shop.write(event.name), name="book")
    with shop.mediator:
        for _ in range(2):
            with pytest.raises(cqrs.EventsFailed) as failed:
                shop.mediator.receive(ARRIVED)
            (error,) = failed.value.exceptions
            assert isinstance(error, cqrs.TransactionLost)
            assert not is_transient(failed.value)
        shop.spoil = caught_in_a_savepoint
        for _ in range(2):
            shop.mediator.receive(ARRIVED)

    assert ["known", "lamp"] == shop.names()


def test_x1_a_request_with_a_key_that_would_not_commit_fails(engine):
    """
    It has used no key, and its answer is not the trouble.
    """
    shop = Shop(engine, caught, inbox=SQLAlchemyInbox)
    with shop.mediator:
        with pytest.raises(cqrs.TransactionLost, match=WORDS):
            shop.mediator.send(Buy(), idempotency_key="key")
        shop.spoil = never_raised
        assert ["bought"] * 2 == [shop.mediator.send(Buy(), idempotency_key="key") for _ in range(2)]

    assert ["known", "lamp"] == shop.names()


def test_x1_a_durable_handler_that_would_not_commit_is_not_done(engine):
    """
    It is tried again.
    """
    shop = Shop(engine, never_raised, around=(cqrs.Command, Bought), outbox=SQLAlchemyOutbox)
    spoilt = []

    def ship(event: Bought) -> None:
        shop.sessions.current().execute(NAMES.insert().values(name="shipped"))
        if not spoilt:
            caught(shop.sessions.current())
            spoilt.append(event)

    shop.events.bind(Bought, ship, phase=cqrs.Phase.DURABLE, name="ship")
    with shop.mediator:
        shop.mediator.send(Buy())
        eventually(lambda: shop.names() == ["known", "lamp", "shipped"])
        eventually(lambda: shop.mediator.relay.outbox.backlog().waiting == 0)

    assert [Bought("lamp")] == spoilt


# What it costs


def test_x1_it_is_found_out_without_asking(engine):
    """
    A transaction that commits has no statement more than what was written, and reading what a driver knows is quick.
    """
    said = []
    shop = Shop(engine, never_raised, inbox=SQLAlchemyInbox)
    shop.events.bind(Bought, lambda event: shop.write(event.name), name="book")
    with shop.mediator:
        # What a first connection asks is not counted.
        shop.names()
        sa.event.listen(engine, "before_cursor_execute", lambda *args: said.append(args[2].split("(")[0].strip()))
        shop.mediator.receive(ARRIVED)
        shop.mediator.receive(ARRIVED)

    once, again = 'INSERT INTO "cqrs_inbox"', 'SELECT result FROM "cqrs_inbox"'
    assert [once, "INSERT INTO names", once, again] == [each.partition(" WHERE")[0] for each in said]
