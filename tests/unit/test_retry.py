"""Promises of retry policies, kinds of errors, the circuit breaker and backoff."""

from __future__ import annotations

import logging
import pickle
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cqrs_sync as cqrs
from cqrs_sync import retry
from cqrs_sync.retry import Backoff, CircuitBreaker, LogThrottle


@given(attempts=st.integers(1, 10_000), limit=st.integers(1, 10_000))
def test_what_was_tried_often_enough_is_given_up(attempts, limit):
    """
    After the last attempt there is no further one; before, there always is.
    """
    delay = cqrs.RetryPolicy(attempts=limit).delay(attempts)

    assert (attempts >= limit) == (delay is None)


@given(attempts=st.integers(1, 500))
def test_pauses_grow_up_to_the_ceiling(attempts):
    """
    Each is at most `factor` times the one before, and at least half of that.
    """
    longest = min(60.0, 0.5 * 3.0 ** min(attempts - 1, 100))

    delay = cqrs.RetryPolicy(attempts=1000, first=0.5, factor=3.0, ceiling=60.0).delay(attempts)

    assert longest / 2 <= delay <= longest


@given(
    delays=st.lists(st.floats(0.001, 1000), max_size=10),
    attempts=st.integers(1, 20),
)
def test_named_delays_are_used_one_after_the_other(delays, attempts):
    """
    With one attempt more than there are delays; each is shorter by up to a half.
    """
    policy = cqrs.RetryPolicy(delays=delays)
    delay = policy.delay(attempts)

    assert 1 + len(delays) == policy.attempts
    assert (attempts > len(delays)) == (delay is None)
    assert delay is None or delays[attempts - 1] / 2 <= delay <= delays[attempts - 1]


def test_a_factor_close_to_one_reaches_the_ceiling_as_well():
    policy = cqrs.RetryPolicy(attempts=10_000, factor=1.01)

    assert 150 <= policy.delay(9_999) <= 300


def test_an_error_may_ask_for_a_longer_delay_or_for_no_attempt():
    policy = cqrs.RetryPolicy(first=0.1)

    assert 30 == policy.delay(1, cqrs.TemporaryError("limit", after=30))
    assert policy.delay(1, cqrs.PermanentError("cancelled")) is None
    assert policy.delay(1, ExceptionGroup("", [cqrs.PermanentError("cancelled")])) is None
    assert policy.delay(1, ExceptionGroup("", [cqrs.PermanentError("cancelled"), ValueError()])) is not None


@pytest.mark.parametrize("wrong", ["30s", True, -1, float("nan"), float("inf"), 1e10, timedelta(seconds=-1)])
def test_a_temporary_error_refuses_an_after_that_is_no_time(wrong):
    with pytest.raises((TypeError, ValueError), match="after= must be a number of seconds"):
        cqrs.TemporaryError("busy", after=wrong)


@pytest.mark.parametrize("alone", [30, 0.5, timedelta(seconds=30)])
def test_a_temporary_error_does_not_take_a_delay_for_its_text(alone):
    with pytest.raises(TypeError, match=r"write TemporaryError\(after=\.\.\.\)"):
        cqrs.TemporaryError(alone)


def test_a_temporary_error_takes_a_timedelta_and_survives_pickling():
    error = pickle.loads(pickle.dumps(cqrs.TemporaryError("busy", after=timedelta(minutes=1))))  # noqa: S301 -- its own bytes

    assert (60, ("busy",)) == (error.after, error.args)


def test_a_subclass_of_temporary_error_may_have_a_constructor_that_does_not_call_this_one():
    class Busy(cqrs.TemporaryError):
        def __init__(self):
            pass

    assert cqrs.RetryPolicy(first=0.1).delay(1, Busy()) <= 0.1


def test_what_failed_together_does_not_come_back_together():
    """
    Pauses differ.
    """
    policy = cqrs.RetryPolicy()

    assert len({policy.delay(3) for _ in range(100)}) > 90


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"attempts": True},
        {"attempts": 1.5},
        {"first": 0},
        {"first": float("nan")},
        {"factor": 0.5},
        {"first": 10, "ceiling": 1},
        {"on_dead_letter": "block"},
        {"delays": (0,)},
        {"delays": (1, -1)},
        {"delays": ("x",)},
        {"delays": (float("inf"),)},
        {"delays": (1,), "attempts": 3},
        {"delays": (1,), "first": 2},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong):
    """
    When it is made, not when something fails at night.
    """
    with pytest.raises(cqrs.ConfigurationError):
        cqrs.RetryPolicy(**wrong)


def test_each_target_has_its_policy():
    """
    A topic or a handler that none is given for has the default.
    """
    patient = cqrs.RetryPolicy(attempts=100)
    policies = cqrs.RetryPolicies(targets={"mails": patient})

    assert [patient, cqrs.RetryPolicy()] == [policies.of("mails"), policies.of("orders")]


# Circuit breaker


@pytest.fixture
def clock(monkeypatch):
    """The moment by `time.monotonic`, to be set."""
    now = [1000.0]
    monkeypatch.setattr(retry.time, "monotonic", lambda: now[0])
    return now


def test_a_circuit_opens_after_its_threshold_and_closes_with_a_success(clock):
    breaker = CircuitBreaker(1.0, 8.0, threshold=3)

    assert [False, False, True, False] == [breaker.record_failure() for _ in range(4)]
    assert breaker.is_open
    assert breaker.record_success()
    assert (False, 0, 0.0) == (breaker.is_open, breaker.failures, breaker.delay())
    assert not breaker.record_success()


def test_a_closed_circuit_delays_no_attempt(clock):
    breaker = CircuitBreaker(1.0, 8.0, threshold=3)
    breaker.record_failure()
    breaker.record_failure()

    assert 0.0 == breaker.delay()


def test_the_delay_of_an_open_circuit_grows_with_each_failure(clock):
    breaker = CircuitBreaker(1.0, 8.0, threshold=2)
    breaker.record_failure()
    for longest in (1, 2, 4, 8, 8):
        breaker.record_failure()
        assert longest / 2 <= breaker.delay() <= longest
    clock[0] += 8

    assert (True, 0.0) == (breaker.is_open, breaker.delay())


def test_a_circuit_can_be_held_without_a_failure(clock):
    breaker = CircuitBreaker(1.0, 8.0)
    breaker.postpone(5)

    assert (False, 5.0) == (breaker.is_open, breaker.delay())
    clock[0] += 5
    assert 0.0 == breaker.delay()


# Backoff and the log

logger = logging.getLogger("tests.retry")


@pytest.fixture
def trouble():
    return Backoff(logger, 1.0, 8.0)


def said(caplog):
    return [record.getMessage() for record in caplog.records]


def test_what_fails_is_tried_ever_more_rarely(trouble):
    """
    Each pause is twice as long as the one before, up to the ceiling, and with_jitter by up to a half.
    """
    for longest in (1, 2, 4, 8, 8, 8):
        assert longest / 2 <= trouble.record_failure(logging.DEBUG, "it failed") <= longest


def test_what_goes_on_failing_is_said_once(trouble, caplog):
    """
    Not with each attempt, and where it failed.
    """
    for number in range(5):
        trouble.record_failure(logging.WARNING, "it failed: %s", number)

    assert ["it failed: 0"] == said(caplog)
    assert "test_retry.py" == caplog.records[0].filename


def test_it_is_said_again_after_a_while_with_how_often_it_was_not(trouble, caplog, monkeypatch):
    """
    Whoever looks at the log later sees that it is not over.
    """
    for _ in range(4):
        trouble.record_failure(logging.WARNING, "it failed")
    monkeypatch.setattr("cqrs_sync.retry._QUIET", 0.0)
    trouble.record_failure(logging.WARNING, "it failed")
    trouble.record_failure(logging.WARNING, "it failed")

    assert ["it failed", "it failed (and 3 more like it)", "it failed"] == said(caplog)


def test_after_a_success_all_begins_anew(trouble, caplog):
    """
    The next failure is said at once, and the pause after it is the first one.
    """
    assert not trouble.record_success()
    for _ in range(4):
        trouble.record_failure(logging.WARNING, "it failed")

    assert trouble.record_success()
    assert not trouble.record_success()
    assert trouble.record_failure(logging.WARNING, "it failed") <= 1
    assert ["it failed", "it failed"] == said(caplog)


def test_a_pause_is_one_however_often_it_failed(trouble):
    """
    Also where that is more than a number can grow.
    """
    trouble.failures = 100_000

    assert 4 <= trouble.record_failure(logging.DEBUG, "it failed") <= 8


def test_each_has_its_own(monkeypatch):
    """
    What is said of one keeps nothing back of another.
    """
    one, other = LogThrottle(), LogThrottle()

    assert ["", None, ""] == [one.due(), one.due(), other.due()]
