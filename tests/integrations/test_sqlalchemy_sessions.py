"""Sessions: one per command, committed as a whole or not at all, and separate from all others."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from attrs import frozen
from sqlalchemy.exc import IntegrityError, InvalidRequestError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

import cqrs_sync as cqrs
from cqrs_sync.errors import ConfigurationError
from cqrs_sync.integrations.sqlalchemy import ExternalSessions, Sessions, begin_immediate
from cqrs_sync.testing.waiting import in_forked_child, in_threads


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    name: Mapped[str] = mapped_column(sa.String(50), primary_key=True)


@frozen
class PlaceOrder(cqrs.Command[None]):
    name: str


@frozen
class OrderPlaced(cqrs.DomainEvent):
    name: str


@pytest.fixture
def engine(tmp_path):
    engine = begin_immediate(sa.create_engine(f"sqlite:///{tmp_path}/shop.db"))
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def sessions(engine):
    return Sessions(sessionmaker(engine))


def names(engine):
    with Session(engine) as session:
        return list(session.scalars(sa.select(Order.name).order_by(Order.name)))


# A session per command


class Shop:
    """A mediator whose handlers get their session from the container."""

    def __init__(self, sessions):
        self.sessions = sessions
        self.requests, self.events, self.seen = cqrs.RequestMap(), cqrs.EventMap(), []
        shop = self

        @self.requests.bind
        class PlaceOrderHandler(cqrs.RequestHandler[PlaceOrder, None]):
            def __init__(self, session: Session) -> None:
                self.session = session

            def handle(self, request: PlaceOrder) -> None:
                assert shop.sessions.current() is self.session
                self.session.add(Order(name=request.name))
                self.raise_event(OrderPlaced(request.name))
                if request.name.startswith("bad"):
                    raise ValueError(request.name)

        container = cqrs.PunqContainer()
        container.register(Session, factory=sessions.current)
        self.mediator = cqrs.bootstrap(
            self.requests,
            self.events,
            container=container,
            threads=2,
            transactions=sessions,
            middleware=[sessions.atomic],
        )


@pytest.fixture
def shop(sessions):
    shop = Shop(sessions)
    yield shop
    shop.mediator.close()


def test_a_command_commits_as_a_whole(shop, engine):
    """
    Its event handlers see what its handler wrote, in sessions of their own.
    """
    mine = []

    def count(event: OrderPlaced) -> None:
        session = shop.sessions.current()
        mine.append((event.name, session.scalar(sa.select(sa.func.count()).select_from(Order))))

    shop.events.bind(count)
    shop.mediator.send(PlaceOrder("lamp"))
    shop.mediator.send(PlaceOrder("table"))

    assert [("lamp", 1), ("table", 2)] == mine


def test_a_command_that_fails_leaves_nothing(shop, engine):
    """
    Neither rows nor events nor a session.
    """
    handled = []

    def note(event: OrderPlaced) -> None:
        handled.append(event)

    shop.events.bind(note)
    with pytest.raises(ValueError, match="bad lamp"):
        shop.mediator.send(PlaceOrder("bad lamp"))

    assert ([], []) == (names(engine), handled)
    assert not shop.sessions.active()


def test_a_command_inside_a_transaction_is_a_savepoint(shop, engine):
    """
    If it fails, the rest goes ahead. Everything commits with the outer block.
    """
    with shop.sessions.begin() as session:
        shop.mediator.send(PlaceOrder("lamp"))
        with pytest.raises(ValueError, match="bad"):
            shop.mediator.send(PlaceOrder("bad"))
        assert shop.sessions.current() is session

    assert ["lamp"] == names(engine)


def test_the_error_without_an_open_session_names_the_way_out(sessions):
    """
    It says how to open one.
    """
    with pytest.raises(ConfigurationError, match=r"sessions\.atomic"):
        sessions.current()


def test_each_thread_has_its_own_session(sessions, engine):
    """
    Whatever other threads have open.
    """
    seen = set()
    start = threading.Barrier(4)

    def place(number):
        start.wait(10)
        with sessions.begin() as session:
            seen.add(session)
            session.add(Order(name=str(number)))

    in_threads(*(lambda number=number: place(number) for number in range(4)))

    assert (4, ["0", "1", "2", "3"]) == (len(seen), names(engine))


def test_a_forked_child_has_no_session_of_its_parent(sessions, engine):
    """
    The child makes its own; the parent commits its own.
    """
    with sessions.begin() as session:
        session.add(Order(name="of the parent"))
        session.flush()
        assert 0 == in_forked_child(lambda: _assert(not sessions.active()), timeout=20)

    assert 0 == in_forked_child(lambda: _place(sessions, "of the child"), timeout=20)
    assert ["of the child", "of the parent"] == names(engine)


def _assert(condition):
    assert condition
    assert os.getpid()


def _place(sessions, name):
    with sessions.begin() as session:
        session.add(Order(name=name))


def test_a_commit_in_a_handler_runs_the_hooks(sessions, engine):
    """
    A handler that commits by itself has committed, even if it raises afterwards.
    """
    calls = []
    with pytest.raises(ValueError, match="later"), sessions.begin() as session:  # noqa: PT012 -- the commit is in it
        session.add(Order(name="lamp"))
        sessions.on_commit(lambda: calls.append("lamp"))
        session.commit()
        raise ValueError("later")

    assert (["lamp"], ["lamp"]) == (names(engine), calls)


def test_a_failed_commit_runs_no_hooks(sessions, engine):
    """
    For example if a row exists already, which the flush of the commit finds.
    """
    calls = []
    _place(sessions, "lamp")
    with pytest.raises(IntegrityError), sessions.begin() as session:  # noqa: PT012 -- as above
        sessions.on_commit(lambda: calls.append("never"))
        session.add(Order(name="lamp"))

    assert ([], ["lamp"]) == (calls, names(engine))


# After-commit hooks


@pytest.fixture(params=["ours", "others"])
def kind(request, sessions, engine):
    registry = scoped_session(sessionmaker(engine))

    @contextmanager
    def begin():
        with registry.begin():
            yield registry()

    if request.param == "ours":
        yield SimpleNamespace(transactions=sessions, begin=sessions.begin)
    else:
        yield SimpleNamespace(transactions=ExternalSessions(registry), begin=begin)
    registry.remove()


def test_a_hook_that_raises_does_not_stop_the_others(kind, caplog):
    """
    The error is logged, and the commit stands.
    """
    calls = []

    def fail():
        raise ValueError("in the callback")

    with caplog.at_level(logging.ERROR), kind.begin():
        kind.transactions.on_commit(fail)
        kind.transactions.on_commit(lambda: calls.append("second"))

    assert ["second"] == calls
    assert "in the callback" in caplog.text


def test_a_listener_of_the_application_that_raises_keeps_no_hook_from_running(kind):
    """
    The commit has happened, whatever it says. The hooks run when the session is closed.
    """
    calls = []

    def fail(session):
        raise ValueError("in the listener")

    with pytest.raises(ValueError, match="in the listener"), kind.begin() as session:  # noqa: PT012 -- as above
        sa.event.listen(session, "after_commit", fail)
        kind.transactions.on_commit(lambda: calls.append("committed"))
        session.add(Order(name="lamp"))
    session.close()

    assert ["committed"] == calls


def test_a_flush_is_no_commit(kind):
    """
    Nor is the end of a savepoint, or a flush in one.
    """
    calls = []
    with kind.begin() as session:
        kind.transactions.on_commit(lambda: calls.append("first"))
        session.add(Order(name="lamp"))
        session.flush()
        with session.begin_nested():
            kind.transactions.on_commit(lambda: calls.append("second"))
            session.add(Order(name="table"))
            session.flush()
        assert [] == calls

    assert ["first", "second"] == calls


def test_a_savepoint_with_a_failed_flush_drops_its_hooks(kind):
    """
    Not those of the savepoint before it, nor of the one after.
    """
    calls = []
    with kind.begin() as session:
        with session.begin_nested():
            session.add(Order(name="lamp"))
            kind.transactions.on_commit(lambda: calls.append("lamp"))
        with pytest.raises(IntegrityError), session.begin_nested():  # noqa: PT012 -- as above
            kind.transactions.on_commit(lambda: calls.append("never"))
            session.execute(sa.insert(Order).values(name="lamp"))
        with session.begin_nested(), session.begin_nested():
            kind.transactions.on_commit(lambda: calls.append("inner"))

    assert ["lamp", "inner"] == calls


def test_a_savepoint_that_is_rolled_back_drops_the_hooks_of_inner_ones(kind):
    """
    Even if those were released.
    """
    calls = []
    with kind.begin() as session:
        outer = session.begin_nested()
        with session.begin_nested():
            kind.transactions.on_commit(lambda: calls.append("released"))
        session.begin_nested()
        kind.transactions.on_commit(lambda: calls.append("open"))
        outer.rollback()
        kind.transactions.on_commit(lambda: calls.append("after"))

    assert ["after"] == calls


def test_a_closed_session_runs_no_hooks(engine):
    """
    Nor does the next transaction of the same session.
    """
    session = Session(engine)
    transactions = ExternalSessions(lambda: session)
    calls = []
    session.connection()
    transactions.on_commit(lambda: calls.append("never"))
    session.close()
    session.connection()
    transactions.on_commit(lambda: calls.append("committed"))
    session.commit()

    assert ["committed"] == calls


def test_hooks_can_use_the_applications_session(engine):
    """
    The same session, also at the end of its `with` block, and afterwards.
    """
    session = Session(engine)
    transactions = ExternalSessions(lambda: session)

    def place(name):
        with session.begin():
            session.add(Order(name=name))

    with session.begin():
        transactions.on_commit(lambda: place("second"))
        session.add(Order(name="first"))
    place("third")

    assert ["first", "second", "third"] == names(engine)


def test_a_with_block_stays_closed_after_a_commit_inside_it(engine):
    """
    SQLAlchemy's own check still holds for code after a manual commit.
    """
    session = Session(engine)
    transactions = ExternalSessions(lambda: session)
    with pytest.raises(InvalidRequestError, match="closed transaction"), session.begin():  # noqa: PT012 -- as above
        transactions.on_commit(lambda: session.scalar(sa.select(1)))
        session.commit()
        session.scalar(sa.select(1))


def test_a_thread_without_a_session_has_no_transaction(engine):
    """
    Without a session, outside of Flask's application, and with an empty registry, which stays empty.
    """
    registry = scoped_session(sessionmaker(engine))

    def outside_of_an_application():
        raise RuntimeError("Working outside of application context.")

    assert [False] * 3 == [
        ExternalSessions(session).active() for session in (lambda: None, outside_of_an_application, registry)
    ]
    assert not registry.registry.has()
