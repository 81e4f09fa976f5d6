"""A short form of each storm of tests/storms/outbox: nothing is lost or invented, order is kept, faults hit."""

from __future__ import annotations

import pytest

from tests.storms.outbox import kills, storms

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(240)]

DATABASES = ["postgresql", "mariadb"]
ALL = [("postgresql", "rabbitmq"), ("mariadb", "rabbitmq"), ("postgresql", "kafka")]


@pytest.mark.parametrize(("database", "broker"), ALL)
def test_what_is_published_is_what_was_committed_whoever_is_killed(database, broker, tmp_path):
    """Writers and relays are killed at random, relays also when they have published and not settled."""
    figures = kills.storm(database, broker, tmp_path, orders=400, kills=2)

    assert 0 == figures.wrong, figures
    assert 400 == figures.committed
    hits = figures.extra
    assert all(hits[kind] >= 2 for kind in ("writers_killed", "relays_killed", "relays_killed_before_settling")), hits
    assert figures.duplicates <= 500 * (hits["relays_killed"] + hits["relays_killed_before_settling"] + 2)


@pytest.mark.parametrize(("database", "relays"), [("postgresql", 2), ("postgresql", 4), ("mariadb", 4)])
def test_any_number_of_relays_and_fast_paths_keep_order_and_double_nothing(database, relays, tmp_path):
    """Without faults, every order comes once, and in the order of its key."""
    figures = storms.calm(database, "rabbitmq", tmp_path, orders=800, relays=relays)

    assert (0, 0, 800) == (figures.wrong, figures.duplicates, figures.received), figures


def test_wrong_clocks_make_no_difference(tmp_path):
    """Two relays are five minutes ahead, two behind: time is that of the database."""
    figures = storms.calm("postgresql", "rabbitmq", tmp_path, orders=400, relays=4, skew=300)

    assert (0, 0, 400) == (figures.wrong, figures.duplicates, figures.received), figures


def test_a_deploy_doubles_nothing(tmp_path):
    """A relay that is told to stop settles what it has published."""
    figures = storms.deploys("postgresql", tmp_path, orders=400, times=3)

    assert (0, 0, 400) == (figures.wrong, figures.duplicates, figures.received), figures
    assert figures.extra["stopped"] >= 3


def test_connections_that_the_database_closes_are_made_anew(tmp_path):
    """Nothing is lost; what was under way comes again with the same id."""
    figures = storms.cut_off("postgresql", tmp_path, orders=400, times=6)

    assert 0 == figures.wrong, figures
    assert figures.extra["connections_closed"] >= 3
    assert figures.duplicates <= 500 * figures.extra["connections_closed"]


@pytest.mark.parametrize("fault", ["stop-settle", "stop-claim"])
@pytest.mark.parametrize("database", DATABASES)
def test_a_relay_that_was_stopped_past_its_lease_changes_nothing_late(database, fault, tmp_path):
    """Another one takes over within seconds; duplicates are those it had published before it was stopped."""
    figures = storms.stopped(database, tmp_path, orders=200, fault=fault)

    assert 0 == figures.wrong, figures
    assert figures.extra["held"] > 0
    assert figures.extra["seconds_until_taken_over"] < 2 + 10
    assert figures.duplicates <= figures.extra["held"]


@pytest.mark.parametrize("database", DATABASES)
def test_what_commits_late_is_delivered_and_keeps_nobody_waiting(database, tmp_path):
    """Later events are delivered while a transaction with an earlier one is open."""
    figures = storms.late_commit(database, tmp_path, orders=200, seconds=3)

    assert (0, 201, 200) == (figures.lost, figures.received, figures.extra["delivered_while_it_was_open"]), figures


@pytest.mark.parametrize("database", DATABASES)
def test_only_the_durable_handlers_that_did_not_finish_run_again(database, tmp_path):
    """A process is killed in the second of three: the second and the third run afterwards, the first does not."""
    figures = storms.durable(database, tmp_path, orders=3)

    assert 3 == figures.extra["killed"]
    assert {"first": 3, "second": 3, "third": 3} == figures.extra["ran_in_the_end"]
    assert (3, None) == (figures.extra["ran_before"]["first"], figures.extra["ran_before"].get("second"))
    assert 0 == figures.wrong, figures


def test_an_outage_charges_no_attempt_and_is_over_when_the_broker_is_back(tmp_path):
    """What waited is delivered within seconds, once, and the log has a few lines about it."""
    figures = storms.outage("postgresql", tmp_path, orders=500, seconds=8)

    assert (0, 0, 500) == (figures.wrong, figures.duplicates, figures.received), figures
    assert (500, 0) == (figures.extra["waited"], figures.extra["charged"])
    assert figures.extra["seconds_to_drain"] < 30
    assert figures.extra["log_lines"] < 30
