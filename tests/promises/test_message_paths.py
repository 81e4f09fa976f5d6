"""The path of one message through the processes, as the log tells it at DEBUG."""

from __future__ import annotations

import logging

import attrs
import pytest
from attrs import frozen

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker, MemoryInbox, MemoryOutbox, MemoryTransactions
from tests.waiting import eventually

RETRY = cqrs.RetryPolicy(delays=(0.05,))
SHOP = cqrs.JsonSerializer(source="shop")


@frozen
class Paid(cqrs.NotificationEvent, topic="payments", name="order.paid"):
    secret: str


class Path:
    """What the log says of one message, in the order of the lines."""

    def __init__(self, caplog: pytest.LogCaptureFixture, id_: str) -> None:
        self._caplog = caplog
        self._title = f"'order.paid' '{id_}'"

    def steps(self) -> list[str]:
        lines = [record.getMessage() for record in self._caplog.records]
        return [line.removeprefix(self._title).lstrip(": ") for line in lines if line.startswith(self._title)]

    def verbs(self) -> list[str]:
        return [step.split()[0] for step in self.steps()]


@pytest.fixture
def broker(caplog) -> MemoryBroker:
    caplog.set_level(logging.DEBUG, "cqrs_sync")
    return MemoryBroker()


def consumer(broker: MemoryBroker, handle, **options) -> cqrs.Consumer:
    events = cqrs.EventMap()
    events.bind(Paid, handle)
    mediator = cqrs.bootstrap(events=events, broker=broker, serializer=SHOP, inbox=options.pop("inbox", None))
    made = cqrs.Consumer(mediator, "billing", **{"retry": RETRY, "inline_limit": 0.0, **options})
    broker.subscribe(made.group).close()
    return made


def published_id(broker: MemoryBroker) -> str:
    return eventually(lambda: broker.published and broker.published[0].id)


def test_a_message_is_followed_from_the_outbox_to_the_other_service(broker, caplog):
    """One id leads through staging, relay and consumer; the contents of the message are in no line."""
    transactions = MemoryTransactions()
    events = cqrs.EventMap()
    events.bind(Paid, lambda event: None, phase=cqrs.Phase.DURABLE, name="receipt")
    with consumer(broker, lambda event: None):
        shop = cqrs.bootstrap(
            events=events, broker=broker, outbox=MemoryOutbox(transactions), transactions=transactions, serializer=SHOP
        )
        with shop:
            with transactions.atomic():
                shop.publish(Paid("hush"))
            path = Path(caplog, published_id(broker))
            ends = {"settled for payments: done", "settled for receipt: done", "acked"}
            eventually(lambda: ends <= set(path.steps()))

    steps = path.steps()
    assert "stored in the outbox for payments, receipt" == steps[0]
    assert {"claimed for payments (attempt 1)", "claimed for receipt (attempt 1)"} < set(steps)
    assert "published to the topic 'payments'" in steps
    assert any(step.startswith("handled by receipt in 0.") for step in steps)
    received = steps.index("received from billing")
    assert any(step.startswith("handled in 0.") for step in steps[received:])
    assert "acked" in steps[received:]
    assert "hush" not in caplog.text


def test_a_message_that_fails_is_followed_to_its_dead_letter(broker, caplog):
    """Each attempt is one round: received, failed, given to the broker, acked."""

    def fail(event):
        raise ValueError("no account")

    with consumer(broker, fail):
        cqrs.bootstrap(broker=broker, serializer=SHOP).publish(Paid("hush"))
        path = Path(caplog, published_id(broker))
        eventually(lambda: path.verbs().count("acked") == 2)

    first, second = ["received", "attempt", "deferred", "acked"], ["received", "from", "acked"]
    # The sender's thread may be told late that the broker has the message.
    assert [*first, *second] == [verb for verb in path.verbs() if verb != "published"]
    assert "deferred for 0.05 s (attempt 1)" in path.steps()
    dead = next(step for step in path.steps() if step.startswith("from"))
    assert dead.startswith("from billing is a dead letter after 2 attempt(s)")
    assert dead.endswith("ValueError: no account")


@pytest.mark.parametrize(("key", "said"), [("42", 1), (None, 0)])
def test_a_deferred_message_says_that_its_key_is_out_of_order(broker, caplog, key, said):
    """Without a key there is no order to lose."""

    def fail(event):
        raise ValueError("no account")

    with consumer(broker, fail) as running:
        sent = SHOP.dump(Paid("hush"))
        broker.publish([attrs.evolve(sent, key=key)])
        eventually(lambda: running.counts.delayed == 1)

    assert said == sum("retrying in 0.1 s, meanwhile later messages of its key" in line for line in caplog.messages)


def test_a_repeated_message_says_which_handler_is_skipped(broker, caplog):
    """The line has the id of the message: without it, a handler that does not run looks like a fault."""
    transactions = MemoryTransactions()
    with consumer(broker, lambda event: None, inbox=MemoryInbox(transactions)) as running:
        sender = cqrs.bootstrap(broker=broker, serializer=SHOP)
        sender.publish(Paid("hush"))
        id_ = published_id(broker)
        broker.publish(list(broker.published))
        eventually(lambda: running.counts.handled == 2)

    assert 1 == sum(id_ in line and "has handled" in line and "skipped" in line for line in caplog.messages)


def test_an_unknown_message_is_parked_and_says_so(broker, caplog):
    with consumer(broker, lambda event: None):
        attributes = {"specversion": "1.0", "id": "7", "source": "s", "type": "order.paid.v2"}
        broker.publish([cqrs.OutgoingMessage("7", "payments", "order.paid.v2", b"{}", attributes=attributes)])
        eventually(lambda: "'order.paid.v2' '7': parked for 0.05 s (attempt 0)" in caplog.messages)
