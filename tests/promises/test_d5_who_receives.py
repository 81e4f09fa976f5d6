"""
D5: A handler bound to a base class receives events of its subclasses. An event with no handler is
logged as a warning. A notification event with nowhere to go is an error, never a silent drop.
"""

from __future__ import annotations

import logging
from collections import Counter

import pytest
from attrs import frozen

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker, MemoryTransactions


@frozen
class Do(cqrs.Command[str]):
    event: cqrs.Event


class Meeting(cqrs.DomainEvent):
    """Something about a meeting; abstract, as it were."""


@frozen
class UserJoined(Meeting):
    user_id: str = "ada"


@frozen
class UserJoinedLate(UserJoined):
    minutes: int = 5


@frozen
class UserLeft(Meeting):
    user_id: str = "ada"


@frozen
class MeetingEnded(cqrs.NotificationEvent, topic="meetings", name="meeting.ended", key="meeting_id"):
    meeting_id: str | None = "m-1"


@frozen
class Nameless(cqrs.NotificationEvent, topic="meetings"):
    pass


@frozen
class Homeless(cqrs.NotificationEvent, name="homeless"):
    pass


@frozen
class Unserialisable(cqrs.NotificationEvent, topic="meetings", name="unserialisable"):
    what: object = object


@pytest.fixture
def requests():
    requests = cqrs.RequestMap()

    @requests.bind
    def do(request: Do) -> str:
        cqrs.raise_event(request.event)
        return "done"

    return requests


@pytest.fixture
def seen():
    return []


@pytest.fixture
def events():
    return cqrs.EventMap()


@pytest.fixture
def watch(events, seen):
    """Bind a handler that notes what it receives."""

    def bind(event_type, name=None, **options):
        events.bind(event_type, lambda event: seen.append((name or event_type.__name__, type(event))), **options)

    return bind


@pytest.fixture
def mediator(requests, events, threads):
    return cqrs.bootstrap(requests, events, source="tests", threads=threads, broker=MemoryBroker())


# Base classes


def test_d5_a_handler_of_a_base_class_receives_events_of_its_subclasses(watch, mediator, seen):
    """
    At any distance, in the library's own base classes too; siblings are left alone.
    """
    for event_type in (cqrs.Event, cqrs.DomainEvent, Meeting, UserJoined, UserJoinedLate, UserLeft):
        watch(event_type)

    mediator.send(Do(UserJoinedLate()))

    wanted = ["Event", "DomainEvent", "Meeting", "UserJoined", "UserJoinedLate"]
    assert Counter((name, UserJoinedLate) for name in wanted) == Counter(seen)


def test_d5_a_handler_of_a_subclass_does_not_receive_its_base(watch, mediator, seen):
    """
    The other way round it would be given less than it asks for.
    """
    watch(UserJoinedLate)
    watch(UserJoined)

    mediator.send(Do(UserJoined()))

    assert [("UserJoined", UserJoined)] == seen


def test_d5_a_handler_of_all_events_receives_notifications(watch, mediator, seen):
    """
    An audit log is one binding.
    """
    watch(cqrs.Event)

    mediator.send(Do(MeetingEnded()))
    mediator.send(Do(UserLeft()))

    assert [("Event", MeetingEnded), ("Event", UserLeft)] == seen


def test_d5_a_handler_bound_to_a_class_and_its_base_receives_an_event_once(events, mediator, seen):
    """
    It is one handler, and this is one event.
    """
    for event_type in (Meeting, UserJoinedLate, UserJoined):
        events.bind(event_type, seen.append)

    mediator.send(Do(UserJoinedLate()))

    assert 1 == len(seen)


def test_d5_inline_handlers_of_a_base_class_receive_events_of_its_subclasses(watch, mediator, seen):
    """
    The phase makes no difference.
    """
    watch(Meeting, phase=cqrs.Phase.INLINE)

    mediator.send(Do(UserJoinedLate()))

    assert [("Meeting", UserJoinedLate)] == seen


def test_d5_a_handler_that_is_bound_later_receives_later_events(watch, mediator, seen):
    """
    Also of types that were dispatched before.
    """
    watch(UserJoined, "early")
    mediator.send(Do(UserJoinedLate()))
    watch(Meeting, "late")
    mediator.send(Do(UserJoinedLate()))

    assert Counter({("early", UserJoinedLate): 2, ("late", UserJoinedLate): 1}) == Counter(seen)


@pytest.mark.parametrize("bound_before", [True, False])
def test_d5_a_handler_that_is_bound_before_the_commit_receives_the_event(events, watch, seen, threads, bound_before):
    """
    As when code in the transaction imports a module with handlers.
    """
    transactions = MemoryTransactions()
    mediator = cqrs.bootstrap(events=events, transactions=transactions, threads=threads)
    if bound_before:
        watch(UserJoined, "early")
    with mediator, transactions.atomic():
        mediator.publish(UserJoined())
        watch(UserJoined, "late")
        # Another request looks at the handlers in between.
        mediator.publish(UserLeft())

    assert {"early": bound_before, "late": True} == {name: (name, UserJoined) in seen for name in ("early", "late")}


def test_d5_a_handler_that_is_bound_by_a_handler_receives_the_events_that_follow(events, watch, seen):
    """
    Those of the same request as well.
    """

    def bind_late(event):
        if not seen:
            seen.append("bound")
            watch(UserJoined, "late")

    events.bind(UserLeft, lambda event: [cqrs.raise_event(each) for each in (UserJoined(), UserJoinedLate())])
    events.bind(UserJoined, bind_late)
    with cqrs.bootstrap(events=events, threads=cqrs.SameThread()) as mediator:
        mediator.publish(UserLeft())

    assert ["bound", ("late", UserJoinedLate)] == seen


# Nobody there


def test_d5_an_event_with_no_handler_is_logged_as_a_warning(watch, mediator, caplog):
    """
    By its name, without what is in it; the command succeeds.
    """
    watch(UserJoinedLate)
    with caplog.at_level(logging.DEBUG, "cqrs_sync"):
        answer = mediator.send(Do(UserJoined("secret")))

    assert ("done", ["WARNING"]) == (answer, [record.levelname for record in caplog.records])
    assert "UserJoined was raised, but no handler is bound to it" in caplog.text
    assert "secret" not in caplog.text


def test_d5_an_unhandled_follow_up_is_logged_as_a_warning(events, mediator, caplog):
    """
    Whoever raised it.
    """
    events.bind(UserJoined, lambda event: cqrs.raise_event(UserLeft()))
    with caplog.at_level(logging.DEBUG, "cqrs_sync"):
        mediator.send(Do(UserJoined()))

    assert ["WARNING"] == [record.levelname for record in caplog.records]
    assert "UserLeft" in caplog.text


def test_d5_an_event_that_has_only_an_inline_handler_is_handled(watch, mediator, caplog):
    """
    Then there is nothing to warn of.
    """
    watch(UserJoined, phase=cqrs.Phase.INLINE)
    with caplog.at_level(logging.DEBUG, "cqrs_sync"):
        mediator.send(Do(UserJoined()))

    assert [] == caplog.records


def test_d5_a_notification_event_needs_no_handler(mediator, caplog):
    """
    Its handlers may all be elsewhere.
    """
    with caplog.at_level(logging.INFO, "cqrs_sync"):
        mediator.send(Do(MeetingEnded()))

    assert [] == caplog.records


# Nowhere to go: the command fails, before its commit


@pytest.fixture
def committed():
    return []


@pytest.fixture
def wire(requests, events, threads, committed):
    """Make a mediator whose commands run in transactions, and are noted when they have committed."""

    def make(broker):
        transactions = MemoryTransactions()

        def open_transaction(message, call_next):
            with transactions.atomic():
                response = call_next(message)
            committed.append(type(message))
            return response

        chain = cqrs.MiddlewareChain().add(open_transaction, Do)
        return cqrs.bootstrap(
            requests,
            events,
            source="tests",
            threads=threads,
            broker=broker,
            transactions=transactions,
            middleware=chain,
        )

    return make


def test_d5_a_notification_event_with_nowhere_to_go_is_an_error(wire, watch, seen, committed):
    """
    Without a broker the command that raises one fails before its commit; no handler has run.
    """
    watch(MeetingEnded)
    with pytest.raises(cqrs.BrokerNotConfigured, match="MeetingEnded is a notification event, and this mediator"):
        wire(None).send(Do(MeetingEnded()))

    assert ([], []) == (seen, committed)


@pytest.mark.parametrize(
    ("event", "error", "words"),
    [
        (Unserialisable(), cqrs.EventNotSerializable, "Unserialisable cannot become JSON"),
        (MeetingEnded(None), cqrs.EventNotSerializable, r"MeetingEnded\.meeting_id is its key and must not be empty"),
        (MeetingEnded(""), cqrs.EventNotSerializable, r"MeetingEnded\.meeting_id is its key and must not be empty"),
        (Nameless(), cqrs.InvalidMessage, 'Nameless has no stable name: write `class Nameless.*name="..."'),
        (Homeless(), cqrs.InvalidMessage, 'Homeless has no topic: write `class Homeless.*topic="..."'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_d5_an_event_that_cannot_become_a_message_fails_its_command(wire, watch, seen, committed, event, error, words):
    """
    Before the commit, so that nothing is true of which others would never hear; no handler has run.
    """
    broker = MemoryBroker()
    watch(cqrs.Event)
    with pytest.raises(error, match=words):
        wire(broker).send(Do(event))

    assert ([], [], []) == (seen, committed, list(broker.published))


@pytest.mark.parametrize("event", [MeetingEnded(None), Nameless()], ids=lambda event: type(event).__name__)
def test_d5_a_follow_up_that_cannot_become_a_message_fails_its_handler(wire, events, committed, event):
    """
    And only that: the command has committed, and says what failed.
    """
    events.bind(UserJoined, lambda joined: cqrs.raise_event(event))
    with pytest.raises(cqrs.EventsFailed) as caught:
        wire(MemoryBroker()).send(Do(UserJoined()))

    assert ("done", [Do]) == (caught.value.response, committed)
    assert [UserJoined()] == [failure.event for failure in caught.value.failures]


def test_d5_a_follow_up_with_nowhere_to_go_fails_its_handler(wire, events):
    """
    Also without a broker.
    """
    events.bind(UserJoined, lambda joined: cqrs.raise_event(MeetingEnded()))
    with pytest.raises(cqrs.EventsFailed) as caught:
        wire(None).send(Do(UserJoined()))

    assert [cqrs.BrokerNotConfigured] == [type(error) for error in caught.value.exceptions]


def test_d5_the_event_mediator_refuses_a_notification_with_nowhere_to_go(wire, watch, seen):
    """
    Without a request around it, too.
    """
    watch(MeetingEnded)
    with pytest.raises(cqrs.BrokerNotConfigured):
        wire(None).publish(MeetingEnded())

    assert [] == seen
