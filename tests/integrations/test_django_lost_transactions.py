"""Django transactions that would silently be rolled back: a command in one fails."""

from __future__ import annotations

import attrs
import pytest

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker
from tests.contracts.effects_django import careless, create, drop, insert, texts

pytestmark = [pytest.mark.broker, pytest.mark.usefixtures("django_emptied")]

ALIASES = ["postgresql", "mariadb", "sqlite"]
WORDS = r"has aborted this transaction.*transaction\.atomic\(\)"


@attrs.frozen
class Buy(cqrs.Command[str]):
    #: What the handler does to its transaction, by its name in `careless`.
    then: str | None = None


@attrs.frozen
class Bought(cqrs.NotificationEvent, topic="sales", name="bought"):
    pass


class Shop:
    """Its handler writes a row, does what a test asks for, and raises an event."""

    def __init__(self, alias, **options):
        from cqrs_sync.integrations.django import bootstrap  # noqa: PLC0415 -- needs settings

        self.alias, self.broker, self.after = alias, MemoryBroker(), []
        requests, events = cqrs.RequestMap(), cqrs.EventMap()
        requests.bind(Buy, self.buy)
        events.bind(Bought, self.after.append)
        # Without an outbox, whose own INSERT would fail first.
        options = {"outbox": None, "threads": 1, **options}
        self.mediator = bootstrap(requests, events, source="tests", using=alias, broker=self.broker, **options)

    def buy(self, request):
        insert(self.alias, "lamp")
        if request.then is not None:
            careless(self.alias)[request.then]()
        cqrs.raise_event(Bought())
        return "bought"


@pytest.fixture(params=ALIASES)
def alias(request, django_databases):
    create(request.param)
    yield request.param
    drop(request.param)


@pytest.fixture
def shop(alias):
    shop = Shop(alias)
    with shop.mediator:
        yield shop


@pytest.mark.parametrize("then", ["a caught error of a model", "set_rollback(True)", "connection.close()"])
def test_a_command_that_django_would_roll_back_fails(shop, then):
    """
    On every database: nothing is kept, so nothing is published.
    """
    with pytest.raises(cqrs.TransactionLost, match=r"has aborted this transaction|rolled back before its end"):
        shop.mediator.send(Buy(then))

    assert ([], [], []) == (texts(shop.alias), shop.after, list(shop.broker.published))


def test_a_caught_error_loses_the_transaction_on_postgresql(shop):
    """
    PostgreSQL keeps nothing of the transaction; the others keep all but the statement.
    """
    if shop.alias == "postgresql":
        with pytest.raises(cqrs.TransactionLost, match=WORDS):
            shop.mediator.send(Buy("a caught error"))
    else:
        assert "bought" == shop.mediator.send(Buy("a caught error"))
    assert len(texts(shop.alias)) == len(shop.after) == len(shop.broker.published)


def test_an_error_caught_around_a_savepoint_is_harmless(shop):
    """
    The rest commits and is published.
    """
    assert "bought" == shop.mediator.send(Buy("a caught error in a savepoint"))

    assert (["lamp"], [Bought()]) == (texts(shop.alias), shop.after)
    assert 1 == len(shop.broker.published)


@pytest.mark.parametrize("then", ["a caught error of a model", "set_rollback(True)"])
def test_in_the_transaction_of_a_request_the_command_fails_alone(shop, then):
    """
    As with ATOMIC_REQUESTS: a view can continue.
    """
    from django.db import transaction  # noqa: PLC0415 -- as above

    with transaction.atomic(using=shop.alias):
        insert(shop.alias, "of the view")
        with pytest.raises(cqrs.TransactionLost):
            shop.mediator.send(Buy(then))

    assert (["of the view"], [], []) == (texts(shop.alias), shop.after, list(shop.broker.published))


def test_in_the_applications_own_transaction_the_events_of_a_lost_command_fail(alias):
    """
    No middleware of the library ends that transaction, so the events find it.
    """
    from django.db import transaction  # noqa: PLC0415 -- as above

    shop = Shop(alias, atomic=())
    lost = pytest.raises(cqrs.TransactionLost, match=WORDS)
    with shop.mediator, transaction.atomic(using=alias):
        if alias == "postgresql":
            with lost:
                shop.mediator.send(Buy("a caught error"))
        else:
            assert "bought" == shop.mediator.send(Buy("a caught error"))

    assert len(texts(alias)) == len(shop.after) == len(shop.broker.published)


def test_a_duplicate_has_a_transaction_as_well(alias):
    """
    The block of a repeated key cannot silently lose its transaction either.
    """
    from cqrs_sync.integrations.django import DjangoInbox  # noqa: PLC0415 -- as above

    inbox = DjangoInbox(alias)
    for is_first in (True, False):
        with pytest.raises(cqrs.TransactionLost), inbox.once("1") as receipt:  # noqa: PT012 -- the block is what fails
            assert receipt.is_first is is_first
            insert(alias, "lamp")
            careless(alias)["set_rollback(True)"]()
        with inbox.once("1"):
            pass

    assert [] == texts(alias)


def test_an_event_in_an_aborted_transaction_says_why(alias):
    """
    The outbox's own INSERT would only report that the transaction is aborted.
    """
    from cqrs_sync.integrations.django import DjangoOutbox  # noqa: PLC0415 -- needs settings

    shop = Shop(alias, outbox=DjangoOutbox(alias))
    with shop.mediator:
        if alias == "postgresql":
            with pytest.raises(cqrs.TransactionLost, match=WORDS):
                shop.mediator.send(Buy("a caught error"))
        else:
            assert "bought" == shop.mediator.send(Buy("a caught error"))
    assert len(texts(alias)) == len(shop.after)
