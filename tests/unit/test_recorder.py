"""The recorder and the pytest fixtures that applications test with."""

import pytest
from attrs import frozen

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker, MemoryTransactions
from cqrs_sync.testing import record


@frozen
class Join(cqrs.Command[None]):
    user: str


@frozen
class Joined(cqrs.DomainEvent):
    user: str


@frozen
class Announced(cqrs.NotificationEvent, topic="meetings", name="recorder.announced"):
    user: str


def join(request: Join) -> None:
    cqrs.raise_event(Joined(request.user))


def announce(event: Joined) -> None:
    cqrs.raise_event(Announced(event.user))


@pytest.fixture
def broker():
    return MemoryBroker()


@pytest.fixture
def mediator(broker):
    requests, events = cqrs.RequestMap(), cqrs.EventMap()
    requests.bind(join)
    events.bind(announce)
    with cqrs.bootstrap(requests, events, source="tests", broker=broker, threads=2) as mediator:
        yield mediator


def test_what_was_dispatched_and_published_is_recorded_in_order(mediator):
    """Follow-up events are recorded like those of the request."""
    with record(mediator) as recorder:
        mediator.send(Join("ann"))
        mediator.send(Join("bob"))

    assert [Joined("ann"), Announced("ann"), Joined("bob"), Announced("bob")] == recorder.dispatched
    assert [Announced("ann"), Announced("bob")] == recorder.published
    assert ["recorder.announced"] * 2 == [message.type for message in recorder.messages]


def test_nothing_reaches_the_broker_while_recording_and_everything_does_afterwards(mediator, broker):
    """The mediator is put back as it was."""
    with record(mediator):
        mediator.send(Join("ann"))
    assert 0 == len(broker.published)

    mediator.send(Join("bob"))

    assert 1 == len(broker.published)


def test_what_is_committed_after_the_block_is_recorded(broker):
    """It was sent inside the block, so it reaches no broker."""
    transactions = MemoryTransactions()
    with cqrs.bootstrap(source="tests", broker=broker, transactions=transactions) as mediator:
        with transactions.atomic():
            with record(mediator) as recorder:
                mediator.publish(Announced("ann"))
            assert [] == recorder.published
        assert [Announced("ann")] == recorder.published

    assert not broker.published


def test_a_mediator_without_a_broker_can_be_recorded():
    """A test needs no broker to see what would be published."""
    requests, events = cqrs.RequestMap(), cqrs.EventMap()
    requests.bind(join)
    events.bind(announce)
    with cqrs.bootstrap(requests, events) as mediator, record(mediator) as recorder:
        mediator.send(Join("ann"))

    recorder.assert_published(Announced("ann"))


def test_assertions_pass_for_what_happened(mediator, cqrs_record):
    """By an equal event, by type, by type and fields, by number."""
    recorder = cqrs_record(mediator)
    recorder.assert_nothing_dispatched()
    recorder.assert_nothing_published()
    mediator.send(Join("ann"))

    recorder.assert_dispatched(Joined("ann"))
    recorder.assert_dispatched(Joined, user="ann", times=1)
    recorder.assert_dispatched(Joined, user="bob", times=0)
    recorder.assert_published(Announced)


@pytest.mark.parametrize(
    "check",
    [
        lambda recorder: recorder.assert_dispatched(Joined("bob")),
        lambda recorder: recorder.assert_dispatched(Joined, user="bob"),
        lambda recorder: recorder.assert_dispatched(Joined, times=2),
        lambda recorder: recorder.assert_published(Joined),
        lambda recorder: recorder.assert_nothing_dispatched(),
        lambda recorder: recorder.assert_nothing_published(),
    ],
)
def test_assertions_fail_for_what_did_not_happen_and_show_what_did(mediator, cqrs_record, check):
    """The message lists what was seen instead."""
    recorder = cqrs_record(mediator)
    mediator.send(Join("ann"))

    with pytest.raises(AssertionError, match="ann"):
        check(recorder)


def test_a_failing_publish_is_not_recorded_as_published(mediator, cqrs_record):
    """What cannot become bytes fails in a test as it would in production."""

    @frozen
    class Broken(cqrs.NotificationEvent, topic="meetings", name="recorder.broken"):
        value: object

    recorder = cqrs_record(mediator)
    with pytest.raises(cqrs.EventNotSerializable):
        mediator.publish(Broken(object()))

    recorder.assert_nothing_published()


def test_clear_forgets(mediator, cqrs_record):
    """One test may look at several requests one by one."""
    recorder = cqrs_record(mediator)
    mediator.send(Join("ann"))
    recorder.clear()

    recorder.assert_nothing_dispatched()
    assert [] == recorder.messages


def test_the_memory_fixtures_fit_bootstrap(cqrs_memory_broker, cqrs_memory_transactions):
    """They are what `bootstrap` takes."""
    requests, events = cqrs.RequestMap(), cqrs.EventMap()
    requests.bind(join)
    events.bind(announce)
    mediator = cqrs.bootstrap(
        requests, events, source="tests", broker=cqrs_memory_broker, transactions=cqrs_memory_transactions
    )
    with mediator, cqrs_memory_transactions.atomic():
        mediator.send(Join("ann"))
        assert 0 == len(cqrs_memory_broker.published)

    assert 1 == len(cqrs_memory_broker.published)
