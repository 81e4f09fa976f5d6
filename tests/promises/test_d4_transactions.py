"""
D4 inside a surrounding transaction: events are dispatched and emitted when it commits, never after
a rollback. Inline handlers run before that, in the caller's thread, inside the transaction.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from contextlib import contextmanager, suppress

import pytest
from attrs import frozen

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker, MemoryTransactions


class RolledBack(Exception):
    """Ends a block, and is expected."""


@frozen
class Pay(cqrs.Command[str]):
    name: str = "a"


@frozen
class Paid(cqrs.DomainEvent):
    name: str = "a"


@frozen
class Settled(cqrs.DomainEvent):
    name: str = "a"


@frozen
class PaymentMade(cqrs.NotificationEvent, topic="payments", name="payment.made"):
    name: str = "a"


@pytest.fixture
def transactions():
    return MemoryTransactions()


@pytest.fixture
def requests():
    requests = cqrs.RequestMap()

    @requests.bind
    def pay(request: Pay) -> str:
        cqrs.raise_event(Paid(request.name))
        cqrs.raise_event(PaymentMade(request.name))
        return f"paid {request.name}"

    return requests


@pytest.fixture
def seen():
    return []


@pytest.fixture
def events(seen):
    events = cqrs.EventMap()
    events.bind(Paid, lambda event: seen.append(event.name))
    return events


@pytest.fixture
def broker():
    return MemoryBroker()


@pytest.fixture
def wire(requests, events, broker, transactions, threads):
    """Make a mediator with these middlewares and settings."""

    def make(*middleware, **settings):
        return cqrs.bootstrap(
            requests,
            events,
            source="tests",
            broker=broker,
            transactions=transactions,
            threads=threads,
            middleware=middleware,
            **settings,
        )

    return make


@pytest.fixture
def mediator(wire):
    return wire()


def names(broker):
    return [message.body.decode().split('"')[3] for message in broker.published]


@contextmanager
def rolled_back(block):
    """Enter a block that fails."""
    with suppress(RolledBack), block:
        yield
        raise RolledBack


# When


def test_d4_events_wait_for_the_surrounding_commit(mediator, transactions, seen, broker):
    """
    `send` returns its response at once; nothing happens before the commit, everything at it.
    """
    with transactions.atomic():
        answer = mediator.send(Pay("a"))
        before = list(seen), names(broker)

    assert ("paid a", ([], [])) == (answer, before)
    assert (["a"], ["a"]) == (seen, names(broker))


def test_d4_nothing_follows_a_rollback(mediator, transactions, seen, broker):
    """
    Neither at the rollback nor with the next commit.
    """
    with rolled_back(transactions.atomic()):
        mediator.send(Pay("ghost"))
    with transactions.atomic():
        mediator.send(Pay("real"))

    assert (["real"], ["real"]) == (seen, names(broker))


def test_d4_nothing_follows_a_savepoint_that_was_rolled_back(mediator, transactions, seen, broker):
    """
    Its neighbours and the transaction around it are not affected.
    """
    with transactions.atomic():
        mediator.send(Pay("before"))
        with rolled_back(transactions.atomic()):
            mediator.send(Pay("ghost"))
        with transactions.atomic():
            mediator.send(Pay("kept"))
        mediator.send(Pay("after"))

    assert ["before", "kept", "after"] == seen == names(broker)


def test_d4_a_kept_savepoint_waits_for_the_outermost_commit(mediator, transactions, seen, broker):
    """
    The end of an inner block is no commit; a rollback around it takes it along.
    """
    with transactions.atomic():
        with transactions.atomic():
            mediator.send(Pay("a"))
        before = list(seen), names(broker)
    with rolled_back(transactions.atomic()), transactions.atomic():
        mediator.send(Pay("ghost"))

    assert (([], []), ["a"], ["a"]) == (before, seen, names(broker))


def test_d4_requests_of_one_transaction_are_followed_up_in_their_order(mediator, transactions, seen, broker):
    """
    What was sent first is dispatched and emitted first.
    """
    with transactions.atomic():
        for number in range(20):
            mediator.send(Pay(str(number)))

    assert [str(number) for number in range(20)] == seen == names(broker)


def test_d4_another_threads_transaction_is_not_this_ones(mediator, transactions, seen):
    """
    A transaction belongs to the thread that opened it.
    """
    with transactions.atomic():
        caller = threading.Thread(target=mediator.send, args=(Pay("elsewhere"),))
        caller.start()
        caller.join(10)
        before = list(seen)

    assert ["elsewhere"] == before == seen


def test_d4_without_a_transaction_everything_happens_at_once(mediator, seen, broker):
    """
    Where none is open, the commit is when the handler returns.
    """
    mediator.send(Pay("a"))

    assert ["a"] == seen == names(broker)


def test_d4_events_sent_without_a_request_wait_as_well(mediator, transactions, seen, broker):
    """
    `mediator.publish` inside a transaction, too.
    """
    with transactions.atomic():
        mediator.publish(Paid("a"))
        mediator.publish(PaymentMade("b"))
        before = list(seen), names(broker)
    with rolled_back(transactions.atomic()):
        mediator.publish(PaymentMade("ghost"))

    assert (([], []), ["a"], ["b"]) == (before, seen, names(broker))


def test_d4_a_nested_send_waits_for_the_transaction_of_its_caller(wire, requests, transactions, seen, broker):
    """
    A command sent by another's handler inside its transaction shares its fate.
    """
    mediator = wire(atomic(transactions))

    @frozen
    class PayAll(cqrs.Command[None]):
        fails: bool

    def pay_all(request):
        mediator.send(Pay("nested"))
        seen.append("handler still runs")
        if request.fails:
            raise RolledBack

    requests.bind(PayAll, pay_all)
    with pytest.raises(RolledBack):
        mediator.send(PayAll(fails=True))
    mediator.send(PayAll(fails=False))

    assert ["handler still runs", "handler still runs", "nested"] == seen
    assert ["nested"] == names(broker)


# Where


def test_d4_after_the_commit_no_transaction_is_open_around_handlers(wire, events, transactions):
    """
    What an after-commit handler does cannot be rolled back with the command, wherever it runs.
    """
    inside = []
    mediator = wire()
    events.bind(PaymentMade, lambda event: inside.append(transactions.active()))
    with transactions.atomic():
        mediator.send(Pay())
    wire(atomic(transactions)).send(Pay())

    assert [False, False] == inside


def atomic(transactions):
    """Make the middleware that opens a command's transaction."""

    def open_transaction(message, call_next):
        if not isinstance(message, cqrs.Request):
            return call_next(message)
        with transactions.atomic():
            return call_next(message)

    return open_transaction


# The outcome of what was left to a commit


def test_d4_failures_after_a_surrounding_commit_are_logged(mediator, events, transactions, seen, broker, caplog):
    """
    Nobody waits for them: the commit is not made to look like a failure, siblings run, and events are emitted.
    """

    def fails(event):
        raise LookupError("no receipt printer")

    events.bind(Paid, fails)
    events.bind(Paid, lambda event: seen.append("sibling"))
    with caplog.at_level(logging.ERROR, "cqrs_sync"), transactions.atomic():
        mediator.send(Pay("a"))

    assert (["a"], {"a", "sibling"}) == (names(broker), set(seen))
    [record] = caplog.records
    assert "fails failed while handling Paid" in record.getMessage()
    assert "no receipt printer" in record.exc_text


def test_d4_a_broker_that_fails_after_a_surrounding_commit_is_logged(mediator, transactions, seen, broker, caplog):
    """
    With the ids of what was not confirmed.
    """
    broker.fail_with = cqrs.BrokerUnavailable("gone")
    with caplog.at_level(logging.ERROR, "cqrs_sync"), transactions.atomic():
        mediator.send(Pay("a"))

    [record] = caplog.records
    assert (["a"], "publishing notification events failed") == (seen, record.getMessage())
    assert "1 message(s) not confirmed: payment.made" in record.exc_text


# A transaction opened by a middleware


def test_d4_a_commit_by_a_middleware_is_followed_up_before_send_returns(wire, transactions, seen, broker):
    """
    Handlers run and the broker confirms after the commit and before the response.
    """
    mediator = wire(atomic(transactions))

    assert ("paid a", ["a"], ["a"]) == (mediator.send(Pay("a")), seen, names(broker))


def test_d4_failures_after_a_commit_by_a_middleware_come_back_from_send(wire, events, transactions, seen, broker):
    """
    With the response: the command has committed.
    """

    def fails(event):
        raise LookupError("no receipt printer")

    events.bind(Paid, fails)
    broker.fail_with = cqrs.BrokerUnavailable("gone")
    with pytest.raises(cqrs.EventsFailed) as caught:
        wire(atomic(transactions)).send(Pay("a"))

    assert ("paid a", ["a"]) == (caught.value.response, seen)
    assert ["publish", fails.__qualname__] == sorted(failure.handler for failure in caught.value.failures)


def test_d4_a_commit_that_fails_is_followed_by_nothing(wire, transactions, seen, broker):
    """
    The handler has returned, its transaction has not become true: `send` raises what the commit raised.
    """

    def commit_fails(message, call_next):
        with transactions.atomic():
            call_next(message)
            raise RolledBack

    with pytest.raises(RolledBack):
        wire(commit_fails).send(Pay("ghost"))

    assert ([], []) == (seen, names(broker))


def test_d4_a_commit_by_a_middleware_inside_another_transaction_waits_for_that(wire, transactions, seen, broker):
    """
    Then the middleware's block is only a savepoint.
    """
    mediator = wire(atomic(transactions))
    with transactions.atomic():
        mediator.send(Pay("a"))
        before = list(seen), names(broker)
    with rolled_back(transactions.atomic()):
        mediator.send(Pay("ghost"))

    assert (([], []), ["a"], ["a"]) == (before, seen, names(broker))


def trying_again(attempts):
    def retry(call_next, message):
        for _ in range(attempts - 1):
            try:
                return call_next(message)
            except RolledBack:
                continue
        return call_next(message)

    return cqrs.RetryMiddleware(retry)


@pytest.mark.parametrize("transactional", [True, False], ids=["each in a transaction", "no transaction"])
@pytest.mark.parametrize("surrounded", [True, False], ids=["inside another", "alone"])
def test_d4_events_of_attempts_that_failed_are_dropped(wire, transactions, seen, broker, transactional, surrounded):
    """
    Of three attempts two fail after they raised events: only what the last one raised is handled and emitted.
    """
    attempts = []

    def fails_twice(message, call_next):
        answer = call_next(message)
        if isinstance(message, Pay):
            attempts.append(answer)
            if len(attempts) < 3:
                raise RolledBack
        return answer

    inner = [atomic(transactions), fails_twice] if transactional else [fails_twice]
    mediator = wire(trying_again(3), *inner)
    if surrounded:
        with transactions.atomic():
            mediator.send(Pay("a"))
    else:
        mediator.send(Pay("a"))

    assert (3, ["a"], ["a"]) == (len(attempts), seen, names(broker))


def test_d4_events_of_a_handler_that_failed_first_are_dropped(wire, requests, transactions, seen, broker):
    """
    A retry may follow the handler's own failure; a fresh handler serves the second attempt.
    """
    handlers = []

    @frozen
    class PayTwice(cqrs.Command[None]):
        pass

    class Handler(cqrs.RequestHandler[PayTwice, None]):
        def __init__(self):
            handlers.append(self)
            self._events = []

        @property
        def events(self):
            return self._events

        def handle(self, request):
            self._events.append(Paid(f"attempt {len(handlers)}"))
            if len(handlers) == 1:
                raise RolledBack

    requests.bind(Handler)
    wire(trying_again(2), atomic(transactions)).send(PayTwice())

    assert (2, ["attempt 2"]) == (len(handlers), seen)


# Event handlers with transactions of their own


def test_d4_follow_ups_of_an_event_handler_wait_for_its_transaction(wire, events, transactions, seen, broker):
    """
    A middleware opens one around each event handler: a follow-up comes after its commit, in the same `send`.
    """
    order = []

    def open_transaction(message, call_next):
        if not isinstance(message, cqrs.Event):
            return call_next(message)
        with transactions.atomic():
            call_next(message)
            order.append(f"{type(message).__name__} handled")
        return order.append(f"{type(message).__name__} committed")

    events.bind(PaymentMade, lambda event: cqrs.raise_event(Settled("b")))
    events.bind(Settled, lambda event: None)
    wire(open_transaction, atomic(transactions)).send(Pay("a"))

    steps = ["PaymentMade handled", "PaymentMade committed", "Settled handled", "Settled committed"]
    assert steps == [step for step in order if not step.startswith("Paid")]


def test_d4_follow_ups_of_an_event_handler_that_was_rolled_back_are_dropped(wire, events, transactions, seen):
    """
    Its failure is reported like any other.
    """

    def roll_back(message, call_next):
        if isinstance(message, PaymentMade):
            with transactions.atomic():
                call_next(message)
                raise RolledBack
        return call_next(message)

    events.bind(PaymentMade, lambda event: cqrs.raise_event(Paid("ghost")))
    with pytest.raises(cqrs.EventsFailed) as caught:
        wire(roll_back).send(Pay("a"))

    assert (["a"], [RolledBack]) == (seen, [type(error) for error in caught.value.exceptions])


# Inline


@pytest.fixture
def inline(events):
    def bind(event_type, handler):
        events.bind(event_type, handler, phase=cqrs.Phase.INLINE)

    return bind


def test_d4_an_inline_handler_runs_in_the_callers_thread_inside_the_transaction(wire, inline, transactions):
    """
    Whatever the others run on, and before `send` returns.
    """
    where = []
    inline(Paid, lambda event: where.append((threading.get_ident(), transactions.active())))
    mediator = wire()
    with transactions.atomic():
        mediator.send(Pay())
        before = list(where)
    wire(atomic(transactions)).send(Pay())

    assert [(threading.get_ident(), True)] == before
    assert [(threading.get_ident(), True)] * 2 == where


def test_d4_an_inline_handler_that_fails_fails_the_command(wire, events, inline, transactions, seen, broker):
    """
    Its exception is the command's: the transaction is rolled back, and nothing is dispatched or emitted.
    """
    committed = []

    def fails(event):
        raise LookupError("no such account")

    def open_transaction(message, call_next):
        with transactions.atomic():
            answer = call_next(message)
        committed.append(answer)
        return answer

    inline(PaymentMade, fails)
    with pytest.raises(LookupError, match="no such account") as caught:
        wire(open_transaction).send(Pay("ghost"))

    assert ([], [], []) == (committed, seen, names(broker))
    assert fails.__qualname__ in "".join(caught.value.__notes__)


def test_d4_inline_handlers_go_first(wire, events, inline, transactions, seen):
    """
    Those of follow-ups too: all of them belong to the transaction.
    """

    def book(event):
        seen.append(f"inline {event.name}")
        cqrs.raise_event(Settled("b"))

    inline(Paid, book)
    inline(Settled, lambda event: seen.append(f"inline {event.name}"))
    events.bind(Settled, lambda event: seen.append(f"later {event.name}"))
    mediator = wire()
    with transactions.atomic():
        mediator.send(Pay("a"))
        before = list(seen)

    assert ["inline a", "inline b"] == before
    assert Counter(["inline a", "inline b", "a", "later b"]) == Counter(seen)


def test_d4_events_of_an_inline_handler_share_the_commands_fate(wire, inline, transactions, seen, broker):
    """
    A follow-up that one raised is emitted at the commit, and is gone after a rollback.
    """
    inline(Paid, lambda event: cqrs.raise_event(PaymentMade("follow-up")))
    mediator = wire()
    with rolled_back(transactions.atomic()):
        mediator.send(Pay("ghost"))
    with transactions.atomic():
        mediator.send(Pay("a"))

    assert (["a"], ["a", "follow-up"]) == (seen, names(broker))


def test_d4_an_instance_is_given_to_an_inline_handler_once(wire, inline, seen, broker):
    """
    Also where an inline handler raises it again.
    """

    def again(event):
        seen.append(f"inline {event.name}")
        cqrs.raise_event(event)

    inline(Paid, again)
    inline(PaymentMade, again)
    wire().send(Pay("a"))

    assert Counter(["inline a", "inline a", "a"]) == Counter(seen)
    assert ["a"] == names(broker)


def test_d4_inline_handlers_of_follow_ups_run_in_their_handlers_transaction(wire, events, inline, transactions):
    """
    An after-commit handler raises an event with an inline handler: that one runs with it, in its thread.
    """
    threads = {}
    events.bind(Paid, lambda event: threads.update(raiser=threading.get_ident()) or cqrs.raise_event(Settled()))
    inline(Settled, lambda event: threads.update(inline=threading.get_ident(), inside=transactions.active()))

    def open_transaction(message, call_next):
        with transactions.atomic():
            return call_next(message)

    wire(open_transaction).send(Pay())

    assert (threads["raiser"], True) == (threads["inline"], threads["inside"])
