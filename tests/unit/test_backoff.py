"""Promises about what fails for a while."""

from __future__ import annotations

import logging

import pytest

from cqrs_sync.retry import Backoff, LogThrottle

logger = logging.getLogger("tests.troubles")


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
        assert longest / 2 <= trouble.failed(logging.DEBUG, "it failed") <= longest


def test_what_goes_on_failing_is_said_once(trouble, caplog):
    """
    Not with each attempt, and where it failed.
    """
    for number in range(5):
        trouble.failed(logging.WARNING, "it failed: %s", number)

    assert ["it failed: 0"] == said(caplog)
    assert "test_troubles.py" == caplog.records[0].filename


def test_it_is_said_again_after_a_while_with_how_often_it_was_not(trouble, caplog, monkeypatch):
    """
    Whoever looks at the log later sees that it is not over.
    """
    for _ in range(4):
        trouble.failed(logging.WARNING, "it failed")
    monkeypatch.setattr("cqrs_sync.retry._QUIET", 0.0)
    trouble.failed(logging.WARNING, "it failed")
    trouble.failed(logging.WARNING, "it failed")

    assert ["it failed", "it failed (and 3 more like it)", "it failed"] == said(caplog)


def test_after_a_success_all_begins_anew(trouble, caplog):
    """
    The next failure is said at once, and the pause after it is the first one.
    """
    assert not trouble.is_over()
    for _ in range(4):
        trouble.failed(logging.WARNING, "it failed")

    assert trouble.is_over()
    assert not trouble.is_over()
    assert trouble.failed(logging.WARNING, "it failed") <= 1
    assert ["it failed", "it failed"] == said(caplog)


def test_a_pause_is_one_however_often_it_failed(trouble):
    """
    Also where that is more than a number can grow.
    """
    trouble.failures = 100_000

    assert 4 <= trouble.failed(logging.DEBUG, "it failed") <= 8


def test_each_has_its_own(monkeypatch):
    """
    What is said of one keeps nothing back of another.
    """
    one, other = LogThrottle(), LogThrottle()

    assert [0, None, 0] == [one.due(), one.due(), other.due()]
