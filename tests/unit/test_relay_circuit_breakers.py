"""Promises about brokers and topics that cannot be reached."""

from __future__ import annotations

import logging

import pytest

from cqrs_sync.errors import BrokerUnavailable
from cqrs_sync.relay.publisher import BrokerCircuitBreakers

ERROR = BrokerUnavailable("connection refused")


@pytest.fixture
def outages():
    return BrokerCircuitBreakers()


def test_while_a_broker_is_away_it_is_tried_seldom(outages):
    """
    Pauses grow to seconds, and one message finds out.
    """
    assert not outages.is_probing
    pauses = []
    for _ in range(12):
        outages.record([], ["orders"], ERROR)
        pauses.append(outages.delay())

    assert outages.is_probing
    assert 0 < pauses[0] < 0.3
    assert 1.4 < pauses[-1] <= 3


def test_a_broker_that_is_back_is_used_at_once(outages):
    """
    For all its topics.
    """
    for topic in ("orders", "mails"):
        outages.record([], [topic], ERROR)
    outages.record(["orders"], [], None)

    assert (False, 0.0, []) == (outages.is_probing, outages.delay(), outages.unreachable_topics())


def test_another_topic_is_tried_first_the_next_time(outages):
    """
    It may have been the topic alone; where there is no other, it is tried a little later.
    """
    outages.record([], ["orders"], ERROR)

    assert ["orders"] == outages.unreachable_topics()
    assert outages.delay() < outages.next_topic_delay() < 2 * 0.25


def test_a_topic_that_cannot_be_reached_holds_up_no_other(outages):
    """
    It is left alone for a while, and the broker is not taken to be away.
    """
    outages.record(["orders"], ["mails"], ERROR)

    assert (False, 0.0, ["mails"]) == (outages.is_probing, outages.delay(), outages.unreachable_topics())
    assert 0 < outages.next_topic_delay() <= 1


def test_an_outage_is_told_once_and_its_end_as_well(outages, caplog):
    """
    Not for each message, nor each attempt.
    """
    caplog.set_level(logging.INFO)
    for _ in range(100):
        outages.record([], ["orders"], ERROR)
    outages.record(["orders"], [], None)

    assert 2 == len(caplog.records)
    assert "connection refused" in caplog.records[0].getMessage()
