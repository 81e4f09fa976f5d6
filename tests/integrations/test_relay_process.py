"""Promises of `cqrs-sync relay` as a process: it ends in time, loses and doubles nothing, waits for servers."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import sqlalchemy as sa

from tests.integrations.outbox_app import METADATA, Packed, Sent, engine_of, keep
from tests.integrations.processes import environment
from tests.servers.proxy import TcpProxy
from tests.servers.rabbitmq import bound_queue, drained, proxied, via
from tests.waiting import eventually

APP = "tests.integrations.outbox_app:mediator"


@pytest.fixture
def database(tmp_path):
    """An outbox in a database of SQLite."""
    return f"sqlite:///{tmp_path / 'parcels.db'}"


@pytest.fixture
def relay(start_worker, database):
    """Start relays on that database."""

    def start(*arguments, **variables):
        return start_worker("relay", "--app", APP, *arguments, **{"PARCELS_DATABASE": database, **variables})

    return start


def states(url):
    """How many deliveries there are, by their status."""
    engine = engine_of(url)
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT status, attempts FROM cqrs_delivery")).all()
    engine.dispose()
    return Counter(status for status, _ in rows)


@contextlib.contextmanager
def parcels_in(url):
    """Tables that are dropped afterwards: the database is everybody's."""
    try:
        yield url
    finally:
        engine = engine_of(url)
        METADATA.drop_all(engine)
        engine.dispose()


# It ends in time


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_has_begun_is_finished_and_the_rest_given_back(relay, database, gate, number):
    """
    Told to stop, it exits with 0, and leaves the rest as if nobody had had it.
    """
    keep(database, *(Packed(f"street {each}", each) for each in range(3)))
    relaying = relay(PARCELS_GATE=str(gate))
    begun = relaying.line()
    relaying.send(number)
    eventually(lambda: "in flight" in relaying.log())
    gate.unlink()

    assert (0, [begun.replace("begun", "done")]) == (relaying.status(), relaying.rest()), relaying.log()
    assert {"pending": 2} == states(database)
    assert f"{number.name}: stopping within 25 s, 1 deliveries in flight" in relaying.log()


def test_a_handler_that_hangs_is_named_with_its_stack_and_left(relay, database):
    """
    The process ends within its grace, with 1.
    """
    keep(database, Packed("elm", 1))
    relaying = relay("--grace", "2", PARCELS_FAULT="hangs")
    relaying.line()
    told = time.monotonic()
    relaying.send()

    assert 1 == relaying.status()
    assert 0.9 < time.monotonic() - told < 10
    assert "handler label was not finished within the grace: parcel.packed" in relaying.log()
    assert re.search(r"outbox_app\.py\", line \d+, in label", relaying.log())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(relay, database, number):
    """
    Whatever its grace, with what a shell calls the status of a program that the signal has ended.
    """
    keep(database, Packed("elm", 1))
    relaying = relay("--grace", "10m", PARCELS_FAULT="hangs")
    relaying.line()
    relaying.send(number)
    eventually(lambda: "in flight" in relaying.log())
    assert relaying.process.poll() is None
    relaying.send(number)

    assert 128 + number == relaying.status()
    assert "second signal: exiting at once, 1 deliveries in flight; other processes" in relaying.log()


def test_an_application_that_does_not_let_it_leave_is_left(relay, database):
    """
    Everything was delivered: a thread of the application that never ends changes neither that nor the status.
    """
    keep(database, Packed("elm", 1))
    relaying = relay("--grace", "2", PARCELS_FAULT="stays")
    relaying.line()
    relaying.send()

    assert 0 == relaying.status()
    assert "threads that block it: of-the-application" in eventually(relaying.log)


@pytest.mark.parametrize("grace", ["0s", "0.2s", "1s"])
def test_a_short_grace_is_enough_for_nothing(relay, database, grace):
    """
    Where nothing is under way, it exits with 0.
    """
    keep(database)
    relaying = relay("--grace", grace, "--json", "--report-every", "0.1")
    relaying.line()
    relaying.send()
    told = time.monotonic()

    assert 0 == relaying.status(), relaying.log()
    assert time.monotonic() - told < 10


@pytest.mark.broker
def test_a_database_that_does_not_answer_keeps_it_from_nothing(relay, postgresql_url_of_module):
    """
    It ends within its grace, although its threads wait for an answer for ever.
    """
    url = sa.make_url(postgresql_url_of_module)
    with parcels_in(postgresql_url_of_module), TcpProxy(url.host, url.port or 5432) as proxy:
        keep(postgresql_url_of_module)
        relaying = relay(
            "--grace", "2", "--json", "--report-every", "0.1",
            PARCELS_DATABASE=url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False),
        )  # fmt: skip
        assert "relaying" == json.loads(relaying.line())["state"]
        eventually(lambda: json.loads(relaying.line())["waiting"] == 0)
        proxy.freeze()
        relaying.send()
        told = time.monotonic()

        assert 0 == relaying.status(), relaying.log()
        assert time.monotonic() - told < 2 + 10


# It loses nothing and doubles nothing


@pytest.mark.broker
@pytest.mark.parametrize("server", ["postgresql_url_of_module", "mariadb_url_of_module"])
def test_signals_while_it_publishes_lose_nothing_and_double_nothing(relay, request, server, rabbitmq_url, exchange):
    """
    Told to stop in the middle of a batch, again and again, it settles what was confirmed: status 0 each time.
    """
    url = request.getfixturevalue(server)
    sent = [Sent(f"street {number % 40}", number) for number in range(400)]
    with parcels_in(url), bound_queue(rabbitmq_url, exchange, "parcels") as queue:
        keep(url, *sent)
        variables = {
            "PARCELS_DATABASE": url, "PARCELS_BROKER": rabbitmq_url, "PARCELS_EXCHANGE": exchange,
        }  # fmt: skip
        for _ in range(4):
            relaying = relay("--batch", "40", PARCELS_FAULT="slow", **variables)
            assert re.fullmatch(r"publishing \d+", relaying.line())
            relaying.send()
            assert 0 == relaying.status(), relaying.log()
        left = states(url)
        last = relay("--drain", **variables)
        last.rest()
        assert 0 == last.status(), last.log()
        messages = [json.loads(body) for _, body in drained(rabbitmq_url, queue)]
        after = states(url)

    assert 0 < left["pending"] < 400 - 4
    assert 0 == left["tried"]
    assert not after
    assert sorted(event.number for event in sent) == sorted(message["number"] for message in messages)
    for street in {event.street for event in sent}:
        numbers = [message["number"] for message in messages if message["street"] == street]
        assert sorted(numbers) == numbers


# It waits for servers


@pytest.mark.broker
def test_servers_that_are_down_at_first_are_waited_for(relay, postgresql_url_of_module, rabbitmq_url, exchange):
    """
    Neither a database nor a broker that cannot be reached is a reason to exit; what waits is delivered later.
    """
    url = sa.make_url(postgresql_url_of_module)
    with (
        parcels_in(postgresql_url_of_module),
        bound_queue(rabbitmq_url, exchange, "parcels") as queue,
        TcpProxy(url.host, url.port or 5432) as database,
        proxied(rabbitmq_url) as broker,
    ):
        keep(postgresql_url_of_module, Sent("elm", 1), Sent("oak", 2))
        database.cut()
        broker.cut()
        # A third of the lease is what a broker is given to confirm.
        relaying = relay(
            "--lease", "6",
            PARCELS_DATABASE=url.set(host="127.0.0.1", port=database.port).render_as_string(hide_password=False),
            PARCELS_BROKER=via(broker, rabbitmq_url),
            PARCELS_EXCHANGE=exchange,
        )  # fmt: skip
        eventually(lambda: "the outbox cannot be reached" in relaying.log(), 60)
        database.restore()
        eventually(lambda: "the broker cannot be reached" in relaying.log(), 60)
        broker.restore()
        eventually(lambda: not states(postgresql_url_of_module), 60)
        relaying.send()

        assert 0 == relaying.status(), relaying.log()
        assert 2 == len(drained(rabbitmq_url, queue))
        assert "Traceback" not in relaying.log()


# It ends by itself


def test_it_ends_when_nothing_is_due(relay, database):
    """
    With `--drain`, after the last message of the longest key, and what it was told to purge.
    """
    keep(database, *(Sent(f"street {number % 3}", number) for number in range(60)), Packed("elm", 1))
    relaying = relay("--drain", "--batch", "7", "--purge-after", "0s", PARCELS_FAULT="slow")
    relaying.rest()

    assert 0 == relaying.status(), relaying.log()
    assert not states(database)
    assert "nothing is due: stopping" in relaying.log()
    assert "61 delivered message(s) purged" in relaying.log()


@pytest.mark.broker
def test_it_does_not_take_an_outage_for_an_end(relay, database, rabbitmq_url, exchange):
    """
    With `--drain` it waits for the broker, at most as long as `--stop-after` says: then it exits with 1.
    """
    keep(database, Sent("elm", 1))
    with bound_queue(rabbitmq_url, exchange, "parcels") as queue, proxied(rabbitmq_url) as broker:
        broker.cut()
        variables = {"PARCELS_BROKER": via(broker, rabbitmq_url), "PARCELS_EXCHANGE": exchange}
        brief = relay("--drain", "--stop-after", "5s", "--lease", "6", **variables)
        brief.rest()
        assert 1 == brief.status(), brief.log()
        assert "5 s are over, but the outbox is not drained" in brief.log()
        patient = relay("--drain", "--stop-after", "60s", "--lease", "6", **variables)
        eventually(lambda: patient.log().count("the broker cannot be reached") == 2, 30)
        broker.restore()
        patient.rest()

        assert 0 == patient.status(), patient.log()
        assert 1 == len(drained(rabbitmq_url, queue))


def test_it_ends_after_a_while(relay, database):
    """
    With `--stop-after`, as processes are recycled.
    """
    keep(database, Sent("elm", 1))
    relaying = relay("--stop-after", "1s")
    relaying.rest()

    assert 0 == relaying.status(), relaying.log()
    assert "1 s are over: stopping" in relaying.log()
    assert "stopped: 1 delivered" in relaying.log()


# It shows how far it is


def test_who_has_watched_may_go(relay, database):
    """
    Reports that nobody reads any more are no reason to deliver nothing.
    """
    relaying = relay("--json", "--report-every", "0.1", "--stop-after", "3s", PYTHONUNBUFFERED="")
    assert relaying.line()
    relaying.process.stdout.close()
    eventually(lambda: "no more reports, their reader is gone" in relaying.log())
    keep(database, Packed("elm", 1))

    assert 0 == relaying.status()
    assert "Traceback" not in relaying.log()
    assert not states(database)


def test_it_reports_in_the_log_and_as_json(relay, database):
    """
    A line now and then, and one at the end.
    """
    keep(database, Sent("elm", 1))
    logging = relay("--report-every", "0.3", "--stop-after", "1s")
    logging.rest()
    assert 0 == logging.status()
    keep(database, Sent("elm", 2))
    reporting = relay("--report-every", "0.3", "--stop-after", "1s", "--json")
    reports = [json.loads(line) for line in reporting.rest() if line.startswith("{")]

    assert "INFO cqrs_sync.cli.output relaying: 1 delivered, " in logging.log()
    assert {"at", "state", "delivered", "per_second", "seconds", "waiting", "lag", "dead"} == reports[0].keys()
    assert len(reports) >= 3
    assert ("stopped", 1, 0, None, 0) == tuple(
        reports[-1][key] for key in ("state", "delivered", "waiting", "lag", "dead")
    )


@pytest.mark.parametrize("signals", [1, 2])
def test_a_terminal_has_a_line_of_its_own_and_is_left_as_it_was(database, tmp_path, signals):
    """
    The cursor is there again, also after a second signal.
    """
    keep(database, Packed("elm", 1))
    near, far = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cqrs_sync", "relay", "--app", APP, "--grace", "10m"],
        cwd=tmp_path, stdin=far, stdout=subprocess.DEVNULL, stderr=far,
        env=environment(PARCELS_DATABASE=database, PARCELS_FAULT="hangs" if signals == 2 else "", TERM="xterm"),
    )  # fmt: skip
    os.close(far)
    seen = b""
    for words in [b"delivered, ", b"in flight"][:signals]:
        while words not in seen:
            assert select.select([near], [], [], 20)[0], seen
            seen += os.read(near, 65536)
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(OSError):
        while more := os.read(near, 65536):
            seen += more
    os.close(near)

    assert (0 if signals == 1 else 143) == process.wait(20)
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")
