"""B6, the inbox: however often a message comes, each of its handlers has its effect once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import attrs
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import sessionmaker

import cqrs_sync as cqrs
from cqrs_sync.broker import IncomingMessage
from cqrs_sync.integrations.sqlalchemy import Sessions, SQLAlchemyInbox, SQLAlchemyOutbox, inbox_table, tables
from cqrs_sync.memory import MemoryBroker, MemoryInbox, MemoryOutbox, MemoryTransactions
from cqrs_sync.testing.waiting import in_threads
from tests.source import ROOT

MESSAGES, TIMES, THREADS = 1000, 3, 4


@attrs.frozen
class Paid(cqrs.NotificationEvent, topic="payments", name="paid"):
    number: int


@attrs.frozen
class Booked(cqrs.DomainEvent, name="booked"):
    number: int


@attrs.frozen
class Billed(cqrs.NotificationEvent, topic="bills", name="billed"):
    number: int


def arrived(number: int = 1, *, identity: str | None = None) -> IncomingMessage:
    """A payment, as it comes from a broker."""
    attributes = {"specversion": "1.0", "id": identity or f"m{number}", "source": "/payments", "type": "paid"}
    return IncomingMessage(topic="payments", body=b'{"number":%d}' % number, attributes=attributes)


class Office:
    """A mediator with an inbox in memory, and a list of what its handlers did."""

    def __init__(self, transactions: MemoryTransactions | None = None, **options: Any) -> None:
        self.transactions = transactions or MemoryTransactions()
        self.inbox = MemoryInbox(self.transactions)
        self.outbox = MemoryOutbox(self.transactions)
        self.broker = MemoryBroker()
        self.events, self.requests = cqrs.EventMap(), cqrs.RequestMap()
        self.calls: list[Any] = []
        self.failing: set[str] = set()
        self.mediator = cqrs.bootstrap(
            self.requests,
            self.events,
            source="tests",
            **{"broker": self.broker, "outbox": self.outbox, "inbox": self.inbox, "threads": 2, **options},
        )

    def handler(self, name, event_type=Paid, **options):
        """Bind a handler that notes its name, and fails as long as that is in `failing`."""

        def handle(event):
            self.calls.append(name)
            if name in self.failing:
                raise ValueError(name)

        return self.events.bind(event_type, handle, name=name, **options)


@pytest.fixture
def office():
    office = Office()
    with office.mediator:
        yield office


# Messages


def test_b6_a_message_that_comes_again_has_no_effect(office):
    office.handler("book")
    for _ in range(3):
        office.mediator.receive(arrived())
    office.mediator.receive(arrived(identity="another"))

    assert ["book", "book"] == office.calls


def test_b6_handlers_of_each_phase_run_once_here_one_after_the_other(office):
    threads = []
    office.handler("inline", phase=cqrs.Phase.INLINE)
    office.handler("after")
    office.handler("durable", phase=cqrs.Phase.DURABLE)
    office.events.bind(Paid, lambda event: threads.append((threading.get_ident(), office.transactions.active())))
    for _ in range(2):
        office.mediator.receive(arrived())

    assert ["inline", "after", "durable"] == office.calls
    assert [(threading.get_ident(), True)] == threads
    assert 0 == office.outbox.backlog().waiting


def test_b6_only_the_handler_that_failed_runs_again(office):
    for name in ("book", "thank", "file"):
        office.handler(name)
    office.failing = {"thank"}
    with pytest.raises(cqrs.EventsFailed, match="Paid was received, but then these failed") as caught:
        office.mediator.receive(arrived())
    assert ["book", "thank", "file"] == office.calls
    [failure] = caught.value.failures
    assert (Paid(1), "ValueError('thank')") == (failure.event, repr(failure.error))
    assert "thank" == failure.handler

    office.failing = set()
    office.mediator.receive(arrived())
    office.mediator.receive(arrived())

    assert ["book", "thank", "file", "thank"] == office.calls


@pytest.mark.parametrize(
    "policy", [cqrs.LogFailures(), cqrs.FailFast(), cqrs.CollectFailures()], ids=["log", "fail-fast", "collect"]
)
def test_b6_failures_come_back_whatever_the_policy(policy):
    office = Office(failure_policy=policy)
    office.handler("book")
    office.handler("thank")
    office.failing = {"book"}
    with office.mediator, pytest.raises(cqrs.EventsFailed):
        office.mediator.receive(arrived())

    assert ["book", "thank"] == office.calls


def test_b6_what_a_handler_raises_follows_its_commit_once(office):
    """
    And what follows is not lost by the message, nor repeated with it.
    """
    seen = []
    office.events.bind(Paid, lambda event: [cqrs.raise_event(Booked(event.number)), cqrs.raise_event(Billed(7))])
    office.events.bind(Booked, lambda event: seen.append((event.number, office.transactions.active())))
    for _ in range(2):
        office.mediator.receive(arrived())
    office.mediator.close(5)

    assert [(1, False)] == seen
    [published] = office.broker.published
    assert ("billed", "m1") == (published.type, published.attributes["causationid"])


def test_b6_what_a_failed_handler_raises_never_happened(office):
    seen = []
    office.events.bind(Booked, seen.append)

    @office.events.bind
    def book(event: Paid) -> None:
        cqrs.raise_event(Booked(event.number))
        raise ValueError

    with pytest.raises(cqrs.EventsFailed):
        office.mediator.receive(arrived())

    assert [] == seen


def test_b6_what_fails_after_a_handler_does_not_repeat_it(office, caplog):
    """
    It is logged: the message would run the handler again, which has succeeded.
    """
    office.events.bind(Paid, lambda event: [office.calls.append("book"), cqrs.raise_event(Booked(1))])
    office.handler("count", Booked)
    office.failing = {"count"}
    for _ in range(2):
        office.mediator.receive(arrived())

    assert ["book", "count"] == office.calls
    assert "failed while handling Booked" in caplog.text


def test_b6_the_receipt_is_in_the_transaction_of_a_middleware():
    """
    The guard is innermost: it joins what a middleware opens, and what that does at the end still takes it back.
    """
    transactions = MemoryTransactions()
    troubles = [ValueError("the commit has failed")]
    seen = []

    def atomic(message, call_next):
        seen.append(transactions.active())
        with transactions.atomic():
            call_next(message)
            if troubles:
                raise troubles.pop()

    office = Office(transactions, middleware=cqrs.MiddlewareChain().add(atomic, Paid))
    office.handler("book")
    with office.mediator:
        with pytest.raises(cqrs.EventsFailed):
            office.mediator.receive(arrived())
        office.mediator.receive(arrived())
        office.mediator.receive(arrived())

    assert ["book", "book"] == office.calls
    assert [False, False, False] == seen


def test_b6_a_retry_inside_the_transaction_finds_nothing_done():
    """
    A middleware that calls again after a failure gets another run, not the receipt of the first.
    """
    transactions = MemoryTransactions()

    def stubborn(message, call_next):
        with transactions.atomic():
            try:
                return call_next(message)
            except ValueError:
                office.failing.clear()
                return call_next(message)

    office = Office(transactions, middleware=cqrs.MiddlewareChain().add(stubborn, Paid))
    office.handler("book")
    office.failing = {"book"}
    with office.mediator:
        office.mediator.receive(arrived())
        office.mediator.receive(arrived())

    assert ["book", "book"] == office.calls


def test_b6_an_event_in_hand_is_handled_once_as_well(office):
    office.handler("book")
    for key in ("a", "a", "b"):
        office.mediator.dispatcher.handle_received(Paid(1), key)

    assert ["book", "book"] == office.calls


def test_b6_a_handler_is_known_by_its_name_however_it_is_defined(office):
    """
    With a name it may move; without one it is known by where it is.
    """
    office.handler("book")
    office.mediator.receive(arrived())
    later = Office(inbox=office.inbox, outbox=office.outbox)
    later.events.bind(Paid, lambda event: later.calls.append("moved"), name="book")
    with later.mediator:
        later.mediator.receive(arrived())

    assert [] == later.calls


def test_b6_handlers_that_could_be_taken_for_each_other_are_refused(office):
    """
    One of them would never run.
    """
    for _ in range(2):
        office.events.bind(Paid, lambda event: None)
    with pytest.raises(cqrs.AlreadyBound, match=r"another handler of Paid.*name="):
        office.mediator.receive(arrived())


def test_b6_a_handler_that_is_defined_nowhere_needs_a_name(office):
    office.events.bind(Paid, office.calls.append)
    with pytest.raises(cqrs.InvalidBinding, match=r"has no name.*bind\(Paid, \.\.\., name="):
        office.mediator.receive(arrived())


def test_b6_a_name_of_another_phase_is_not_a_durable_one(office):
    """
    No relay asks for it.
    """
    office.handler("book")
    office.handler("file", phase=cqrs.Phase.DURABLE)

    assert {"file"} == office.events.durable_names
    dispatcher = office.mediator.dispatcher
    assert dispatcher.durable_call(Paid, "file").name
    with pytest.raises(cqrs.HandlerNotFound, match="'book'"):
        dispatcher.durable_call(Paid, "book")


@pytest.mark.parametrize("identity", ["x" * 256, "x\0y", "x\ud800"], ids=["long", "nul", "half-a-pair"])
def test_b6_an_id_that_names_nothing_is_malformed(office, identity):
    """
    Not an error of the database, for ever.
    """
    office.handler("book")
    with pytest.raises(cqrs.MalformedMessage, match="its id can name nothing"):
        office.mediator.receive(arrived(identity=identity))
    office.mediator.receive(arrived(identity="x" * 255))

    assert ["book"] == office.calls


# Requests


@attrs.frozen
class Pay(cqrs.Command["Receipt"]):
    amount: int


@attrs.frozen
class Receipt:
    number: int
    amount: Decimal
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Total:
    value: float


def test_b6_a_request_with_a_key_runs_once_and_is_answered_again(office):
    numbers = iter(range(100))

    def pay(request: Pay) -> Receipt:
        return Receipt(next(numbers), Decimal(request.amount) / 3, ("a", "b"))

    office.requests.bind(pay)
    first = office.mediator.send(Pay(10), idempotency_key="order-1")
    again = office.mediator.send(Pay(10), idempotency_key="order-1", timeout=5)

    assert first == again == Receipt(0, Decimal(10) / 3, ("a", "b"))
    assert (Receipt, tuple) == (type(again), type(again.notes))
    assert 1 == office.mediator.send(Pay(10), idempotency_key="order-2").number
    assert 2 == office.mediator.send(Pay(10)).number


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (type(None), None),
        (int, 7),
        (str, "Zoë"),
        (bool, False),
        (list[int], [1, 2]),
        (dict[str, Total], {"a": Total(1.5)}),
        (Total, Total(2.0)),
        (Total | None, None),
        (Total | None, Total(0.5)),
        (Decimal, Decimal("1.10")),
    ],
    ids=str,
)
def test_b6_responses_come_back_as_what_they_were(office, answer, value):
    class Ask(cqrs.Query[answer]):
        pass

    runs = []
    office.requests.bind(attrs.frozen(Ask), lambda request: [runs.append(request), value][1])
    kind = next(iter(office.requests)).message_type
    answers = [office.mediator.send(kind(), idempotency_key="k") for _ in range(2)]

    assert [value, value] == answers
    assert type(value) is type(answers[1])
    assert 1 == len(runs)


def test_b6_the_events_of_a_request_with_a_key_are_raised_once(office):
    office.requests.bind(Pay, lambda request: [cqrs.raise_event(Booked(1)), Receipt(1, Decimal(1))][1])
    office.handler("count", Booked)
    for _ in range(3):
        office.mediator.send(Pay(1), idempotency_key="k")

    assert ["count"] == office.calls


def test_b6_a_key_with_another_request_is_refused(office):
    office.requests.bind(Pay, lambda request: Receipt(1, Decimal(request.amount)))
    office.mediator.send(Pay(10), idempotency_key="k")
    with pytest.raises(cqrs.IdempotencyKeyConflict, match="another Pay"):
        office.mediator.send(Pay(11), idempotency_key="k")

    assert Decimal(10) == office.mediator.send(Pay(10), idempotency_key="k").amount


def test_b6_a_request_that_failed_has_used_no_key(office):
    trouble = Unpaid(ValueError("no money"))
    office.requests.bind(Pay, trouble)
    with pytest.raises(ValueError, match="no money"):
        office.mediator.send(Pay(10), idempotency_key="k")
    trouble.error = None

    assert 2 == office.mediator.send(Pay(11), idempotency_key="k").number
    assert 2 == office.mediator.send(Pay(11), idempotency_key="k").number


class Unpaid:
    """A handler that fails as long as it has an error."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.runs = 0

    def __call__(self, request: Pay) -> Receipt:
        self.runs += 1
        if self.error is not None:
            raise self.error
        return Receipt(self.runs, Decimal(request.amount))


def test_b6_a_response_that_cannot_be_kept_is_an_error_that_leaves_nothing(office):
    runs = []

    def pay(request: Pay) -> Any:
        runs.append(request)
        office.transactions.at_commit(lambda: runs.append("committed"))
        return object()

    office.requests.bind(pay)
    for _ in range(2):
        with pytest.raises(cqrs.SerializationError, match="the response of Pay, object, cannot become JSON"):
            office.mediator.send(Pay(1), idempotency_key="k")

    assert [Pay(1), Pay(1)] == runs


def test_b6_a_response_that_is_not_what_was_declared_is_told_at_once(office):
    """
    Not to whoever sends it again.
    """
    office.requests.bind(Pay, lambda request: "paid")
    with pytest.raises(cqrs.SerializationError, match="returned str, which cannot be read back as the Receipt"):
        office.mediator.send(Pay(1), idempotency_key="k")


def test_b6_a_request_that_does_not_say_its_answer_cannot_be_answered_again(office):
    class Bare(cqrs.Command):
        pass

    office.requests.bind(Bare, lambda request: None)
    with pytest.raises(cqrs.ConfigurationError, match="does not declare the type of its response"):
        office.mediator.send(Bare(), idempotency_key="k")


def test_b6_without_an_inbox_a_key_is_an_error():
    requests = cqrs.RequestMap()
    requests.bind(Pay, lambda request: None)
    with cqrs.bootstrap(requests) as mediator, pytest.raises(cqrs.ConfigurationError, match="give bootstrap an inbox"):
        mediator.send(Pay(1), idempotency_key="k")


@pytest.mark.parametrize("key", ["", "x" * 256, "x\0"], ids=["empty", "long", "nul"])
def test_b6_a_bad_key_is_refused(office, key):
    office.requests.bind(Pay, lambda request: Receipt(1, Decimal(1)))
    with pytest.raises(ValueError, match="key"):
        office.mediator.send(Pay(1), idempotency_key=key)


@pytest.mark.parametrize("key", [7, b"seven"])
def test_b6_a_key_that_is_no_text_is_named(office, key):
    office.requests.bind(Pay, lambda request: Receipt(1, Decimal(1)))
    with pytest.raises(TypeError, match=f"the idempotency_key must be a str, not the {type(key).__name__} {key!r}"):
        office.mediator.send(Pay(1), idempotency_key=key)


def test_b6_a_request_sent_by_a_handler_has_its_own_key(office):
    """
    The key of what is around it is that of the outer one again afterwards.
    """
    office.requests.bind(Pay, lambda request: Receipt(request.amount, Decimal(1)))

    @office.events.bind
    def pay_twice(event: Paid) -> None:
        office.calls.append([office.mediator.send(Pay(n), idempotency_key=f"k{n}").number for n in (1, 2)])

    office.handler("after")
    for _ in range(2):
        office.mediator.receive(arrived())

    assert [[1, 2], "after"] == office.calls


# On databases


@pytest.fixture(params=["postgresql_url_of_module", "mariadb_url_of_module"], ids=["postgresql", "mariadb"])
def url(request):
    return request.getfixturevalue(request.param)


class Shop:
    """A mediator with outbox and inbox in a database, and a table of effects that nothing keeps unique."""

    def __init__(self, url: str, **options: Any) -> None:
        self.engine = sa.create_engine(url, pool_size=20)
        metadata = sa.MetaData()
        tables(metadata)
        inbox_table(metadata)
        self.effects = sa.Table(
            "effects", metadata, sa.Column("handler", sa.String(20)), sa.Column("number", sa.Integer)
        )
        self.all = metadata
        metadata.create_all(self.engine)
        self.sessions = Sessions(sessionmaker(self.engine))
        self.events, self.requests = cqrs.EventMap(), cqrs.RequestMap()
        self.mediator = cqrs.bootstrap(
            self.requests,
            self.events,
            source="tests",
            broker=MemoryBroker(),
            outbox=SQLAlchemyOutbox(self.sessions),
            inbox=SQLAlchemyInbox(self.sessions),
            **options,
        )

    def effect(self, handler: str, number: int) -> None:
        self.sessions.current().execute(self.effects.insert().values(handler=handler, number=number))

    def counted(self) -> Counter[Any]:
        with self.engine.connect() as connection:
            return Counter(tuple(row) for row in connection.execute(sa.select(self.effects)))

    def close(self) -> None:
        self.mediator.close()
        self.all.drop_all(self.engine)
        self.engine.dispose()


@pytest.fixture
def shop(url):
    shop = Shop(url)
    yield shop
    shop.close()


class NowAndThen:
    """A handler that has its effect, and then fails the first time for each tenth number."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.seen: set[int] = set()
        self.lock = threading.Lock()

    def __call__(self, event: Paid) -> None:
        self.shop.effect("thank", event.number)
        with self.lock:
            is_first = event.number not in self.seen
            self.seen.add(event.number)
        if is_first and event.number % 10 == 0:
            raise ValueError("now and then")


def until_it_succeeds(shop: Shop, message: IncomingMessage) -> None:
    """Receive a message as a broker delivers it: again after a failure."""
    for _ in range(20):
        try:
            shop.mediator.receive(message)
        except cqrs.EventsFailed:
            continue
        return
    raise AssertionError("it failed twenty times")


@pytest.mark.broker
@pytest.mark.slow
def test_b6_each_of_a_thousand_messages_has_its_effects_once(shop):
    """
    Delivered three times each, by four threads at once, with a handler that fails now and then.
    """
    shop.events.bind(Paid, lambda event: shop.effect("book", event.number))
    shop.events.bind(Paid, NowAndThen(shop), phase=cqrs.Phase.DURABLE, name="thank")
    # Neighbours stay together, so that threads meet at the same message.
    numbers = sorted([*range(MESSAGES)] * TIMES, key=lambda number: (number // 50, number % 7))
    waiting = iter(numbers)
    lock = threading.Lock()

    def taken() -> int | None:
        with lock:
            return next(waiting, None)

    def work() -> None:
        while (number := taken()) is not None:
            until_it_succeeds(shop, arrived(number))

    in_threads(*[work] * THREADS, timeout=100)

    expected = {(handler, number): 1 for number in range(MESSAGES) for handler in ("book", "thank")}
    assert expected == dict(shop.counted())


@pytest.mark.broker
def test_b6_what_follows_a_handler_sees_what_it_has_committed(shop):
    """
    On a connection of its own, before the message is done.
    """
    seen = []
    shop.events.bind(Paid, lambda event: [shop.effect("book", event.number), cqrs.raise_event(Booked(event.number))])
    shop.events.bind(Booked, lambda event: seen.append(dict(shop.counted())))
    for _ in range(2):
        shop.mediator.receive(arrived(1))

    assert [{("book", 1): 1}] == seen


@pytest.mark.broker
def test_b6_of_eight_threads_one_pays_and_all_are_answered_alike(shop):
    numbers = iter(range(100))
    answers = []

    def pay(request: Pay) -> Receipt:
        shop.effect("pay", request.amount)
        return Receipt(next(numbers), Decimal(request.amount))

    shop.requests.bind(pay)
    in_threads(*[lambda: answers.append(shop.mediator.send(Pay(10), idempotency_key="order-1"))] * 8)

    assert [Receipt(0, Decimal(10))] * 8 == answers
    assert {("pay", 10): 1} == dict(shop.counted())


_PROGRAM = """
import os, signal, sys
import tests.promises.test_b6_inbox as b6

where, url = sys.argv[1:]
shop = b6.Shop(url)

@shop.events.bind(name="book")
def book(event: b6.Paid) -> None:
    shop.effect("book", event.number)
    if where == "inside":
        os.kill(os.getpid(), signal.SIGKILL)

shop.mediator.receive(b6.arrived(1))
if where == "after":
    # Nobody has told the broker.
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.broker
@pytest.mark.parametrize("where", ["inside", "after"])
def test_b6_a_process_that_is_killed_has_its_effect_once(shop, url, where):
    """
    Killed before the commit it has none; killed after it and before the acknowledgement, the next one has none.
    """
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, where, url],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert -signal.SIGKILL == done.returncode, done.stderr
    assert (0 if where == "inside" else 1) == shop.counted().total()

    shop.events.bind(Paid, lambda event: shop.effect("book", event.number), name="book")
    shop.mediator.receive(arrived(1))

    assert {("book", 1): 1} == dict(shop.counted())
