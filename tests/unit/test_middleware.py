"""Promises about the middlewares that are shipped. The chain itself is in tests/promises/test_d7_*.py."""

from __future__ import annotations

import logging
import time

import attrs
import pytest

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker
from cqrs_sync.middleware import title_of


@attrs.frozen
class Save(cqrs.Command[str]):
    words: str = "swordfish"


@attrs.frozen
class Saved(cqrs.DomainEvent):
    words: str = "swordfish"


@attrs.frozen
class SaveTold(cqrs.NotificationEvent, topic="saves", name="save.told"):
    words: str = "swordfish"


@attrs.frozen
class Positive(cqrs.Command[int]):
    number: int

    def validate(self) -> None:
        if self.number <= 0:
            raise ValueError(f"{self.number} is not positive")


@pytest.fixture
def requests():
    requests = cqrs.RequestMap()

    @requests.bind
    def save(request: Save) -> str:
        cqrs.raise_event(Saved())
        return "saved"

    return requests


@pytest.fixture
def events():
    events = cqrs.EventMap()
    events.bind(Saved, lambda event: None)
    return events


@pytest.fixture
def wire(requests, events):
    """Make a mediator in whose chain these are."""

    def make(*middleware, **settings):
        return cqrs.bootstrap(
            requests, events, source="tests", threads=cqrs.SameThread(), middleware=middleware, **settings
        )

    return make


def fail(message):
    raise LookupError("no such file")


# Logging


def lines(caplog):
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_logging_tells_what_is_done(wire, caplog):
    """
    At DEBUG, by the names of messages, innermost first.
    """
    with caplog.at_level(logging.DEBUG, "cqrs_sync"):
        assert "saved" == wire(cqrs.LoggingMiddleware()).send(Save())

    assert [("DEBUG", "Save done"), ("DEBUG", "Saved done")] == lines(caplog)


def test_logging_tells_what_failed(wire, requests, events, caplog):
    """
    At WARNING, and lets it through.
    """
    requests.bind(Positive, fail)
    events.bind(Saved, fail)
    mediator = wire(cqrs.LoggingMiddleware())
    with caplog.at_level(logging.WARNING, "cqrs_sync"):
        with pytest.raises(LookupError):
            mediator.send(Positive(1))
        with pytest.raises(cqrs.EventsFailed):
            mediator.send(Save())

    assert [("WARNING", "Positive failed: LookupError"), ("WARNING", "Saved failed: LookupError")] == lines(caplog)


def test_logging_shows_no_contents(wire, events, caplog):
    """
    Neither of messages nor of exceptions: secrets stay where they are.
    """

    def tell_all(event):
        raise LookupError(event.words)

    events.bind(Saved, tell_all)
    with caplog.at_level(logging.DEBUG, "cqrs_sync"), pytest.raises(cqrs.EventsFailed):
        wire(cqrs.LoggingMiddleware()).send(Save())

    assert lines(caplog)
    assert "swordfish" not in caplog.text


def test_logging_tells_how_many_messages_were_published(requests, events, caplog):
    """
    A batch is told by its size.
    """
    chain = cqrs.MiddlewareChain().add(cqrs.LoggingMiddleware(), cqrs.OutgoingMessage)
    mediator = cqrs.bootstrap(
        requests, events, source="tests", broker=MemoryBroker(), threads=cqrs.SameThread(), middleware=chain
    )
    with caplog.at_level(logging.DEBUG, "cqrs_sync.middleware"):
        mediator.publish(SaveTold())

    assert [("DEBUG", "1 message(s) done")] == lines(caplog)


def test_logging_writes_where_it_is_told(wire, caplog):
    """
    To a logger of the application's.
    """
    with caplog.at_level(logging.DEBUG, "shop"):
        wire(cqrs.LoggingMiddleware(logging.getLogger("shop.audit"))).send(Save())

    assert {"shop.audit"} == {record.name for record in caplog.records}


def test_messages_are_told_by_their_types():
    """
    As errors and logs do.
    """
    assert ("Save", "2 message(s)") == (title_of(Save()), title_of(("a", "b")))


# Timing


def test_timing_reports_each_message_with_its_seconds(wire, events):
    """
    A handler's time is its own: that of the request ends before its events begin.
    """
    reported = []
    events.bind(Saved, lambda event: spend(0.1))
    wire(cqrs.TimingMiddleware(lambda title, seconds: reported.append((title, seconds)))).send(Save())

    assert ["Save", "Saved", "Saved"] == [title for title, _ in reported]
    assert 0 <= reported[0][1] < 0.1 <= reported[2][1] < 5


def test_timing_reports_what_failed(wire, requests):
    """
    As well.
    """
    reported = []
    requests.bind(Positive, fail)
    with pytest.raises(LookupError):
        wire(cqrs.TimingMiddleware(lambda title, seconds: reported.append(title))).send(Positive(1))

    assert ["Positive"] == reported


def spend(seconds):
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


# Validation


def test_validation_asks_the_message_itself(wire, requests):
    """
    Where it has a method `validate`; a bad one does not reach its handler.
    """
    handled = []
    requests.bind(Positive, lambda request: handled.append(request.number))
    mediator = wire(cqrs.ValidationMiddleware())
    mediator.send(Positive(1))
    with pytest.raises(ValueError, match="-1 is not positive"):
        mediator.send(Positive(-1))

    assert [1] == handled
    assert "saved" == mediator.send(Save())


def test_validation_asks_whom_it_is_told_to(wire):
    """
    A function that is called with each message, requests and events.
    """
    asked = []
    wire(cqrs.ValidationMiddleware(asked.append)).send(Save())

    assert [Save(), Saved()] == asked


def test_a_bad_message_builds_no_handler(wire, requests):
    """
    It is refused before anything is opened for it.
    """
    built = []

    @requests.bind
    class Handler(cqrs.RequestHandler[Positive, int]):
        def __init__(self):
            built.append(self)

        def handle(self, request):
            return request.number

    with pytest.raises(ValueError, match="0 is not positive"):
        wire(cqrs.ValidationMiddleware()).send(Positive(0))

    assert [] == built


# Retries


def up_to(attempts, error=LookupError):
    """Try again at once: what stamina and tenacity do with pauses."""

    def retrying(function, *arguments):
        for _ in range(attempts - 1):
            try:
                return function(*arguments)
            except error:
                continue
        return function(*arguments)

    return retrying


def failing(times, attempts):
    """Make a handler that fails so many times, and then does not."""

    def handle(message):
        attempts.append(message)
        cqrs.raise_event(SaveTold(f"attempt {len(attempts)}"))
        if len(attempts) <= times:
            raise LookupError
        return len(attempts)

    return handle


def test_a_retry_returns_what_the_last_attempt_returned(wire, requests):
    """
    And what failed attempts raised is gone.
    """
    attempts, broker = [], MemoryBroker()
    requests.bind(Positive, failing(2, attempts))

    assert 3 == wire(cqrs.RetryMiddleware(up_to(3)), broker=broker).send(Positive(1))
    assert [Positive(1)] * 3 == attempts
    assert [b'{"words":"attempt 3"}'] == [message.body for message in broker.published]


def test_a_retry_that_gives_up_raises_what_the_last_attempt_raised(wire, requests):
    """
    With no event of any.
    """
    attempts, broker = [], MemoryBroker()
    requests.bind(Positive, failing(9, attempts))
    with pytest.raises(LookupError):
        wire(cqrs.RetryMiddleware(up_to(3)), broker=broker).send(Positive(1))

    assert (3, []) == (len(attempts), list(broker.published))


def test_a_retry_policy_says_how_often_a_handler_is_called(wire, requests):
    attempts, broker = [], MemoryBroker()
    requests.bind(Positive, failing(2, attempts))
    retry = cqrs.RetryMiddleware(cqrs.RetryPolicy(delays=(0.01, 0.01)), on=LookupError)

    assert 3 == wire(retry, broker=broker).send(Positive(1))
    assert [b'{"words":"attempt 3"}'] == [message.body for message in broker.published]


@pytest.mark.parametrize(
    ("retry", "on", "count"),
    [
        (cqrs.RetryPolicy(delays=(0.01,)), None, 2),
        (cqrs.RetryPolicy(delays=(0.01,)), (OSError, KeyError), 1),
        (cqrs.RetryPolicy(attempts=1), LookupError, 1),
    ],
)
def test_a_retry_policy_ends_with_the_last_error(wire, requests, retry, on, count):
    attempts = []
    requests.bind(Positive, failing(9, attempts))
    with pytest.raises(LookupError):
        wire(cqrs.RetryMiddleware(retry, on=on), broker=MemoryBroker()).send(Positive(1))

    assert count == len(attempts)


def test_a_fatal_error_is_not_retried(wire, requests):
    attempts = []

    def handle(request: Positive) -> int:
        attempts.append(request)
        raise cqrs.PermanentError("cancelled")

    requests.bind(Positive, handle)
    with pytest.raises(cqrs.PermanentError):
        wire(cqrs.RetryMiddleware(cqrs.RetryPolicy(first=0.01))).send(Positive(1))

    assert 1 == len(attempts)


def test_no_retry_is_waited_for_beyond_the_deadline(wire, requests):
    attempts = []
    requests.bind(Positive, failing(9, attempts))
    begun = time.monotonic()
    with pytest.raises(LookupError):
        wire(cqrs.RetryMiddleware(cqrs.RetryPolicy(first=60)), broker=MemoryBroker()).send(Positive(1), timeout=5)

    assert time.monotonic() - begun < 5
    assert 1 == len(attempts)


def test_what_is_no_retry_is_refused():
    with pytest.raises(cqrs.ConfigurationError, match="retry must be"):
        cqrs.RetryMiddleware(3)
    with pytest.raises(cqrs.ConfigurationError, match="`on` belongs to a RetryPolicy"):
        cqrs.RetryMiddleware(up_to(3), on=OSError)


def test_a_retry_is_not_made_for_other_errors(wire, requests):
    """
    The caller's policy decides.
    """
    attempts = []
    requests.bind(Positive, failing(9, attempts))
    with pytest.raises(LookupError):
        wire(cqrs.RetryMiddleware(up_to(3, OSError)), broker=MemoryBroker()).send(Positive(1))

    assert 1 == len(attempts)


def test_event_handlers_are_tried_again_each_by_itself(wire, events):
    """
    A sibling that succeeded does not run twice.
    """
    attempts, others, broker = [], [], MemoryBroker()
    events.bind(Saved, failing(1, attempts))
    events.bind(Saved, others.append)
    wire(cqrs.RetryMiddleware(up_to(2)), broker=broker).send(Save())

    assert (2, 1) == (len(attempts), len(others))
    assert [b'{"words":"attempt 2"}'] == [message.body for message in broker.published]


def test_publishing_may_be_tried_again(requests, events):
    """
    With the same messages: a receiver can tell that it has seen them.
    """
    broker = MemoryBroker()
    broker.fail_with = cqrs.BrokerUnavailable("gone")
    tried = []

    def retrying(publish, messages):
        try:
            publish(messages)
        except cqrs.PublishFailed:
            tried.append([message.id for message in messages])
            broker.fail_with = None
            publish(messages)

    chain = cqrs.MiddlewareChain().add(cqrs.RetryMiddleware(retrying), cqrs.OutgoingMessage)
    mediator = cqrs.bootstrap(
        requests, events, source="tests", broker=broker, threads=cqrs.SameThread(), middleware=chain
    )
    mediator.publish(SaveTold())

    assert tried == [[message.id for message in broker.published]]


def test_a_middleware_that_is_not_in_a_list_is_an_error_that_says_so():
    """
    `middleware=LoggingMiddleware()` is what one tries first.
    """
    with pytest.raises(TypeError, match="must be a list"):
        cqrs.bootstrap(middleware=cqrs.LoggingMiddleware())


# Chains


def test_a_copy_of_a_chain_leaves_the_chain_as_it_is():
    """
    Others can be added to it, also where the chain itself is in use.
    """

    def first(message, call_next):
        return call_next(message)

    def second(message, call_next):
        return call_next(message)

    chain = cqrs.MiddlewareChain().add(first, Save)
    assert [first] == chain.of(Save)
    copied = chain.copy().add(second)

    assert ([first], [first, second], [second]) == (chain.of(Save), copied.of(Save), copied.of(Saved))
