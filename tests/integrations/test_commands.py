"""The command line of the outbox: what waits, what is dead, and what is done about it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading

import pytest
from click.testing import CliRunner

import cqrs_sync as cqrs
from cqrs_sync.cli import main
from cqrs_sync.outbox import Outcome
from tests.integrations.processes import environment
from tests.promises.outbox_fixtures import Counted, Shop, Sold
from tests.waiting import eventually


@pytest.fixture
def shop(monkeypatch):
    """A shop that the command line finds as `a_shop:mediator`."""
    shop = Shop(fast_path=False)
    module = type(sys)("a_shop")
    module.mediator = shop.mediator
    module.make = lambda: shop.mediator
    module.nothing = 42
    monkeypatch.setitem(sys.modules, "a_shop", module)
    yield shop
    shop.mediator.close(5)


@pytest.fixture
def run():
    """Run a command; its exit status, and what it printed."""

    def run(*arguments, app="a_shop:mediator", answer=None):
        result = CliRunner().invoke(main, ["--app", app, *map(str, arguments)], input=answer)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return result.exit_code, result.output

    return run


def bury(shop, *events, error="MessageRejected: no queue for 'sales'"):
    """Let these be dead."""
    shop.sell(*events)
    shop.outbox.settle([Outcome.failed(each, error, after=None) for each in shop.outbox.claim(100, 30)])


def test_status_shows_what_waits_and_what_is_dead(shop, run):
    """
    As text, and as one JSON object.
    """
    bury(shop, Sold("ada", 1), Counted(2))
    shop.sell(Counted(3))
    code, text = run("status")
    _, printed = run("status", "--json")
    facts = json.loads(printed)

    assert 0 == code
    assert "1 wait" in text
    assert "2 are dead" in text
    assert {"waiting", "dead", "lag", "targets", "dead_by_reason"} == facts.keys()
    assert (1, 2) == (facts["waiting"], facts["dead"])
    assert [{"reason": "MessageRejected: no queue for …", "count": 2}] == facts["dead_by_reason"]
    assert {"kind", "target", "pending", "tried", "dead"} == facts["targets"][0].keys()


@pytest.mark.parametrize(
    ("limits", "code"),
    [(["--max-dead", "0"], 1), (["--max-dead", "1"], 0), (["--max-lag", "0"], 1), (["--max-lag", "1h"], 0)],
)
def test_status_fails_where_a_limit_is_passed(shop, run, limits, code):
    """
    For probes and alarms.
    """
    bury(shop, Counted(1))
    shop.sell(Counted(2))

    assert code == run("status", *limits)[0]


def test_dead_deliveries_are_listed_shown_and_counted(shop, run):
    """
    Bodies only where they are asked for.
    """
    bury(shop, Sold("ada", 1))
    bury(shop, Counted(2), error="ValueError: \x1b[31mred")
    (first, second) = json.loads(run("dead", "list", "--json")[1])["dead"]
    _, shown = run("dead", "show", second["number"], "--body")
    _, counted = run("dead", "list", "--by-reason")

    assert ("sales", "sold", "ada", True) == (first["target"], first["type"], first["key"], first["blocks"])
    assert "body" not in first
    assert '{"number":2}' in shown
    assert "\x1b" not in shown + run("dead", "list")[1]
    assert "no queue for" in counted
    (chosen,) = json.loads(run("dead", "list", "--target", "counts", "--json")[1])["dead"]
    assert second["number"] == chosen["number"]


def test_dead_deliveries_are_replayed(shop, run):
    """
    By number, reason, target, or all of them; with a number of what would be, first.
    """
    bury(shop, Counted(1), Counted(2))
    bury(shop, Sold("ada", 3), error="ValueError: bad")
    numbers = [each["number"] for each in json.loads(run("dead", "list", "--json")[1])["dead"]]

    assert (0, "3 would be replayed\n") == run("dead", "replay", "--all", "--dry-run")
    assert (0, "1 replayed\n") == run("dead", "replay", numbers[0], "--yes")
    assert (0, "1 replayed\n") == run("dead", "replay", "--reason", "ValueError: bad", "--yes")
    assert (0, "1 replayed\n") == run("dead", "replay", "--target", "counts", "--yes", "--rate", "1000")
    assert 3 == shop.waiting()


def test_dead_deliveries_are_deleted(shop, run):
    """
    For ever.
    """
    bury(shop, *(Counted(number) for number in range(3)))

    assert (0, "3 deleted\n") == run("dead", "purge", "--all", "--yes")
    assert 0 == shop.outbox.backlog().dead


@pytest.mark.parametrize("command", ["replay", "purge"])
def test_nothing_is_changed_where_nothing_is_chosen(shop, run, command):
    """
    `--all` has to be written.
    """
    bury(shop, Counted(1))
    code, text = run("dead", command, "--yes")

    assert 2 == code
    assert "--all" in text
    assert 1 == shop.outbox.backlog().dead


def test_delivered_messages_are_purged(shop, run):
    """
    Those that are old enough.
    """
    shop.sell(Counted(1))
    shop.relay.start(poll=(0.01, 0.02))
    eventually(lambda: shop.waiting() == 0)

    assert (0, "0 purged\n") == run("purge", "--older-than", "1h")
    assert (0, "1 purged\n") == run("purge", "--older-than", "0s")


@pytest.mark.parametrize(
    ("app", "words"),
    [
        ("a_shop", "write module:name"),
        ("no_shop:mediator", "there is no module 'no_shop'"),
        ("a_shop:nobody", "a_shop has no 'nobody'"),
        ("a_shop:nothing", "a RequestMediator is wanted"),
    ],
)
def test_an_application_that_is_none_is_told_in_one_line(shop, run, app, words):
    """
    With the status of a command that was called wrongly.
    """
    code, text = run("status", app=app)

    assert 2 == code
    assert words in text
    assert "Traceback" not in text


def test_an_application_may_be_a_function(shop, run):
    """
    Which returns the mediator.
    """
    assert 0 == run("status", app="a_shop:make")[0]


def test_an_outbox_that_cannot_be_reached_has_a_status_of_its_own(shop, run, monkeypatch):
    """
    Nobody takes it for an empty one.
    """

    def fail():
        raise cqrs.OutboxUnavailable("connection refused")

    monkeypatch.setattr(shop.outbox, "backlog", fail)
    code, text = run("status")

    assert 3 == code
    assert "connection refused" in text


@pytest.mark.parametrize("text", ["soon", "7 days", "-1h", ""])
def test_a_duration_that_is_none_is_refused(shop, run, text):
    """
    With what can be written.
    """
    code, words = run("purge", "--older-than", text)

    assert 2 == code
    assert "write 90s, 15m, 12h or 7d" in words


# As a process

APPLICATION = """
import os, signal, threading
import sqlalchemy as sa
from sqlalchemy.orm import sessionmaker
from attrs import frozen
import cqrs_sync as cqrs
from cqrs_sync.integrations.sqlalchemy import Sessions, SQLAlchemyOutbox, begin_immediate, tables
from cqrs_sync.memory import MemoryBroker

engine = begin_immediate(sa.create_engine("sqlite:///shop.db", connect_args={"timeout": 30}))
metadata = sa.MetaData()
tables(metadata)
metadata.create_all(engine)
sessions = Sessions(sessionmaker(engine))
events = cqrs.EventMap()

@frozen
class Packed(cqrs.DomainEvent, name="packed"):
    number: int

@events.bind(phase=cqrs.Phase.DURABLE, name="label")
def label(event: Packed) -> None:
    print("begun", event.number, flush=True)
    if os.environ.get("HANGS"):
        threading.Event().wait()
    while not os.path.exists("go"):
        threading.Event().wait(0.01)
    print("done", event.number, flush=True)

mediator = cqrs.bootstrap(
    events=events, broker=MemoryBroker(), outbox=SQLAlchemyOutbox(sessions), threads=1, fast_path=False
)

def write(count):
    with sessions.begin():
        for number in range(count):
            mediator.events.send(Packed(number))
"""


@pytest.fixture
def relaying(tmp_path):
    """A relay process that runs the first of three durable handlers; what it says comes line by line."""
    (tmp_path / "application.py").write_text(APPLICATION)
    variables = environment(tmp_path)
    subprocess.run(
        [sys.executable, "-c", "import application; application.write(3)"], cwd=tmp_path, env=variables, check=True
    )
    processes = []

    def start(*arguments, **more):
        command = [sys.executable, "-m", "cqrs_sync", "--app", "application:mediator", "relay", *arguments]
        with (tmp_path / "log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=tmp_path, env={**variables, **more}, stdout=subprocess.PIPE, stderr=log, text=True
            )
        processes.append(process)
        assert "begun 0\n" == process.stdout.readline()
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait(10)
        process.stdout.close()


def status_in(directory):
    done = subprocess.run(
        [sys.executable, "-m", "cqrs_sync", "--app", "application:mediator", "status", "--json"],
        cwd=directory, env=environment(directory), capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_a_relay_that_is_told_to_stop_finishes_what_it_has_begun(relaying, tmp_path):
    """
    It exits with 0, and leaves the rest as if nobody had had it.
    """
    process = relaying()
    process.send_signal(signal.SIGTERM)
    (tmp_path / "go").touch()
    said = process.stdout.read()

    assert (0, "done 0\n") == (process.wait(20), said), (tmp_path / "log").read_text()
    (left,) = status_in(tmp_path)["targets"]
    assert (2, 0) == (left["pending"], left["tried"])


def test_a_handler_that_does_not_end_is_named_and_left(relaying, tmp_path):
    """
    The process ends in time, with 1.
    """
    process = relaying("--grace", "0.5", HANGS="1")
    process.send_signal(signal.SIGTERM)

    assert 1 == process.wait(20)
    log = (tmp_path / "log").read_text()
    assert "was not finished within the grace" in log
    assert "in label" in log


def test_a_second_signal_ends_a_relay_at_once(relaying):
    """
    Whatever its grace.
    """
    process = relaying("--grace", "600", HANGS="1")
    process.send_signal(signal.SIGTERM)
    # The first one is noticed within a step.
    ended = threading.Event()
    threading.Thread(target=lambda: (process.wait(60), ended.set()), daemon=True).start()
    assert not ended.wait(1)
    process.send_signal(signal.SIGTERM)

    assert 128 + signal.SIGTERM == process.wait(10)


def test_a_relay_may_end_when_nothing_is_due(relaying, tmp_path):
    """
    As a job of a scheduler.
    """
    (tmp_path / "go").touch()
    process = relaying("--drain", "--purge-after", "0s")
    process.stdout.read()

    assert 0 == process.wait(30), (tmp_path / "log").read_text()
    assert 0 == status_in(tmp_path)["waiting"]
    assert "3 delivered" in (tmp_path / "log").read_text()
