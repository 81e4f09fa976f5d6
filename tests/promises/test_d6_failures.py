"""
D6: Every bound handler runs, whatever its siblings do. Failures come back together as an exception
group, each with its handler's name and the event, and the command's response on it. What has been
committed is announced: one failing handler does not hold back the notification events. The policy
is an object: collect (default), fail fast, log.
"""

from __future__ import annotations

import logging
import pickle
import threading
import traceback
from collections import Counter
from contextlib import suppress
from functools import partial

import pytest
from attrs import frozen

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker


@frozen
class Order(cqrs.Command[dict[str, int]]):
    count: int = 1


@frozen
class Ordered(cqrs.DomainEvent):
    number: int = 0


@frozen
class OrderMade(cqrs.NotificationEvent, topic="orders", name="order.made"):
    number: int = 0


RESPONSE = {"order": 7}


@pytest.fixture
def requests():
    requests = cqrs.RequestMap()

    @requests.bind
    def order(request: Order) -> dict[str, int]:
        for number in range(request.count):
            cqrs.raise_event(Ordered(number))
        cqrs.raise_event(OrderMade())
        return RESPONSE

    return requests


@pytest.fixture
def events():
    return cqrs.EventMap()


@pytest.fixture
def broker():
    return MemoryBroker()


@pytest.fixture
def wire(requests, events, broker, threads):
    def make(**settings):
        return cqrs.bootstrap(requests, events, source="tests", **({"broker": broker, "threads": threads} | settings))

    return make


@pytest.fixture
def mediator(wire):
    return wire()


@pytest.fixture
def ran():
    return []


class SendReceipt(cqrs.EventHandler[Ordered]):
    """Fails: the printer is out of paper."""

    def handle(self, event):
        raise LookupError(f"no paper for {event.number}")


def update_stock(event: Ordered) -> None:
    raise ValueError(f"no stock of {event.number}")


def bind_five(events, ran, *, failing):
    """Bind five handlers of which those fail."""

    def make(name):
        def handle(event):
            ran.append(name)
            if name in failing:
                raise ValueError(name)

        handle.__qualname__ = name
        return handle

    for name in "abcde":
        events.bind(Ordered, make(name))


def failed(mediator, request=Order()):
    with pytest.raises(cqrs.EventsFailed) as caught:
        mediator.send(request)
    return caught.value


# Siblings


@pytest.mark.parametrize("failing", ["a", "c", "e", "ace", "abcde"])
def test_d6_every_handler_runs_whatever_its_siblings_do(events, mediator, ran, failing):
    """
    Whichever of five fail, all five run, for each of three events.
    """
    bind_five(events, ran, failing=failing)

    error = failed(mediator, Order(count=3))

    assert Counter("abcde" * 3) == Counter(ran)
    assert Counter(failing * 3) == Counter(str(each) for each in error.exceptions)


@pytest.mark.parametrize(
    "error", [LookupError("?"), StopIteration(1), TimeoutError(), ExceptionGroup("?", [OSError()])]
)
def test_d6_any_exception_is_a_failure_like_others(events, mediator, ran, error):
    """
    StopIteration ends no loop of ours, and a group is passed on as a whole.
    """

    def fails(event):
        raise error

    events.bind(Ordered, fails)
    bind_five(events, ran, failing="")

    assert (error,) == failed(mediator).exceptions
    assert "abcde" == "".join(sorted(ran))


def test_d6_a_handler_that_cannot_be_built_is_a_failure_like_others(events, mediator, ran):
    """
    It is named, and its siblings run.
    """

    @events.bind
    class Demanding(cqrs.EventHandler[Ordered]):
        def __init__(self, count: int):
            pass

        def handle(self, event):
            """Never built."""

    bind_five(events, ran, failing="")

    error = failed(mediator)

    assert "abcde" == "".join(sorted(ran))
    [(name, cause)] = [(failure.handler, failure.error) for failure in error.failures]
    assert Demanding.__qualname__ == name
    assert "Demanding" in "".join(traceback.format_exception_only(cause))


def test_d6_follow_ups_of_handlers_that_succeeded_are_handled(events, mediator, ran):
    """
    Failing is not contagious.
    """
    events.bind(Ordered, update_stock)
    events.bind(OrderMade, lambda event: cqrs.raise_event(Ordered(99)))

    error = failed(mediator)

    assert {0, 99} == {failure.event.number for failure in error.failures}


def test_d6_the_pool_is_whole_after_failures(events, mediator, threads):
    """
    As many handlers as before run at the same time, after a hundred failed.
    """
    size = getattr(threads, "max_workers", 1)
    together = threading.Barrier(size)
    failing = True

    @events.bind
    def meet(event: Ordered) -> None:
        if failing:
            raise ValueError("not yet")
        together.wait(10)

    failed(mediator, Order(count=100))
    failing = False
    mediator.send(Order(count=size))


# What comes back


def test_d6_failures_come_back_with_handler_event_and_response(events, mediator):
    """
    Two handlers fail with two events each: four failures, all with their facts.
    """
    events.bind(SendReceipt)
    events.bind(update_stock)

    error = failed(mediator, Order(count=2))

    assert error.response is RESPONSE
    wanted = {
        ("SendReceipt", Ordered(0), "LookupError('no paper for 0')"),
        ("SendReceipt", Ordered(1), "LookupError('no paper for 1')"),
        ("update_stock", Ordered(0), "ValueError('no stock of 0')"),
        ("update_stock", Ordered(1), "ValueError('no stock of 1')"),
    }
    assert wanted == {(failure.handler, failure.event, repr(failure.error)) for failure in error.failures}
    assert {id(failure.error) for failure in error.failures} == {id(each) for each in error.exceptions}


def test_d6_the_message_names_the_handlers(events, mediator):
    """
    One line in a log says what to look at.
    """
    events.bind(SendReceipt)
    events.bind(update_stock)

    assert "the request succeeded, but then these failed: SendReceipt, update_stock (4 sub-exceptions)" == str(
        failed(mediator, Order(count=2))
    )


def test_d6_a_traceback_shows_handler_and_event(events, mediator):
    """
    Whoever prints it sees which handler failed with which event, and where.
    """
    events.bind(SendReceipt)

    printed = "".join(traceback.format_exception(failed(mediator)))

    assert "LookupError: no paper for 0\n    | in SendReceipt, handling Ordered" in printed
    assert 'raise LookupError(f"no paper for {event.number}")' in printed


def test_d6_except_star_takes_failures_apart(events, mediator):
    """
    What is handled is taken out, with its facts; the rest goes on, with its own.
    """
    events.bind(SendReceipt)
    events.bind(update_stock)
    handled = []

    def send():
        try:
            mediator.send(Order())
        except* LookupError as group:
            handled.append(group)

    with pytest.raises(cqrs.EventsFailed) as caught:
        send()

    [taken], left = handled, caught.value
    assert (["SendReceipt"], ["update_stock"]) == tuple(
        [each.handler for each in one.failures] for one in (taken, left)
    )
    assert taken.response is left.response is RESPONSE


def test_d6_except_star_may_handle_everything(events, mediator):
    """
    Then the caller goes on.
    """
    events.bind(SendReceipt)
    responses = []
    try:
        mediator.send(Order())
    except* LookupError as group:
        responses.append(group.response)

    assert [RESPONSE] == responses


def test_d6_failures_survive_pickling(events, mediator):
    """
    A Celery task may let them out.
    """
    events.bind(SendReceipt)
    error = failed(mediator)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 -- we have just written it

    assert (str(error), error.response) == (str(copy), copy.response)
    assert [("SendReceipt", Ordered(0))] == [(failure.handler, failure.event) for failure in copy.failures]
    assert ["no paper for 0"] == [each.args[0] for each in copy.exceptions]
    assert error.exceptions[0].__notes__ == copy.exceptions[0].__notes__


def test_d6_a_request_that_fails_itself_is_no_such_failure(requests, events, mediator):
    """
    `EventsFailed` says that the command is done: what its handler raises comes as it is.
    """

    @frozen
    class Cancel(cqrs.Command[None]):
        pass

    def cancel(request):
        raise ValueError("too late")

    requests.bind(Cancel, cancel)

    with pytest.raises(ValueError, match="too late"):
        mediator.send(Cancel())


def test_d6_events_sent_without_a_request_fail_alike(events, mediator):
    """
    There is no response then.
    """
    events.bind(SendReceipt)

    with pytest.raises(cqrs.EventsFailed) as caught:
        mediator.publish(Ordered(3))

    assert (None, [Ordered(3)]) == (caught.value.response, [failure.event for failure in caught.value.failures])


# What is announced


@pytest.mark.parametrize(
    "policy", [cqrs.CollectFailures(), cqrs.FailFast(), cqrs.LogFailures()], ids=lambda one: type(one).__name__
)
def test_d6_a_failing_handler_does_not_hold_back_notification_events(wire, events, broker, policy):
    """
    Under any policy: others hear of what has been committed.
    """
    events.bind(update_stock)
    events.bind(OrderMade, SendOrderMade)
    with suppress(cqrs.EventsFailed):
        wire(failure_policy=policy).send(Order())

    assert ["order.made"] == [message.type for message in broker.published]


class SendOrderMade(cqrs.EventHandler[OrderMade]):
    """Fails with the notification event itself."""

    def handle(self, event):
        raise LookupError("no paper")


def test_d6_a_broker_that_fails_is_reported_with_the_response(mediator, broker):
    """
    As `PublishFailed`, which names what was not confirmed and why.
    """
    broker.fail_with = cqrs.BrokerUnavailable("gone")

    error = failed(mediator)

    [failure] = error.failures
    assert (RESPONSE, "publish", None) == (error.response, failure.handler, failure.event)
    assert isinstance(failure.error, cqrs.PublishFailed)
    assert ["order.made"] == [message.type for message, _ in failure.error.failures]


def test_d6_failures_of_handlers_and_of_the_broker_come_back_together(events, mediator, broker):
    """
    In one group.
    """
    events.bind(SendReceipt)
    broker.fail_with = cqrs.MessageRejected("too large")

    error = failed(mediator)

    assert {"SendReceipt", "publish"} == {failure.handler for failure in error.failures}
    assert {LookupError, cqrs.PublishFailed} == {type(each) for each in error.exceptions}


def test_d6_a_broker_that_raises_whatever_is_reported_with_the_response(wire):
    """
    A backend with a bug does not hide that the command succeeded.
    """

    class Broken(MemoryBroker):
        def publish(self, messages, /, *, timeout=None):
            raise ZeroDivisionError

    error = failed(wire(broker=Broken()))

    assert (RESPONSE, [ZeroDivisionError]) == (error.response, [type(each) for each in error.exceptions])


# Policies


@pytest.mark.parametrize("sequential", [cqrs.SameThread, partial(cqrs.ThreadPool, 1)], ids=["same-thread", "pool-of-1"])
def test_d6_fail_fast_starts_no_handler_after_a_failure(requests, events, ran, sequential):
    """
    One after the other: those behind the first failure do not run, nor do those of other events.
    """
    bind_five(events, ran, failing="b")
    policy = cqrs.FailFast()
    with cqrs.bootstrap(
        requests, events, source="tests", broker=MemoryBroker(), threads=sequential(), failure_policy=policy
    ) as mediator:
        assert ["b"] == [str(each) for each in failed(mediator, Order(count=3)).exceptions]

    assert ["a", "b"] == ran


def test_d6_fail_fast_lets_handlers_finish_that_have_started(requests, events):
    """
    Nothing is killed: both of two that run at once fail, and both come back.
    """
    together = threading.Barrier(2)

    def fails(event):
        together.wait(10)
        raise ValueError("at once")

    events.bind(Ordered, fails)
    events.bind(Ordered, partial(fails))
    with cqrs.bootstrap(
        requests, events, source="tests", threads=2, broker=MemoryBroker(), failure_policy=cqrs.FailFast()
    ) as mediator:
        assert ["at once", "at once"] == [str(each) for each in failed(mediator).exceptions]


def test_d6_fail_fast_is_over_with_the_request(wire, events, ran):
    """
    The next one starts afresh.
    """
    failing = True

    @events.bind
    def fails_once(event: Ordered) -> None:
        if failing:
            raise ValueError("once")
        ran.append(event)

    mediator = wire(failure_policy=cqrs.FailFast())
    failed(mediator)
    failing = False

    assert (RESPONSE, [Ordered(0)]) == (mediator.send(Order()), ran)


def test_d6_log_writes_failures_down_and_returns(wire, events, ran, caplog):
    """
    Each with its handler, its event and its traceback, without what is in the event.
    """
    bind_five(events, ran, failing="bd")
    with caplog.at_level(logging.INFO, "cqrs_sync"):
        response = wire(failure_policy=cqrs.LogFailures()).send(Order())

    assert (RESPONSE, "abcde") == (response, "".join(sorted(ran)))
    wanted = {("ERROR", "b failed while handling Ordered"), ("ERROR", "d failed while handling Ordered")}
    assert wanted == {(record.levelname, record.getMessage()) for record in caplog.records}
    assert all("Traceback" in record.exc_text for record in caplog.records)


def test_d6_log_does_not_hide_what_was_not_published(wire, events, broker):
    """
    An event that has not left is more than a line in a log.
    """
    events.bind(SendReceipt)
    broker.fail_with = cqrs.BrokerUnavailable("gone")

    error = failed(wire(failure_policy=cqrs.LogFailures()))

    assert (RESPONSE, ["publish"]) == (error.response, [failure.handler for failure in error.failures])


def test_d6_a_policy_is_any_object_of_that_shape(wire, events):
    """
    Applications bring their own.
    """

    class Count:
        def __init__(self):
            self.noted, self.settled = [], []

        def should_continue(self, failure, /):
            self.noted.append(failure.handler)
            return True

        def report(self, failures, response, /):
            self.settled.append((sorted(failure.handler for failure in failures), response))

    policy = Count()
    events.bind(SendReceipt)
    events.bind(update_stock)

    assert wire(failure_policy=policy).send(Order()) is RESPONSE
    assert (["SendReceipt", "update_stock"], RESPONSE) == policy.settled[0]
    assert ["SendReceipt", "update_stock"] == sorted(policy.noted)


def test_d6_a_policy_is_not_asked_where_nothing_failed(wire, events):
    """
    It is about failures.
    """

    class Untouchable:
        def should_continue(self, failure, /):
            raise AssertionError(failure)

        def report(self, failures, response, /):
            raise AssertionError(failures)

    events.bind(Ordered, lambda event: None)

    assert wire(failure_policy=Untouchable()).send(Order()) is RESPONSE


# What is no Exception


@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit])
def test_d6_what_is_no_exception_comes_out_of_send_in_the_end(events, mediator, broker, ran, kind):
    """
    A handler that exits does not keep its siblings from running nor events from leaving.
    """

    def leaves(event):
        raise kind(3)

    bind_five(events, ran, failing="")
    events.bind(Ordered, leaves)
    for name in "vwxyz":
        events.bind(Ordered, lambda event, name=name: ran.append(name))

    with pytest.raises(kind):
        mediator.send(Order())

    assert "abcdevwxyz" == "".join(sorted(ran))
    assert ["order.made"] == [message.type for message in broker.published]


def test_d6_failures_beside_an_exit_are_logged(events, mediator, ran, caplog):
    """
    Nobody gets them otherwise.
    """

    def leaves(event):
        raise SystemExit

    events.bind(SendReceipt)
    events.bind(Ordered, leaves)
    with caplog.at_level(logging.ERROR, "cqrs_sync"), pytest.raises(SystemExit):
        mediator.send(Order())

    assert ["SendReceipt failed while handling Ordered"] == [record.getMessage() for record in caplog.records]


def test_d6_an_interrupt_in_a_handler_comes_out_of_send(events, mediator, ran):
    """
    Ctrl-C reaches the main thread at once; a handler elsewhere that raises it is like one that exits.
    """
    interrupted = True

    @events.bind
    def interrupts(event: Ordered) -> None:
        if interrupted:
            raise KeyboardInterrupt
        ran.append(event)

    with pytest.raises(KeyboardInterrupt):
        mediator.send(Order())
    interrupted = False

    assert (RESPONSE, [Ordered(0)]) == (mediator.send(Order()), ran)


def test_d6_a_request_handler_that_exits_exits(requests, mediator, broker):
    """
    It runs in the caller's thread, so that is the caller's affair; its events are dropped.
    """

    @frozen
    class Leave(cqrs.Command[None]):
        pass

    def leave(request):
        cqrs.raise_event(OrderMade())
        raise SystemExit(4)

    requests.bind(Leave, leave)
    with pytest.raises(SystemExit):
        mediator.send(Leave())

    assert [] == list(broker.published)
