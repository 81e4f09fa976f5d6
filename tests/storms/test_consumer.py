"""A short form of the storms of tests/storms/consumer: each message has one effect, in the order of its key."""

from __future__ import annotations

import pytest

from tests.storms.consumer import storms

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.mark.parametrize(
    ("database", "broker"), [("postgresql", "rabbitmq"), ("mariadb", "rabbitmq"), ("postgresql", "kafka")]
)
def test_messages_that_come_three_times_have_one_effect(database, broker, tmp_path):
    """Handled by four workers, in the order of their keys."""
    figures = storms.thrice(database, broker, tmp_path, messages=300)

    assert 0 == figures.wrong, figures
    assert 300 == figures.effects


@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
def test_a_deploy_loses_and_doubles_nothing(broker, tmp_path):
    """A worker that is told to leave under load does so in time, with status 0."""
    figures = storms.deploys("postgresql", broker, tmp_path, times=3, each=60)

    assert 0 == figures.wrong, figures
    assert figures.extra["seconds_for_the_slowest"] < 20


@pytest.mark.parametrize("broker", ["kafka", "confluent"])
def test_workers_that_come_and_go_while_others_have_much_in_hand_lose_nothing(broker, tmp_path):
    """What was in hand when a group is shared out anew comes again."""
    figures = storms.joins("postgresql", broker, tmp_path, times=1)

    assert 0 == figures.wrong, figures


@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
def test_a_worker_that_is_killed_loses_and_doubles_nothing(broker, tmp_path):
    """What it had in hand is somebody else's."""
    figures = storms.kills("postgresql", broker, tmp_path, times=2, each=100)

    assert 0 == figures.wrong, figures
    assert 2 == figures.extra["killed"]


def test_a_path_that_is_dropped_is_made_anew(tmp_path):
    """Consumption goes on within seconds."""
    figures = storms.lost_connections("postgresql", tmp_path, times=3, fault="drop")

    assert 0 == figures.wrong, figures
    assert figures.extra["seconds_for_the_slowest"] < 30


@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
def test_bytes_that_are_no_messages_are_dead_letters_and_good_ones_go_on(broker, tmp_path):
    """Each with its reason; the next good one is handled at once."""
    figures = storms.hostile("postgresql", broker, tmp_path, count=100)

    assert 0 == figures.wrong, figures
    assert figures.extra["seconds_for_the_next"] < 5


def test_a_message_that_ends_its_process_is_parked(tmp_path):
    """After it has done so five times, and nothing else is."""
    figures = storms.deadly("postgresql", "rabbitmq", tmp_path)

    assert 0 == figures.wrong, figures
    assert 5 <= figures.extra["processes_ended"] <= 7


def test_while_a_dependency_is_down_few_messages_spend_attempts(tmp_path):
    """While a dependency is down few messages spend attempts, and all are handled when it is back."""
    figures = storms.outage("postgresql", "rabbitmq", tmp_path, messages=500, seconds=8.0)

    assert 0 == figures.wrong, figures
    assert figures.extra["spent_attempts"] < 50
