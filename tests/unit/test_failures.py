"""Promises about failure policies by themselves. What they mean for `send` is in tests/promises/test_d6_*.py."""

from __future__ import annotations

import logging

import pytest

from cqrs_sync.errors import EventsFailed, Failure
from cqrs_sync.failures import CollectFailures, FailFast, LogFailures, events_failed, log_failures

PAPER = Failure("Receipt", "an event", LookupError("no paper"))
STOCK = Failure("Stock", "another", ValueError("no stock"))
BROKER = Failure("publish", None, OSError("gone"))


@pytest.mark.parametrize(("policy", "goes_on"), [(CollectFailures(), True), (LogFailures(), True), (FailFast(), False)])
def test_a_policy_says_whether_others_are_started(policy, goes_on):
    """
    Only failing fast stops them.
    """
    assert policy.should_continue(PAPER) is goes_on


@pytest.mark.parametrize("policy", [CollectFailures(), FailFast()])
def test_failures_are_raised_as_a_group(policy):
    """
    With all facts.
    """
    with pytest.raises(EventsFailed) as caught:
        policy.report([PAPER, STOCK], "response")

    assert ((PAPER, STOCK), "response") == (caught.value.failures, caught.value.response)
    assert (PAPER.error, STOCK.error) == caught.value.exceptions


def test_log_raises_only_what_was_not_published(caplog):
    """
    The rest is written down.
    """
    with caplog.at_level(logging.ERROR, "cqrs_sync"), pytest.raises(EventsFailed) as caught:
        LogFailures().report([PAPER, BROKER, STOCK], "response")

    assert ((BROKER,), "response") == (caught.value.failures, caught.value.response)
    assert ["Receipt failed while handling str", "Stock failed while handling str"] == [
        record.getMessage() for record in caplog.records
    ]


def test_log_returns_where_everything_was_published(caplog):
    """
    Handlers' failures are no concern of the caller's then.
    """
    with caplog.at_level(logging.ERROR, "cqrs_sync"):
        assert LogFailures().report([PAPER], "response") is None

    assert 1 == len(caplog.records)


def test_a_handler_is_named_once_however_often_it_failed():
    """
    In the order of the alphabet.
    """
    error = events_failed([STOCK, PAPER, STOCK, BROKER], None)

    assert "the request succeeded, but then these failed: Receipt, Stock, publish (4 sub-exceptions)" == str(error)


def test_what_is_logged_has_its_traceback(caplog):
    """
    Each failure is a line of its own.
    """
    with caplog.at_level(logging.ERROR, "cqrs_sync"):
        log_failures([PAPER, BROKER])

    assert ["Receipt failed while handling str", "publishing notification events failed"] == [
        record.getMessage() for record in caplog.records
    ]
    assert [PAPER.error, BROKER.error] == [record.exc_info[1] for record in caplog.records]


def test_a_group_taken_apart_keeps_what_belongs_to_each_part():
    """
    `split` and `subgroup` do what `except*` does.
    """
    error = events_failed([PAPER, STOCK, BROKER], "response")
    lookups, rest = error.split(LookupError)

    assert ((PAPER,), (STOCK, BROKER)) == (lookups.failures, rest.failures)
    assert {"response"} == {lookups.response, rest.response, error.subgroup(OSError).response}
    assert {EventsFailed} == {type(part) for part in (lookups, rest)}
