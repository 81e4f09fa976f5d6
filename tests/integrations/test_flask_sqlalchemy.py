"""Flask-SQLAlchemy's session, and any `scoped_session`: commands commit it, handlers on the pool have their own."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa
from attrs import frozen
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

import cqrs_sync as cqrs
from cqrs_sync.errors import ConfigurationError, EventsFailed
from cqrs_sync.integrations.sqlalchemy import ExternalSessions, bootstrap
from cqrs_sync.memory import MemoryBroker
from tests.waiting import eventually


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    name: Mapped[str] = mapped_column(sa.String(50), primary_key=True)


class Mail(Base):
    __tablename__ = "mails"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(50))


@frozen
class PlaceOrder(cqrs.Command[str]):
    name: str


@frozen
class CountOrders(cqrs.Query[int]):
    pass


@frozen
class OrderPlaced(cqrs.NotificationEvent, topic="orders", name="order.placed", key="name"):
    name: str


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgresql_url_of_module", marks=pytest.mark.broker),
        pytest.param("mariadb_url_of_module", marks=pytest.mark.broker),
    ]
)
def shop(request, tmp_path):
    url = f"sqlite:///{tmp_path}/shop.db" if request.param == "sqlite" else request.getfixturevalue(request.param)
    shop = FlaskShop(url)
    yield shop
    shop.close()


class FlaskShop:
    """A Flask application whose handlers use `db.session`, and do not commit it."""

    def __init__(self, url):
        self.app = Flask(__name__)
        engine_options = {"connect_args": {"timeout": 30}} if url.startswith("sqlite") else {}
        self.app.config |= {"SQLALCHEMY_DATABASE_URI": url, "SQLALCHEMY_ENGINE_OPTIONS": engine_options}
        self.db = SQLAlchemy(self.app, model_class=Base)
        self.requests, self.events, self.broker = cqrs.RequestMap(), cqrs.EventMap(), MemoryBroker()
        self.requests.bind(PlaceOrder, self.place)
        self.requests.bind(CountOrders, self.count)
        self.app.post("/orders/<name>")(self.post)
        self.app.post("/orders/<name>/failing")(self.post_with_a_row_of_its_own)

    def wire(self, **options):
        db, app = self.db, self.app
        with app.app_context():
            self.mediator = bootstrap(
                self.requests,
                self.events,
                session=db.session,
                engine=db.engine,
                metadata=db.metadata,
                around=app.app_context,
                source="shop",
                broker=self.broker,
                **options,
            )
            db.create_all()
        return self.mediator

    def place(self, command: PlaceOrder) -> str:
        self.db.session.add(Order(name=command.name))
        cqrs.raise_event(OrderPlaced(command.name))
        return command.name

    def count(self, query: CountOrders) -> int:
        return self.db.session.scalar(sa.select(sa.func.count()).select_from(Order))

    def mail(self, event: OrderPlaced) -> None:
        self.db.session.add(Mail(name=event.name))

    def post(self, name):
        # As Flask-Login does: the session has a transaction before the command.
        before = self.db.session.get(Order, name)
        return {"placed": self.mediator.send(PlaceOrder(name)), "before": before is not None}

    def post_with_a_row_of_its_own(self, name):
        self.db.session.add(Order(name="of the view"))
        with self.db.session.begin_nested():
            self.mediator.send(PlaceOrder(name))
        self.db.session.rollback()
        return {}

    def rows(self, column):
        with self.app.app_context(), self.db.engine.connect() as connection:
            return list(connection.scalars(sa.select(column).order_by(column)))

    def close(self):
        self.mediator.close()
        with self.app.app_context():
            self.db.drop_all()
            self.db.engine.dispose()


def another(handler):
    """Return another handler that does the same."""

    def handle(event: OrderPlaced) -> None:
        handler(event)

    return handle


def bind_three(events, handler):
    """Three handlers that do the same."""
    for _ in range(3):
        events.bind(OrderPlaced, another(handler))


def test_a_view_sends_a_command_and_that_is_all(shop):
    """The command commits, even if the view has used the session before. Its events are handled and published."""
    shop.events.bind(OrderPlaced, shop.mail)
    shop.wire(threads=2)
    answer = shop.app.test_client().post("/orders/lamp").json
    eventually(lambda: shop.broker.published)

    assert {"placed": "lamp", "before": False} == answer
    assert (["lamp"], ["lamp"]) == (shop.rows(Order.name), shop.rows(Mail.name))


def test_inside_of_the_views_own_transaction_the_view_commits(shop):
    """Here it rolls back: the order and its event are gone as well."""
    shop.events.bind(OrderPlaced, shop.mail)
    mediator = shop.wire(threads=2)
    shop.app.test_client().post("/orders/lamp/failing")

    assert ([], []) == (shop.rows(Order.name), shop.rows(Mail.name))
    assert 0 == mediator.relay.outbox.backlog().waiting


def test_a_view_can_group_commands_in_a_transaction(shop):
    """`db.session.begin()` begins it, and its end commits both."""
    shop.wire(threads=2)
    with shop.app.app_context():
        with shop.db.session.begin():
            shop.mediator.send(PlaceOrder("lamp"))
            shop.mediator.send(PlaceOrder("table"))
            assert 2 == shop.mediator.send(CountOrders())
            assert not shop.broker.published
        eventually(lambda: len(shop.broker.published) == 2)

    assert ["lamp", "table"] == shop.rows(Order.name)


def test_a_query_does_not_commit_what_the_view_has_begun(shop):
    """It sees it."""
    shop.wire(threads=2)
    with shop.app.app_context():
        shop.db.session.add(Order(name="lamp"))
        assert 1 == shop.mediator.send(CountOrders())
        shop.db.session.rollback()

    assert [] == shop.rows(Order.name)


def test_handlers_on_the_pool_have_sessions_of_their_own(shop):
    """Each of their rows is committed."""
    sessions = set()
    meet = threading.Barrier(3, timeout=10)

    def mail(event: OrderPlaced) -> None:
        sessions.add(shop.db.session())
        meet.wait()
        shop.mail(event)

    bind_three(shop.events, mail)
    shop.wire(threads=3)
    client = shop.app.test_client()
    for number in range(5):
        client.post(f"/orders/{number}")

    assert (15, 15) == (len(shop.rows(Mail.name)), len(sessions))


def test_durable_handlers_and_their_rows_are_committed(shop):
    """The handler does not commit. The relay's threads have no application context."""
    shop.events.bind(OrderPlaced, shop.mail, phase=cqrs.Phase.DURABLE, name="mail")
    mediator = shop.wire(threads=2)
    shop.app.test_client().post("/orders/lamp")
    eventually(lambda: mediator.relay.outbox.backlog().waiting == 0)

    assert ["lamp"] == shop.rows(Mail.name)


def test_an_inline_handler_is_in_the_transaction_of_the_command(shop):
    """Its failure rolls the command back."""

    def fail(event: OrderPlaced) -> None:
        shop.mail(event)
        shop.db.session.flush()
        raise ValueError("inline")

    shop.events.bind(OrderPlaced, fail, phase=cqrs.Phase.INLINE)
    shop.wire(threads=2)
    with shop.app.app_context(), pytest.raises(ValueError, match="inline"):
        shop.mediator.send(PlaceOrder("lamp"))

    assert ([], []) == (shop.rows(Order.name), shop.rows(Mail.name))


def test_a_handler_that_fails_after_the_commit_leaves_nothing_but_the_commands_rows(shop):
    """Its own session is rolled back."""

    def fail(event: OrderPlaced) -> None:
        shop.mail(event)
        shop.db.session.flush()
        raise ValueError("after the commit")

    shop.events.bind(OrderPlaced, fail)
    shop.wire(threads=2)
    with shop.app.app_context(), pytest.raises(EventsFailed):
        shop.mediator.send(PlaceOrder("lamp"))

    assert (["lamp"], []) == (shop.rows(Order.name), shop.rows(Mail.name))


def test_outside_of_an_application_context_a_command_has_its_own(shop):
    """As in a script or a Celery task. The inbox works there, too."""
    mediator = shop.wire(threads=2)
    answers = [mediator.send(PlaceOrder("lamp"), idempotency_key="1") for _ in range(2)]

    assert (["lamp", "lamp"], ["lamp"]) == (answers, shop.rows(Order.name))


def test_a_received_message_commits_with_its_receipt(shop):
    """As in a consumer's thread, which has no application context."""
    shop.events.bind(OrderPlaced, shop.mail)
    mediator = shop.wire(threads=2, fast_path=False)
    with cqrs.bootstrap(broker=(broker := MemoryBroker()), source="other") as sender:
        sender.publish(OrderPlaced("lamp"))
        sent = broker.published[0]
    for _ in range(2):
        mediator.receive(
            cqrs.IncomingMessage(sent.topic, sent.body, sent.content_type, key=sent.key, attributes=sent.attributes)
        )

    assert ["lamp"] == shop.rows(Mail.name)


def test_a_consumer_commits_each_message_in_a_session_of_its_own(shop):
    """A thread handles several messages in one application context, and returns its connection after each."""
    sessions = set()

    def mail(event: OrderPlaced) -> None:
        sessions.add(shop.db.session())
        shop.mail(event)

    shop.events.bind(OrderPlaced, mail)
    mediator = shop.wire(threads=3, fast_path=False)
    consumer = cqrs.Consumer(mediator, "billing", topics=["orders"])
    # Messages wait for a group from its first subscription on.
    shop.broker.subscribe(consumer.group).close()
    sender = cqrs.bootstrap(broker=shop.broker, source="other")
    for number in range(30):
        sender.publish(OrderPlaced(str(number)))
    with consumer:
        eventually(lambda: len(shop.rows(Mail.name)) == 30)

    assert 30 == len(sessions)
    with shop.app.app_context():
        assert 0 == shop.db.engine.pool.checkedout()


def test_pool_threads_keep_no_connection(shop):
    """After the handlers of a command all connections are back in the engine's pool."""
    bind_three(shop.events, shop.mail)
    shop.wire(threads=3, fast_path=False)
    shop.app.test_client().post("/orders/lamp")
    with shop.app.app_context():
        assert 0 == shop.db.engine.pool.checkedout()


def test_the_caller_may_run_handlers_itself(shop):
    """They use the caller's session, which has been committed."""
    shop.events.bind(OrderPlaced, shop.mail)
    shop.wire(threads=cqrs.SameThread())
    with shop.app.app_context():
        assert "lamp" == shop.mediator.send(PlaceOrder("lamp"))
        assert not shop.db.session().in_transaction()

    assert ["lamp"] == shop.rows(Mail.name)


# What cannot work


@pytest.mark.parametrize("session", [lambda db: db.session, lambda db: lambda: db.session])
def test_without_an_application_context_of_their_own_handlers_fail(tmp_path, session):
    """Three threads would use one session. The error names what is missing."""
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path}/shop.db"
    db = SQLAlchemy(app, model_class=Base)
    requests, events = cqrs.RequestMap(), cqrs.EventMap()

    def place(command: PlaceOrder) -> str:
        cqrs.raise_event(OrderPlaced(command.name))
        return ""

    def mail(event: OrderPlaced) -> None:
        db.session.add(Mail(name=event.name))

    requests.bind(PlaceOrder, place)
    bind_three(events, mail)
    with app.app_context():
        db.create_all()
        with pytest.raises((ConfigurationError, EventsFailed)) as caught:
            bootstrap(
                requests, events, source="tests", session=session(db), engine=db.engine, broker=MemoryBroker()
            ).send(PlaceOrder("1"))
        db.engine.dispose()

    assert "around=app.app_context" in "".join(map(str, getattr(caught.value, "exceptions", [caught.value])))


# Any other scoped_session


@pytest.fixture
def engine(tmp_path):
    engine = sa.create_engine(f"sqlite:///{tmp_path}/shop.db", connect_args={"timeout": 30})
    yield engine
    engine.dispose()


def test_a_scoped_session_needs_no_more_than_itself(engine):
    """It knows its engine, and each thread has its own."""
    registry = scoped_session(sessionmaker(engine))
    requests, events = cqrs.RequestMap(), cqrs.EventMap()

    def place(command: PlaceOrder, session: Session) -> str:
        assert session is registry()
        session.add(Order(name=command.name))
        cqrs.raise_event(OrderPlaced(command.name))
        return ""

    def mail(event: OrderPlaced) -> None:
        registry.add(Mail(name=event.name))

    requests.bind(PlaceOrder, place)
    events.bind(OrderPlaced, mail)
    events.bind(OrderPlaced, another(mail), phase=cqrs.Phase.DURABLE, name="mail")
    with bootstrap(
        requests, events, source="tests", session=registry, metadata=Base.metadata, threads=2, broker=MemoryBroker()
    ) as mediator:
        Base.metadata.create_all(engine)
        mediator.send(PlaceOrder("lamp"))
        eventually(lambda: mediator.relay.outbox.backlog().waiting == 0)
    registry.remove()
    with Session(engine) as session:
        assert ["lamp", "lamp"] == session.scalars(sa.select(Mail.name)).all()


def test_one_session_in_two_threads_is_an_error(engine):
    """Found out when both use it."""
    Base.metadata.create_all(engine)
    shared = Session(engine)
    sessions = ExternalSessions(lambda: shared, engine=engine)
    errors = []

    def use():
        try:
            with sessions.begin():
                pass
        except ConfigurationError as error:
            errors.append(str(error))

    with sessions.begin():
        thread = threading.Thread(target=use)
        thread.start()
        thread.join(10)
    shared.close()

    assert ["two threads use one session"] == [error[: len("two threads use one session")] for error in errors]
