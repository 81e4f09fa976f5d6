"""Promises of retry policies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cqrs_sync as cqrs


@given(attempts=st.integers(1, 10_000), limit=st.integers(1, 10_000))
def test_what_was_tried_often_enough_is_given_up(attempts, limit):
    """
    After the last attempt there is no further one; before, there always is.
    """
    pause = cqrs.RetryPolicy(attempts=limit).pause(attempts)

    assert (attempts >= limit) == (pause is None)


@given(attempts=st.integers(1, 500))
def test_pauses_grow_up_to_the_ceiling(attempts):
    """
    Each is at most `factor` times the one before, and at least half of that.
    """
    longest = min(60.0, 0.5 * 3.0 ** min(attempts - 1, 100))

    pause = cqrs.RetryPolicy(attempts=1000, first=0.5, factor=3.0, ceiling=60.0).pause(attempts)

    assert longest / 2 <= pause <= longest


def test_what_failed_together_does_not_come_back_together():
    """
    Pauses differ.
    """
    policy = cqrs.RetryPolicy()

    assert len({policy.pause(3) for _ in range(100)}) > 90


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
        {"when_dead": "block"},
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
    retries = cqrs.Retries(targets={"mails": patient})

    assert [patient, cqrs.RetryPolicy()] == [retries.of("mails"), retries.of("orders")]
