"""SQLAlchemyOutbox beyond its contract: its arguments, its errors, and what databases do to it."""

from __future__ import annotations

import multiprocessing
import threading
from contextlib import contextmanager, suppress

import pytest
import sqlalchemy as sa
from attrs import frozen
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

import cqrs_sync as cqrs
from cqrs_sync.errors import ConfigurationError, NotInTransaction, OutboxNotInstalled, OutboxUnavailable
from cqrs_sync.integrations.sqlalchemy import ExternalSessions, Sessions, SQLAlchemyOutbox, begin_immediate, tables
from cqrs_sync.memory import MemoryBroker
from cqrs_sync.outbox import DeadLetterSelection
from cqrs_sync.testing.contracts.outbox import LONG, claim, published
from cqrs_sync.testing.waiting import in_threads
from tests.servers import free_port
from tests.waiting import eventually

METADATA = sa.MetaData()
OUTBOX = tables(METADATA)
ORDERS = sa.Table("orders", METADATA, sa.Column("name", sa.String(50), primary_key=True), mysql_engine="InnoDB")
STOCK = sa.Table(
    "stock",
    METADATA,
    sa.Column("name", sa.String(50), primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
    mysql_engine="InnoDB",
)


@frozen
class PlaceOrder(cqrs.Command[None]):
    name: str


@frozen
class OrderPlaced(cqrs.NotificationEvent, topic="orders", name="order.placed", key="name"):
    name: str


def sqlite(path, **options):
    return begin_immediate(sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": 30}, **options))


@contextmanager
def created(engine):
    METADATA.create_all(engine)
    try:
        yield engine
    finally:
        METADATA.drop_all(engine)
        engine.dispose()


@pytest.fixture
def engine(tmp_path):
    with created(sqlite(tmp_path / "shop.db")) as engine:
        yield engine


@pytest.fixture
def postgresql(postgresql_url_of_module):
    with created(sa.create_engine(postgresql_url_of_module)) as engine:
        yield engine


@pytest.fixture
def mariadb(mariadb_url_of_module):
    # A statement waits one second for a lock.
    options = {"init_command": "SET SESSION innodb_lock_wait_timeout = 1"}
    with created(sa.create_engine(mariadb_url_of_module, connect_args=options)) as engine:
        yield engine


@pytest.fixture(params=["engine", pytest.param("postgresql", marks=pytest.mark.broker),
                        pytest.param("mariadb", marks=pytest.mark.broker)])  # fmt: skip
def each_engine(request):
    return request.getfixturevalue(request.param)


def wired(sessions, place, **options):
    """A mediator whose orders are handled by `place`."""
    requests = cqrs.RequestMap()
    requests.bind(PlaceOrder, place)
    return cqrs.bootstrap(
        requests,
        cqrs.EventMap(),
        source="tests",
        broker=options.pop("broker", None) or MemoryBroker(),
        outbox=SQLAlchemyOutbox(sessions, tables=OUTBOX),
        threads=1,
        middleware=[sessions.atomic],
        **options,
    )


def count(engine, table):
    with engine.connect() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(table))


def test_the_broker_gets_exactly_what_was_committed(each_engine):
    """
    From a command with its row and its event to the broker.
    """
    sessions, broker = Sessions(sessionmaker(each_engine)), MemoryBroker()

    def place(request: PlaceOrder) -> None:
        sessions.current().execute(ORDERS.insert().values(name=request.name))
        cqrs.raise_event(OrderPlaced(request.name))
        if request.name == "bad":
            raise ValueError(request.name)

    with wired(sessions, place, broker=broker) as mediator:
        for name in ("lamp", "table"):
            mediator.send(PlaceOrder(name))
        with pytest.raises(ValueError, match="bad"):
            mediator.send(PlaceOrder("bad"))
        eventually(lambda: len(broker.published) == 2)

    assert [b'{"name":"lamp"}', b'{"name":"table"}'] == [message.body for message in broker.published]
    assert (2, 2, 0) == tuple(count(each_engine, table) for table in (ORDERS, OUTBOX.messages, OUTBOX.deliveries))


# Arguments


def test_tables_may_have_other_names(engine):
    """
    The outbox needs nothing but the record of its tables.
    """
    other = tables(metadata := sa.MetaData(), messages="note", deliveries="note_delivery")
    metadata.create_all(engine)
    sessions = Sessions(sessionmaker(engine))
    outbox = SQLAlchemyOutbox(sessions, tables=other)
    with sessions.begin():
        outbox.add([published("1")])

    assert ["1"] == claim(outbox)
    assert "SQLAlchemyOutbox(note, note_delivery)" == repr(outbox)


@pytest.mark.broker
def test_tables_may_be_in_a_schema(postgresql):
    """
    The outbox needs nothing but the record of its tables.
    """
    other = tables(metadata := sa.MetaData(), schema="apart")
    with postgresql.begin() as connection:
        connection.execute(sa.schema.CreateSchema("apart"))
        metadata.create_all(connection)
    sessions = Sessions(sessionmaker(postgresql))
    outbox = SQLAlchemyOutbox(sessions, tables=other, notify=True)
    with sessions.begin():
        outbox.add([published("1")])

    assert ["1"] == claim(outbox)
    assert 0 == count(postgresql, OUTBOX.messages)


def test_rows_can_be_read_with_the_tables(each_engine):
    """
    The tables return values of the right types to an application.
    """
    sessions = Sessions(sessionmaker(each_engine))
    with sessions.begin():
        SQLAlchemyOutbox(sessions).add([published("1", key="k")])
    with each_engine.connect() as connection:
        message = connection.execute(sa.select(OUTBOX.messages)).one()
        delivery = connection.execute(sa.select(OUTBOX.deliveries)).one()

    assert (b"1", "k", message.id) == (message.payload, message.partition_key, delivery.message_id)
    assert delivery.due_at >= message.created_at


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda engine: SQLAlchemyOutbox(Sessions(lambda: Session(engine))), "engine=engine"),
        (SQLAlchemyOutbox, "db.session"),
        (lambda engine: SQLAlchemyOutbox(sessionmaker(engine)), "Sessions"),
        (lambda engine: SQLAlchemyOutbox(Sessions(autocommitting(engine))), "which commits each statement"),
        (lambda engine: SQLAlchemyOutbox(Sessions(made_autocommitting(engine))), "which commits each statement"),
    ],
)
def test_wrong_arguments_are_errors_with_the_way_out(engine, given, words):
    """
    The constructor raises them.
    """
    with pytest.raises(ConfigurationError, match=words):
        given(engine)


def autocommitting(engine):
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def made_autocommitting(engine):
    return sa.create_engine(engine.url, isolation_level="AUTOCOMMIT")


def test_begin_immediate_is_for_sqlite():
    """
    Other databases have row locks.
    """
    with pytest.raises(ConfigurationError, match="postgresql"):
        begin_immediate(sa.create_engine("postgresql+psycopg://nobody@127.0.0.1/nowhere"))


def test_a_function_that_makes_sessions_needs_the_engine_beside_it(engine):
    """
    What it returns is not known before it is called.
    """
    sessions = Sessions(lambda: Session(engine), engine=engine)
    outbox = SQLAlchemyOutbox(sessions)
    with sessions.begin():
        outbox.add([published("1")])
    with pytest.raises(NotInTransaction, match="no transaction is open"):
        outbox.add([published("2")])

    assert ["1"] == claim(outbox)


def test_a_session_may_have_several_engines(engine, tmp_path):
    """
    `bind_arguments` choose the engine of the outbox.
    """
    other = sqlite(tmp_path / "other.db")
    maker = sessionmaker(binds={ORDERS: engine, STOCK: other})
    sessions = Sessions(maker, engine=engine, bind_arguments={"clause": ORDERS})
    unsure = Sessions(maker, engine=engine)
    outbox = SQLAlchemyOutbox(sessions)
    with sessions.begin():
        outbox.add([published("1")])
    with unsure.begin(), pytest.raises(NotInTransaction):
        SQLAlchemyOutbox(unsure).add([published("2")])
    other.dispose()

    assert ["1"] == claim(outbox)


def test_the_error_names_the_other_database_of_the_transaction(engine, tmp_path):
    """
    The message and the change it announces could not commit together.
    """
    there = sqlite(tmp_path / "other.db")
    other = Sessions(sessionmaker(there), engine=engine)
    outbox = SQLAlchemyOutbox(other)
    with other.begin(), pytest.raises(NotInTransaction, match=r"other\.db"):
        outbox.add([published("1")])
    there.dispose()

    assert [] == claim(outbox)


def test_a_session_on_a_connection_writes_there(engine):
    """
    As in tests that roll everything back at their end.
    """
    with engine.connect() as connection, connection.begin() as transaction:
        session = Session(connection, join_transaction_mode="create_savepoint")
        outbox = SQLAlchemyOutbox(ExternalSessions(lambda: session, engine=engine))
        with session.begin():
            outbox.add([published("1")])
        assert 1 == connection.scalar(sa.select(sa.func.count()).select_from(OUTBOX.messages))
        transaction.rollback()
        session.close()

    assert 0 == count(engine, OUTBOX.messages)


# Errors


def test_the_error_names_a_missing_table_and_the_way_out(each_engine):
    """
    Whether the outbox writes, claims or reads.
    """
    METADATA.drop_all(each_engine, [OUTBOX.deliveries])
    sessions = Sessions(sessionmaker(each_engine))
    outbox = SQLAlchemyOutbox(sessions)

    def write():
        with sessions.begin():
            outbox.add([published("1")])

    for action in (write, lambda: outbox.claim(1, LONG), outbox.backlog, lambda: outbox.next_due(())):
        with pytest.raises(OutboxNotInstalled, match=r"cqrs_delivery.*create_all"):
            action()
    assert 0 == count(each_engine, OUTBOX.messages)


def test_the_error_names_a_table_of_another_version(each_engine):
    """
    A missing column is reported like a missing table.
    """
    METADATA.drop_all(each_engine, [OUTBOX.deliveries])
    with each_engine.begin() as connection:
        connection.execute(sa.schema.CreateTable(sa.Table("cqrs_delivery", sa.MetaData(), sa.Column("id", sa.Integer))))
    outbox = SQLAlchemyOutbox(Sessions(sessionmaker(each_engine)))

    with pytest.raises(OutboxNotInstalled, match="cqrs_delivery"):
        outbox.dead_letters(DeadLetterSelection())


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "mysql+pymysql"])
def test_an_unreachable_server_is_a_retryable_error_without_the_password(driver):
    """
    The server may come back.
    """
    engine = sa.create_engine(f"{driver}://user:hunter2@127.0.0.1:{free_port()}/shop")
    outbox = SQLAlchemyOutbox(Sessions(sessionmaker(engine)))
    for action in (lambda: outbox.claim(1, LONG), lambda: outbox.add([published("secret-body")], own_transaction=True)):
        with pytest.raises(OutboxUnavailable) as caught:
            action()
        assert caught.value.retryable
        assert "hunter2" not in f"{caught.value!r} {caught.value.__cause__}"


def test_an_error_does_not_show_the_content_of_a_message(engine):
    """
    Neither does its cause, which a log shows with it.
    """
    outbox = SQLAlchemyOutbox(Sessions(sessionmaker(engine)))
    entry = published("hunter2")
    outbox.add([entry], own_transaction=True)
    with pytest.raises(OutboxUnavailable) as caught:
        outbox.add([entry], own_transaction=True)

    assert "hunter2" not in f"{caught.value!r} {caught.value.__cause__}"


def test_an_exhausted_pool_is_an_error_after_its_timeout(tmp_path):
    """
    The engine says how long that is.
    """
    with created(sqlite(tmp_path / "shop.db", pool_size=1, max_overflow=0, pool_timeout=0.05)) as engine:
        outbox = SQLAlchemyOutbox(Sessions(sessionmaker(engine)))
        with engine.connect(), pytest.raises(OutboxUnavailable, match="TimeoutError"):
            outbox.claim(1, LONG)


# Notifications


@pytest.mark.broker
def test_a_listener_is_notified_of_commits(postgresql):
    """
    Not of rollbacks.
    """
    sessions = Sessions(sessionmaker(postgresql))
    outbox = SQLAlchemyOutbox(sessions, notify=True)
    listener = outbox.listener()
    with suppress(ValueError), sessions.begin():
        outbox.add([published("never")])
        raise ValueError
    assert not listener.wait(0.05)
    with sessions.begin():
        outbox.add([published("1")])

    assert listener.wait(10)
    assert not listener.wait(0)
    listener.close()


@pytest.mark.broker
def test_a_listener_raises_when_its_connection_is_killed(postgresql):
    """
    A new listener works.
    """
    outbox = SQLAlchemyOutbox(Sessions(sessionmaker(postgresql)), notify=True)
    listener = outbox.listener()
    with postgresql.connect() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND query LIKE 'LISTEN%%'"
        )
        with pytest.raises(OutboxUnavailable):
            listener.wait(10)
    listener.close()
    other = outbox.listener()
    outbox.add([published("1")], own_transaction=True)

    assert other.wait(10)
    other.close()


@pytest.mark.broker
def test_a_listener_without_a_server_is_an_error(postgresql_url_of_module):
    """
    The same error as for other trouble with the database.
    """
    engine = sa.create_engine(sa.make_url(postgresql_url_of_module).set(port=free_port()))
    with pytest.raises(OutboxUnavailable):
        SQLAlchemyOutbox(Sessions(sessionmaker(engine))).listener()


@pytest.mark.broker
def test_a_listener_takes_no_connection_of_the_pool(postgresql):
    """
    It has a connection of its own while it listens.
    """
    listener = SQLAlchemyOutbox(Sessions(sessionmaker(postgresql))).listener()

    assert 0 == postgresql.pool.checkedout()
    listener.close()


def test_other_databases_have_no_listener(engine):
    """
    Relays poll there.
    """
    assert SQLAlchemyOutbox(Sessions(sessionmaker(engine))).listener() is None


# Deadlocks and locks


class Rivals:
    """Two commands that each want a lock that the other one has. Handlers catch the errors, or do not."""

    def __init__(self, engine, *, caught):
        self.engine = engine
        self.sessions = Sessions(sessionmaker(engine))
        self.meeting = threading.Barrier(2)
        self.caught = caught
        self.errors = []
        with engine.begin() as connection:
            connection.execute(STOCK.insert(), [{"name": name, "count": 1} for name in ("a", "b")])

    def place(self, request: PlaceOrder) -> None:
        session, (first, second) = self.sessions.current(), request.name
        session.execute(ORDERS.insert().values(name=f"before {request.name}"))
        cqrs.raise_event(OrderPlaced(f"before {request.name}"))
        self.take(session, first)
        with suppress(threading.BrokenBarrierError):
            self.meeting.wait(10)
        try:
            self.take(session, second)
        except OperationalError as error:
            self.errors.append(error.orig.args[0])
            if not self.caught:
                raise
        session.execute(ORDERS.insert().values(name=f"after {request.name}"))
        cqrs.raise_event(OrderPlaced(f"after {request.name}"))

    def take(self, session, name):
        session.execute(STOCK.update().where(STOCK.c.name == name).values(count=STOCK.c.count - 1))

    def run(self, *names):
        """Send these orders at once; return the outcomes, by type."""
        outcomes = []

        def send(mediator, name):
            try:
                mediator.send(PlaceOrder(name))
            except Exception as error:  # noqa: BLE001 -- compared below
                outcomes.append(type(error))
            else:
                outcomes.append(None)

        with wired(self.sessions, self.place, fast_path=False) as mediator:
            in_threads(*(lambda name=name: send(mediator, name) for name in names))
        return set(outcomes)


@pytest.mark.broker
@pytest.mark.parametrize(("caught", "error"), [(False, OperationalError), (True, OutboxUnavailable)])
def test_a_deadlock_leaves_no_half_transaction(mariadb, caught, error):
    """
    MariaDB, 1213: what came before is rolled back, so nothing is committed, whatever the handler does.
    """
    rivals = Rivals(mariadb, caught=caught)

    assert {None, error} == rivals.run("ab", "ba")
    assert [1213] == rivals.errors
    assert (2, 2) == (count(mariadb, ORDERS), count(mariadb, OUTBOX.messages))
    # The lock ends with its transaction.
    rivals.meeting.abort()
    assert {None} == rivals.run("aa")


@pytest.mark.broker
@pytest.mark.parametrize(("caught", "error"), [(False, OperationalError), (True, OutboxUnavailable)])
def test_a_lock_that_is_not_granted_leaves_no_half_transaction(mariadb, caught, error):
    """
    MariaDB, 1205: the server rolls back the statement or everything, as it is set. Nothing is committed.
    """
    rivals = Rivals(mariadb, caught=caught)
    rivals.meeting.abort()
    with mariadb.begin() as connection:
        connection.execute(STOCK.update().where(STOCK.c.name == "b").values(count=0))
        assert {error} == rivals.run("ab")

    assert [1205] == rivals.errors
    assert (0, 0) == (count(mariadb, ORDERS), count(mariadb, OUTBOX.messages))


@pytest.mark.broker
def test_a_session_works_after_a_transaction_that_could_not_commit(mariadb):
    """
    On the same connection, too: the next transaction may commit.
    """
    rivals = Rivals(mariadb, caught=True)
    with mariadb.connect() as connection:
        session = Session(connection)
        outbox = SQLAlchemyOutbox(ExternalSessions(lambda: session, engine=mariadb))
        session.execute(ORDERS.insert().values(name="lamp"))
        outbox.add([published("1")])
        with mariadb.begin() as other:
            other.execute(STOCK.update().where(STOCK.c.name == "b").values(count=0))
            with suppress(OperationalError):
                rivals.take(session, "b")
        with pytest.raises(OutboxUnavailable, match="1205"):
            session.commit()
        session.rollback()
        session.execute(ORDERS.insert().values(name="table"))
        outbox.add([published("2")])
        session.commit()
        session.close()

    assert ["2"] == claim(outbox)
    assert 1 == count(mariadb, ORDERS)


@pytest.mark.broker
def test_a_lock_wait_timeout_in_a_savepoint_is_harmless(mariadb):
    """
    What was done in the savepoint is rolled back; the rest is whole.
    """
    rivals = Rivals(mariadb, caught=True)

    def place(request: PlaceOrder) -> None:
        session = rivals.sessions.current()
        session.execute(ORDERS.insert().values(name=request.name))
        cqrs.raise_event(OrderPlaced(request.name))
        with suppress(OperationalError), session.begin_nested():
            rivals.take(session, "b")

    rivals.place = place
    with mariadb.begin() as connection:
        connection.execute(STOCK.update().where(STOCK.c.name == "b").values(count=0))
        assert {None} == rivals.run("lamp")

    assert (1, 1) == (count(mariadb, ORDERS), count(mariadb, OUTBOX.messages))


@pytest.mark.slow
def test_processes_that_share_a_sqlite_file_wait_for_each_other(engine, caplog):
    """
    Eight processes send a hundred commands each and relay them: none gets "database is locked".
    """
    sessions = Sessions(sessionmaker(engine))

    def place(request: PlaceOrder) -> None:
        # Reads first, then writes.
        sessions.current().scalar(sa.select(sa.func.count()).select_from(ORDERS))
        sessions.current().execute(ORDERS.insert().values(name=request.name))
        cqrs.raise_event(OrderPlaced(request.name))

    def work(process):
        with wired(sessions, place) as mediator:
            for number in range(100):
                mediator.send(PlaceOrder(f"{process}/{number}"))
        assert [] == caplog.records

    processes = [multiprocessing.get_context("fork").Process(target=work, args=(number,)) for number in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)

    assert [0] * 8 == [process.exitcode for process in processes]
    assert (800, 800) == (count(engine, ORDERS), count(engine, OUTBOX.messages))
