"""One call wires SQLAlchemy: tables, sessions, outbox, inbox, threads."""

from __future__ import annotations

import punq
import pytest
import sqlalchemy as sa
from attrs import frozen
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

import cqrs_sync as cqrs
from cqrs_sync.errors import ConfigurationError, NotInTransaction
from cqrs_sync.integrations.sqlalchemy import (
    ExternalSessions,
    Sessions,
    SQLAlchemyInbox,
    SQLAlchemyOutbox,
    begin_immediate,
    bootstrap,
    tables,
)
from cqrs_sync.memory import MemoryBroker
from cqrs_sync.testing.waiting import in_threads
from tests.waiting import eventually


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    name: Mapped[str] = mapped_column(sa.String(50), primary_key=True)


class Mail(Base):
    __tablename__ = "mails"
    name: Mapped[str] = mapped_column(sa.String(50), primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(50), primary_key=True)


METADATA = Base.metadata
OUTBOX = tables(METADATA)


@frozen
class PlaceOrder(cqrs.Command[str]):
    name: str


@frozen
class PlaceTwo(cqrs.Command[None]):
    pass


@frozen
class CountOrders(cqrs.Query[int]):
    pass


@frozen
class OrderPlaced(cqrs.NotificationEvent, topic="orders", name="order.placed", key="name"):
    name: str


class PlaceOrderHandler(cqrs.RequestHandler[PlaceOrder, str]):
    def __init__(self, session: Session) -> None:
        self.session = session

    def handle(self, request: PlaceOrder) -> str:
        self.session.add(Order(name=request.name))
        self.raise_event(OrderPlaced(request.name))
        return request.name


def count_orders(query: CountOrders, session: Session) -> int:
    return session.scalar(sa.select(sa.func.count()).select_from(Order))


def write_mail(kind):
    def write(event: OrderPlaced, session: Session) -> None:
        session.add(Mail(name=event.name, kind=kind))

    return write


def shop():
    requests, events = cqrs.RequestMap(), cqrs.EventMap()
    requests.bind(PlaceOrderHandler)
    requests.bind(CountOrders, count_orders)
    return requests, events


@pytest.fixture
def sqlite(tmp_path):
    engine = sa.create_engine(f"sqlite:///{tmp_path}/shop.db", connect_args={"timeout": 30})
    yield engine
    engine.dispose()


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgresql_url_of_module", marks=pytest.mark.broker),
        pytest.param("mariadb_url_of_module", marks=pytest.mark.broker),
    ]
)
def engine(request):
    found = request.getfixturevalue(request.param)
    engine = sa.create_engine(found) if isinstance(found, str) else found
    METADATA.create_all(engine)
    yield engine
    METADATA.drop_all(engine)
    engine.dispose()


def rows(engine, column):
    with engine.connect() as connection:
        return list(connection.scalars(sa.select(column).order_by(column)))


# What one call gives


def test_every_kind_of_handler_gets_a_session_with_a_transaction(engine):
    """Commands, queries, and event handlers of each phase, without more wiring."""
    requests, events = shop()
    events.bind(OrderPlaced, write_mail("after the commit"))
    events.bind(OrderPlaced, write_mail("inline"), phase=cqrs.Phase.INLINE)
    events.bind(OrderPlaced, write_mail("durable"), phase=cqrs.Phase.DURABLE, name="mail")
    broker = MemoryBroker()
    with bootstrap(
        requests, events, engine=engine, metadata=METADATA, source="shop", broker=broker, threads=2
    ) as mediator:
        assert "lamp" == mediator.send(PlaceOrder("lamp"))
        assert 1 == mediator.send(CountOrders())
        eventually(lambda: len(rows(engine, Mail.kind)) == 3)
        eventually(lambda: mediator.relay.outbox.backlog().waiting == 0)

    assert ["after the commit", "durable", "inline"] == rows(engine, Mail.kind)
    assert [("orders", "lamp")] == [(message.topic, message.key) for message in broker.published]


def test_a_request_with_an_idempotency_key_has_its_effect_once(engine):
    """The inbox is there without an argument."""
    with bootstrap(*shop(), source="tests", engine=engine, metadata=METADATA, fast_path=False) as mediator:
        answers = [mediator.send(PlaceOrder("lamp"), idempotency_key="1") for _ in range(2)]

    assert (["lamp", "lamp"], ["lamp"]) == (answers, rows(engine, Order.name))


def test_a_received_message_commits_with_its_receipt(engine):
    """The handler's rows and the receipt are in one transaction."""
    requests, events = shop()
    events.bind(OrderPlaced, write_mail("received"))
    with bootstrap(requests, events, source="tests", engine=engine, metadata=METADATA, fast_path=False) as mediator:
        sender = cqrs.bootstrap(source="tests", broker=(broker := MemoryBroker()))
        sender.publish(OrderPlaced("lamp"))
        sent = broker.published[0]
        for _ in range(2):
            mediator.receive(
                cqrs.IncomingMessage(sent.topic, sent.body, sent.content_type, key=sent.key, attributes=sent.attributes)
            )
        sender.close()

    assert ["received"] == rows(engine, Mail.kind)


def test_a_handler_that_fails_leaves_nothing(engine):
    """Neither its rows nor its events."""
    requests, events = shop()

    def fail(event: OrderPlaced) -> None:
        raise ValueError("inline")

    events.bind(OrderPlaced, fail, phase=cqrs.Phase.INLINE)
    with bootstrap(
        requests, events, source="tests", engine=engine, metadata=METADATA, broker=MemoryBroker()
    ) as mediator:
        with pytest.raises(ValueError, match="inline"):
            mediator.send(PlaceOrder("lamp"))
        waiting = mediator.relay.outbox.backlog().waiting

    assert ([], 0) == (rows(engine, Order.name), waiting)


def test_a_handler_that_does_not_use_its_session_takes_no_connection(sqlite):
    """Nor does it make the session."""
    made = []

    def make():
        made.append(1)
        return Session(sqlite)

    requests = cqrs.RequestMap()

    def count(query: CountOrders) -> int:
        return 0

    requests.bind(CountOrders, count)
    with bootstrap(requests, source="tests", engine=sqlite, sessions=Sessions(make, engine=sqlite)) as mediator:
        mediator.send(CountOrders())

    assert [] == made


def test_a_handler_that_raises_events_only_takes_no_connection(sqlite):
    """Their handlers wait for the end of the transaction, which has not begun on the database."""
    taken = []
    sa.event.listen(sqlite, "checkout", lambda *_: taken.append(1))

    @frozen
    class Seen(cqrs.DomainEvent):
        pass

    def count(query: CountOrders) -> int:
        cqrs.raise_event(Seen())
        return 0

    seen = []

    def note(event: Seen) -> None:
        seen.append(event)

    requests, events = cqrs.RequestMap(), cqrs.EventMap()
    requests.bind(CountOrders, count)
    events.bind(Seen, note)
    with bootstrap(requests, events, source="tests", engine=sqlite) as mediator:
        mediator.send(CountOrders())

    assert ([Seen()], []) == (seen, taken)


def test_a_command_inside_of_another_one_is_a_savepoint(engine):
    """If it fails, the outer one can go on; events wait for the outer commit."""
    requests, events = shop()

    def place_two(command: PlaceTwo, session: Session) -> None:
        mediator.send(PlaceOrder("lamp"))
        with pytest.raises(sa.exc.IntegrityError):
            mediator.send(PlaceOrder("lamp"))
        assert 1 == mediator.send(CountOrders())

    requests.bind(PlaceTwo, place_two)
    with bootstrap(
        requests, events, source="tests", engine=engine, metadata=METADATA, broker=MemoryBroker()
    ) as mediator:
        mediator.send(PlaceTwo())
        eventually(lambda: len(mediator.wiring.broker.published) == 1)

    assert ["lamp"] == rows(engine, Order.name)


def test_tables_that_are_on_the_metadata_already_are_used():
    """With a schema, too."""
    metadata = sa.MetaData(schema="messaging")

    assert tables(metadata) == tables(metadata)
    assert ["messaging.cqrs_delivery", "messaging.cqrs_message"] == sorted(metadata.tables)


@pytest.mark.parametrize("name", ["outbox", "inbox"])
def test_none_leaves_a_store_out(sqlite, name):
    """The other one is there."""
    with bootstrap(source="tests", engine=sqlite, **{name: None}) as mediator:
        found = {each: getattr(mediator.wiring, each) is not None for each in ("outbox", "inbox")}

    assert {"outbox": True, "inbox": True, name: False} == found


def test_without_outbox_and_inbox_events_still_wait_for_the_commit(sqlite):
    """The mediator knows the transactions from the sessions."""
    METADATA.create_all(sqlite)
    requests, events = shop()
    seen = []

    def count(event: OrderPlaced) -> None:
        seen.append(rows(sqlite, Order.name))

    events.bind(count)
    with bootstrap(
        requests, events, source="tests", engine=sqlite, outbox=None, inbox=None, broker=MemoryBroker()
    ) as mediator:
        mediator.send(PlaceOrder("lamp"))

    assert [["lamp"]] == seen


def test_messages_name_their_source(sqlite):
    """As bootstrap was told."""
    METADATA.create_all(sqlite)
    broker = MemoryBroker()
    with bootstrap(*shop(), engine=sqlite, broker=broker, source="shop") as mediator:
        mediator.send(PlaceOrder("lamp"))
        eventually(lambda: broker.published)

    assert "shop" == broker.published[0].attributes["source"]


def test_transactions_can_be_left_to_the_application(sqlite):
    """`atomic` names the messages that get one."""
    METADATA.create_all(sqlite)
    sessions = Sessions(sqlite)
    with bootstrap(
        *shop(), source="tests", sessions=sessions, atomic=(), broker=MemoryBroker(), fast_path=False
    ) as mediator:
        with pytest.raises(ConfigurationError, match=r"sessions\.begin\(\)"):
            mediator.send(PlaceOrder("lamp"))
        with sessions.begin():
            mediator.send(PlaceOrder("table"))

    assert ["table"] == rows(sqlite, Order.name)


@pytest.mark.parametrize("make", [punq.Container, cqrs.PunqContainer, lambda: None])
def test_the_container_gets_the_session(sqlite, make):
    """Whatever it is, as long as it is punq's."""
    METADATA.create_all(sqlite)
    with bootstrap(*shop(), source="tests", engine=sqlite, container=make(), fast_path=False) as mediator:
        mediator.send(PlaceOrder("lamp"))

    assert ["lamp"] == rows(sqlite, Order.name)


def test_a_session_that_the_container_has_already_is_kept(sqlite):
    """An application may make something of its own of it."""
    METADATA.create_all(sqlite)
    sessions = Sessions(sqlite)
    asked = []

    def current():
        asked.append(1)
        return sessions.current()

    container = cqrs.PunqContainer()
    container.register(Session, factory=current)
    with bootstrap(*shop(), source="tests", sessions=sessions, container=container, fast_path=False) as mediator:
        mediator.send(PlaceOrder("lamp"))

    assert [1] == asked


def test_an_event_after_a_commit_in_the_handler_is_an_error(engine):
    """It could not commit together with the rows. The error says what to leave out."""

    def place(command: PlaceOrder, session: Session) -> str:
        session.add(Order(name=command.name))
        session.commit()
        cqrs.raise_event(OrderPlaced(command.name))
        return ""

    requests = cqrs.RequestMap()
    requests.bind(PlaceOrder, place)
    with (
        bootstrap(requests, source="tests", engine=engine, metadata=METADATA, broker=MemoryBroker()) as mediator,
        pytest.raises(NotInTransaction, match=r"session\.commit\(\)"),
    ):
        mediator.send(PlaceOrder("lamp"))

    assert ["lamp"] == rows(engine, Order.name)


# SQLite


def test_transactions_on_sqlite_wait_for_their_turn(sqlite):
    """A transaction that reads first would fail when it writes, after another one has written."""
    METADATA.create_all(sqlite)
    requests, events = cqrs.RequestMap(), cqrs.EventMap()

    def place(command: PlaceOrder, session: Session) -> str:
        count_orders(CountOrders(), session)
        session.add(Order(name=command.name))
        return ""

    requests.bind(PlaceOrder, place)
    with bootstrap(requests, events, source="tests", engine=sqlite) as mediator:
        in_threads(*(lambda name=name: mediator.send(PlaceOrder(name)) for name in "abcd"))

    assert ["a", "b", "c", "d"] == rows(sqlite, Order.name)


def test_begin_immediate_twice_is_once(sqlite):
    """Two mediators may share an engine, and the application may have called it already."""
    begin_immediate(sqlite)
    with (
        bootstrap(source="tests", engine=sqlite),
        bootstrap(source="tests", engine=sqlite),
        sqlite.begin() as connection,
    ):
        assert 1 == connection.scalar(sa.select(1))


def test_a_listener_of_the_application_begins_transactions_in_its_own_way(sqlite):
    """Another BEGIN would be an error."""
    begun = []

    @sa.event.listens_for(sqlite, "begin")
    def begin(connection):
        begun.append(connection.exec_driver_sql("BEGIN"))

    with bootstrap(source="tests", engine=sqlite), sqlite.begin():
        pass

    assert 1 == len(begun)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///file::memory:?uri=true"])
def test_a_database_in_memory_is_refused(url):
    """Each thread would have an empty one."""
    with pytest.raises(ConfigurationError, match="file"):
        bootstrap(source="tests", engine=sa.create_engine(url, poolclass=sa.NullPool))


def test_a_pool_with_one_connection_for_all_threads_is_refused(tmp_path):
    """They would be in one transaction."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/shop.db", poolclass=sa.StaticPool)
    with pytest.raises(ConfigurationError, match="StaticPool, has one connection"):
        bootstrap(source="tests", engine=engine)


def test_a_database_in_memory_works_without_threads():
    """As the error says, for tests."""
    engine = sa.create_engine("sqlite://")
    METADATA.create_all(engine)
    options = {"threads": cqrs.SameThread(), "fast_path": False}
    with bootstrap(*shop(), engine=engine, source="tests", **options) as mediator:
        mediator.send(PlaceOrder("lamp"))
        waiting = mediator.relay.outbox.backlog().waiting

    assert (["lamp"], 1) == (rows(engine, Order.name), waiting)


# The engine's pool


@pytest.mark.parametrize(
    ("pool", "threads", "words"),
    [
        ({"pool_size": 2, "max_overflow": 0}, 8, "at most 2 connections, and 8 threads may need 11"),
        ({"pool_size": 2, "max_overflow": 0}, 8, "pool_size=11, max_overflow=0"),
        ({"pool_size": 8, "max_overflow": 2}, 8, "threads=7"),
        ({"pool_size": 8, "max_overflow": 3}, 8, None),
        ({"pool_size": 2, "max_overflow": -1}, 8, None),
        ({"pool_size": 2, "max_overflow": 2}, None, None),
    ],
)
def test_a_pool_that_is_too_small_for_the_threads_is_a_warning_with_numbers(tmp_path, caplog, pool, threads, words):
    """The default number of threads fits the pool."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/shop.db", **pool)
    with bootstrap(source="tests", engine=engine, threads=threads) as mediator:
        size = mediator.wiring.threads.max_workers
    engine.dispose()

    assert (words in caplog.text) if words else caplog.text == ""
    assert size == (threads or 1)


# Wrong wiring


@pytest.mark.parametrize("handler", [PlaceOrderHandler, count_orders])
def test_a_session_that_is_not_registered_is_named_with_the_way_out(handler):
    """By a handler's class as by a function."""
    requests = cqrs.RequestMap()
    message = CountOrders if handler is count_orders else PlaceOrder
    requests.bind(message, handler)
    words = r"container\.register\(Session, \.\.\.\), or make .* cqrs_sync\.integrations\.sqlalchemy\.bootstrap"
    with cqrs.bootstrap(requests) as mediator, pytest.raises(cqrs.HandlerNotBuilt, match=words):
        mediator.send(message() if handler is count_orders else message("lamp"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (lambda engine: {}, r"create_engine"),
        (lambda engine: {"sessions": Sessions(engine), "session": lambda: None}, "either"),
        (lambda engine: {"engine": engine, "around": object}, r"session=db\.session"),
        (lambda engine: {"sessions": sessionmaker()}, r"sessionmaker\(engine\)"),
        (lambda engine: {"sessions": sessionmaker(), "engine": engine}, r"sessionmaker\(engine\)"),
        (
            lambda engine: {"sessions": sessionmaker(sa.create_engine("sqlite:///b.db")), "engine": engine},
            "leave it out",
        ),
        (lambda engine: {"sessions": lambda: Session(engine)}, "which database"),
        (lambda engine: {"engine": engine, "metadata": Base}, r"metadata must be a MetaData, such as Base\.metadata"),
        (lambda engine: {"session": lambda: None, "engine": engine, "around": 5}, "around must make a context manager"),
        (lambda engine: {"session": lambda: None}, "which database"),
        (lambda engine: {"engine": engine, "outbox": SQLAlchemyOutbox(Sessions(engine))}, "make them once"),
        (lambda engine: {"engine": engine, "inbox": SQLAlchemyInbox(Sessions(engine))}, "make them once"),
        (lambda engine: {"engine": engine, "outbox": False}, "None for none"),
        (lambda engine: {"engine": engine, "sessions": Sessions(sa.create_engine("sqlite:///other.db"))}, "engine"),
        (lambda engine: {"sessions": scoped_session(sessionmaker(engine))}, "ExternalSessions"),
        (
            lambda engine: {"session": scoped_session(sessionmaker(engine)), "threads": cqrs.ThreadPool(1)},
            r"around=sessions\.scope",
        ),
    ],
)
def test_wrong_arguments_are_errors_with_the_way_out(sqlite, arguments, words):
    """Nothing is made."""
    with pytest.raises(ConfigurationError, match=words):
        bootstrap(source="tests", **arguments(sqlite))


def test_sessions_take_an_engine(engine):
    """As short as `Session(engine)`."""
    with Sessions(engine).begin() as session:
        session.add(Order(name="lamp"))

    assert ["lamp"] == rows(engine, Order.name)


@pytest.mark.parametrize("wrong", [Session(), scoped_session(sessionmaker()), "sqlite://"])
def test_sessions_refuse_what_cannot_make_a_session(wrong):
    """The error names the other way."""
    with pytest.raises(ConfigurationError, match="ExternalSessions"):
        Sessions(wrong)


def test_external_sessions_refuse_an_engine(sqlite):
    """The error names the other way."""
    with pytest.raises(ConfigurationError, match=r"Sessions\("):
        ExternalSessions(sqlite)


def test_the_error_for_an_event_outside_of_a_handler_says_how_to_publish_it(sqlite):
    METADATA.create_all(sqlite)
    sessions, broker = Sessions(sqlite), MemoryBroker()
    with bootstrap(source="tests", sessions=sessions, metadata=METADATA, broker=broker) as mediator:
        with pytest.raises(NotInTransaction, match=r"`with sessions\.begin\(\): mediator\.publish\(event\)`"):
            mediator.publish(OrderPlaced("lamp"))
        with sessions.begin():
            mediator.publish(OrderPlaced("lamp"))
        eventually(lambda: len(broker.published) == 1)
