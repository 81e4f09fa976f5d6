"""Promises about careless calls: the error names the mistake and says what is right."""

from __future__ import annotations

import enum
import functools
import re
import threading

import attrs
import punq
import pytest

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker, MemoryInbox, MemoryTransactions


@attrs.frozen
class Pay(cqrs.Command[int]):
    amount: int = 0


@attrs.frozen
class Paid(cqrs.DomainEvent, name="paid"):
    amount: int = 0


class Tenant(str, enum.Enum):  # noqa: UP042 -- StrEnum formats itself as its value, this does not
    FIRST = "first"


@pytest.fixture
def mediator():
    requests = cqrs.RequestMap()
    paid: list[int] = []

    @requests.bind
    def pay(request: Pay) -> int:
        paid.append(request.amount)
        return len(paid)

    with cqrs.bootstrap(requests, inbox=MemoryInbox(MemoryTransactions())) as mediator:
        yield mediator


@pytest.mark.parametrize("scope", [None, 0, 7, b"user"])
@pytest.mark.parametrize("key", [None, "key"])
def test_a_scope_that_is_no_text_is_refused(mediator, key, scope):
    """
    A scope of None, from a request without a user, would make one scope of all of them.
    """
    with pytest.raises(TypeError, match="the scope must be a str"):
        mediator.send(Pay(), idempotency_key=key, scope=scope)


@pytest.mark.parametrize(("key", "scope"), [("k" * 200, "s" * 200), ("k" * 126, "s" * 126), ("k", "s" * 250)])
def test_a_key_and_a_scope_that_are_too_long_together_are_both_named(mediator, key, scope):
    words = f"idempotency_key and scope may have 249 characters together, and have {len(key)} and {len(scope)}"
    with pytest.raises(ValueError, match=words):
        mediator.send(Pay(), idempotency_key=key, scope=scope)


def test_the_longest_key_and_scope_are_kept(mediator):
    assert 1 == mediator.send(Pay(), idempotency_key="k" * 149, scope="s" * 100)
    assert 1 == mediator.send(Pay(), idempotency_key="k" * 149, scope="s" * 100)


def test_a_conflict_names_the_key_and_the_scope_as_they_were_given(mediator):
    mediator.send(Pay(1), idempotency_key="a b", scope="the user")
    with pytest.raises(cqrs.IdempotencyKeyConflict, match=r"^the key 'a b' of the scope 'the user' was used"):
        mediator.send(Pay(2), idempotency_key="a b", scope="the user")


def test_a_subclass_of_str_is_the_text_that_it_is(mediator):
    """
    Such an enum formats itself as `Tenant.FIRST`, and database drivers write what they like for it.
    """
    assert 1 == mediator.send(Pay(), idempotency_key="k", scope=Tenant.FIRST)
    assert 1 == mediator.send(Pay(), idempotency_key="k", scope="first")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda mediator: mediator.send(Pay), "a class was sent, not a request: send an instance"),
        (lambda mediator: mediator.send(Paid()), r"Paid is an event, which is not sent: .*mediator.publish\(Paid"),
        (lambda mediator: mediator.publish(Paid), "a class is not an event: raise an instance"),
        (lambda mediator: mediator.publish(Pay()), r"Pay is a request, not an event: .*mediator.send\(Pay"),
        (lambda mediator: mediator.receive(Paid()), "receive takes an IncomingMessage, .* not Paid; .* `publish`"),
        (lambda mediator: mediator.receive(None), "receive takes an IncomingMessage, .* not NoneType"),
        (lambda mediator: mediator.send(Pay(), timeout="5"), "a timeout must be a number of seconds, not '5'"),
    ],
)
def test_the_mediator_says_what_it_takes(mediator, call, words):
    with pytest.raises((cqrs.HandlerNotFound, TypeError, ValueError), match=words):
        call(mediator)


def note(event: Paid) -> None:
    pass


@pytest.mark.parametrize(
    ("bind", "words"),
    [
        (lambda events: events.durable(), r'durable\(\) lacks the stable name.* events.durable\("name"\)'),
        (lambda events: events.durable(note), r'note is no stable name.* events.durable\("name"\)'),
        (lambda events: events.durable(Paid), r'Paid is no stable name.* events.durable\("name"\)'),
        (lambda events: events.durable(name="note"), r'write events.durable\("name"\)'),
        (lambda events: events.durable(Paid, name="note"), r'write events.durable\("name"\)'),
        (lambda events: events.durable("note", name="note"), r'write events.durable\("name", ...\)'),
        (lambda events: events.durable("note", note, Paid), "the event comes before its handler: write Paid, note"),
        (lambda events: events.inline(note, Paid), "the event comes before its handler: write Paid, note"),
        (lambda events: events.bind(functools.partial(note), Paid), "the event comes before its handler"),
    ],
)
def test_a_binding_says_in_which_order_its_parts_come(bind, words):
    with pytest.raises((cqrs.InvalidBinding, TypeError), match=words):
        bind(cqrs.EventMap())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"topics": None}, "the topics of a group are a list of names, not None"),
        ({"delays": 5}, re.escape("the delays of a group are a list of seconds: write [5]")),
        ({"delays": "10"}, re.escape("the delays of a group are a list of seconds: write ['10']")),
        ({"delays": ["1"]}, "the delays of a group are seconds above 0"),
        ({"delays": [float("inf")]}, "the delays of a group are seconds above 0"),
        ({"prefetch": "5"}, "the prefetch of a group is a whole number"),
        ({"prefetch": 1.5}, "the prefetch of a group is a whole number"),
    ],
)
def test_a_group_says_what_it_takes(options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        cqrs.Group("billing", **{"topics": ["orders"], **options})


@pytest.mark.parametrize("group", ["billing", None, cqrs.Group])
def test_a_subscription_takes_a_group(group):
    with pytest.raises(TypeError, match=r"a Group is needed, not .*: write subscribe\(Group\('billing', "):
        MemoryBroker().subscribe(group)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: cqrs.RetryPolicies(targets={"bill": 3}), "the retry policy 'bill' must be a RetryPolicy, not 3"),
        (lambda: cqrs.RetryPolicies({"bill": cqrs.RetryPolicy()}), "the retry policy 'default' must be a RetryPolicy"),
        (lambda: cqrs.RetryPolicies(targets=[cqrs.RetryPolicy()]), "targets must be a dict of policies"),
        (lambda: cqrs.RetryPolicy(first="1"), "needs first > 0, factor >= 1 and ceiling >= first, not '1'"),
        (lambda: cqrs.RetryPolicy(ceiling=float("inf")), "needs first > 0, .* and inf"),
    ],
)
def test_a_retry_policy_that_would_fail_in_the_relay_is_refused(make, words):
    with pytest.raises(cqrs.ConfigurationError, match=words):
        make()


class Ledger:
    pass


def with_ledger(request: Pay, ledger: Ledger) -> int:
    return id(ledger)


def test_override_takes_an_instance():
    requests = cqrs.RequestMap()
    requests.bind(with_ledger)
    with (
        cqrs.bootstrap(requests) as mediator,
        pytest.raises(cqrs.ConfigurationError, match=r"not the class Ledger: write Ledger\(\.\.\.\)"),
        mediator.override(Ledger, Ledger),
    ):
        pytest.fail("the block must not run")


def test_threads_may_enter_and_leave_overrides_at_the_same_time():
    """
    One after the other changes the parts, so no override gets lost, and none stays.
    """
    requests = cqrs.RequestMap()
    requests.bind(with_ledger)
    with cqrs.bootstrap(requests, container=punq.Container().register(Ledger, instance=Ledger())) as mediator:
        before, use, changing, at_once = mediator.send(Pay()), mediator.dispatcher.use, [], []

        def slow_use(wiring) -> None:
            changing.append(wiring)
            at_once.append(len(changing))
            threading.Event().wait(0.02)
            use(wiring)
            changing.pop()

        mediator.dispatcher.use = slow_use
        inside = threading.Barrier(2)

        def overrider() -> None:
            with mediator.override(Ledger, Ledger()):
                inside.wait(5)

        threads = [threading.Thread(target=overrider) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)

        assert ([1, 1, 1, 1], before) == (at_once, mediator.send(Pay()))
