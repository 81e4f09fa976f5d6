"""The command line of the outbox: what waits, what is dead, and what is done about it."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import re
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

import cqrs_sync as cqrs
from cqrs_sync.__main__ import main
from cqrs_sync.cli.app import Application
from cqrs_sync.cli.dead_letter_scan import DeadLetterFilter
from cqrs_sync.cli.dead_letters import OutboxDeadLetters, change_in_chunks
from cqrs_sync.cli.options import parse_duration
from cqrs_sync.cli.outbox import outbox
from cqrs_sync.cli.output import JsonLines, ReportFormat, counted, format_duration, printable
from cqrs_sync.memory import MemoryInbox, MemoryOutbox
from cqrs_sync.outbox import DeadLetterSelection, OutboxEntry, Outcome, OutcomeKind
from cqrs_sync.testing.contracts.broker import message
from cqrs_sync.testing.contracts.outbox import handled, published
from tests.integrations.outbox_app import Packed, engine_of, keep
from tests.integrations.processes import environment
from tests.promises.outbox_fixtures import Counted, Shop, Sold
from tests.source import ROOT
from tests.waiting import eventually

APP = "tests.integrations.outbox_app:mediator"


@pytest.fixture
def shop(monkeypatch):
    """A shop that the command line finds as `a_shop:mediator`."""
    shop = Shop(fast_path=False)
    module = type(sys)("a_shop")
    module.mediator = shop.mediator
    module.make = lambda: shop.mediator
    module.nothing = 42
    module.Shop = Shop
    module.plain = cqrs.bootstrap()

    def fails():
        raise ValueError("no settings\nat all")

    module.fails = fails
    monkeypatch.setitem(sys.modules, "a_shop", module)
    yield shop
    shop.mediator.close(5)


@pytest.fixture
def run():
    """Run a command; its exit status, and what it printed."""

    def run(*arguments, app="a_shop:mediator"):
        result = CliRunner().invoke(main, ["--app", app, *map(str, arguments)])
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
    code, text = run("outbox", "status")
    _, printed = run("outbox", "status", "--json")
    facts = json.loads(printed)

    assert 0 == code
    assert "1 waiting, 2 dead" in text
    assert {"waiting", "dead", "lag", "oldest", "targets", "dead_by_reason", "exceeded"} == facts.keys()
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

    assert code == run("outbox", "status", *limits)[0]


def test_dead_deliveries_are_listed_shown_and_counted(shop, run):
    """
    Bodies only where they are asked for.
    """
    bury(shop, Sold("ada", 1))
    bury(shop, Counted(2), error="ValueError: \x1b[31mred")
    (first, second) = json.loads(run("outbox", "dead", "list", "--json")[1])["dead"]
    _, shown = run("outbox", "dead", "show", second["number"], "--body")
    _, counted = run("outbox", "dead", "list", "--by-reason")

    assert ("sales", "sold", "ada", True) == (first["target"], first["type"], first["key"], first["blocks"])
    assert "body" not in first
    assert '{"number":2}' in shown
    assert "\x1b" not in shown + run("outbox", "dead", "list")[1]
    assert "no queue for" in counted
    (chosen,) = json.loads(run("outbox", "dead", "list", "--target", "counts", "--json")[1])["dead"]
    assert second["number"] == chosen["number"]


def test_dead_deliveries_are_replayed(shop, run):
    """
    By number, reason, target, or all of them; with a number of what would be, first.
    """
    bury(shop, Counted(1), Counted(2))
    bury(shop, Sold("ada", 3), error="ValueError: bad")
    numbers = [each["number"] for each in json.loads(run("outbox", "dead", "list", "--json")[1])["dead"]]

    assert (0, "3 would be replayed\n") == run("outbox", "dead", "replay", "--all", "--dry-run")
    assert (0, "1 replayed\n") == run("outbox", "dead", "replay", numbers[0], "--yes")
    assert (0, "1 replayed\n") == run("outbox", "dead", "replay", "--reason", "ValueError: bad", "--yes")
    assert (0, "1 replayed\n") == run("outbox", "dead", "replay", "--target", "counts", "--yes", "--rate", "1000")
    assert 3 == shop.waiting()


def test_dead_deliveries_are_deleted(shop, run):
    """
    For ever.
    """
    bury(shop, *(Counted(number) for number in range(3)))

    assert (0, "3 purged\n") == run("outbox", "dead", "purge", "--all", "--yes")
    assert 0 == shop.outbox.backlog().dead


@pytest.mark.parametrize("command", ["replay", "purge"])
def test_nothing_is_changed_where_nothing_is_chosen(shop, run, command):
    """
    `--all` has to be written.
    """
    bury(shop, Counted(1))
    code, text = run("outbox", "dead", command, "--yes")

    assert 2 == code
    assert "--all" in text
    assert 1 == shop.outbox.backlog().dead


def test_nothing_is_deleted_where_nobody_can_be_asked(shop, run):
    """
    As in a script whose author expected a question: only `--yes` means it. What is replayed is not gone.
    """
    bury(shop, Counted(1), Counted(2))
    for everything in (["--all"], ["--target", "counts"]):
        code, text = run("outbox", "dead", "purge", *everything)
        assert (2, True) == (code, "add --yes" in text)
    assert 2 == shop.outbox.backlog().dead

    assert (0, "2 would be purged\n") == run("outbox", "dead", "purge", "--all", "--dry-run")
    assert (0, "2 replayed\n") == run("outbox", "dead", "replay", "--all")


@pytest.mark.parametrize("command", [["replay"], ["replay", "--dry-run"], ["purge", "--yes"]])
def test_a_reason_that_chooses_nothing_is_told_how_it_is_written(shop, run, command):
    """
    A part of it is none; where nothing is dead there is nothing to copy.
    """
    words = "copy it from `main outbox dead list --by-reason --json | jq -r '.dead_by_reason[].reason'`"
    assert words not in run("outbox", "dead", *command, "--reason", "MessageRejected")[1]
    bury(shop, Counted(1))
    code, text = run("outbox", "dead", *command, "--reason", "MessageRejected")

    assert (0, True) == (code, words in text)
    assert words not in run("outbox", "dead", *command, "--target", "no")[1]
    assert words not in run("outbox", "dead", *command, "--reason", "MessageRejected: no queue for …")[1]


def test_delivered_messages_are_purged(shop, run):
    """
    Those that are old enough.
    """
    shop.sell(Counted(1))
    shop.relay.start(poll=(0.01, 0.02))
    eventually(lambda: shop.waiting() == 0)

    assert (0, "0 messages purged\n") == run("outbox", "purge", "--older-than", "1h")
    assert (0, "1 message purged\n") == run("outbox", "purge", "--older-than", "0s")


def rows_of(inbox):
    """Return the receipts that are there, by their keys."""
    return inbox._rows


@pytest.fixture
def received(shop, monkeypatch):
    """The inbox of another mediator of the shop; of its receipts two are of last year, and one of last week."""
    inbox = MemoryInbox(shop.transactions)
    for key, days in {"a": 365, "b": 365, "c": 7}.items():
        with inbox.once(key):
            pass
        rows_of(inbox)[key, ""].written -= days * 86_400
    sys.modules["a_shop"].kept = cqrs.bootstrap(source="tests", outbox=shop.outbox, inbox=inbox, broker=shop.broker)
    sys.modules["a_shop"].receiver = cqrs.bootstrap(inbox=inbox)
    yield inbox
    sys.modules["a_shop"].kept.close(5)


def test_receipts_are_purged_with_the_messages(shop, run, received):
    """
    Those that are older than a month, or as old as is said.
    """
    shop.sell(Counted(1))
    shop.relay.start(poll=(0.01, 0.02))
    eventually(lambda: shop.waiting() == 0)

    assert (0, "1 message purged, 2 receipts purged\n") == run(
        "outbox", "purge", "--older-than", "0s", app="a_shop:kept"
    )
    code, text = run(
        "outbox", "purge", "--older-than", "0s", "--receipts-older-than", "3d", "--json", app="a_shop:kept"
    )
    assert (0, {"purged": 0, "receipts": 1, "interrupted": False}) == (code, json.loads(text))
    assert not rows_of(received)


def test_receipts_alone_are_purged(run, received):
    """
    Also where there is no outbox.
    """
    assert (0, "0 messages purged, 2 receipts purged\n") == run(
        "outbox", "purge", "--receipts-older-than", "30d", app="a_shop:kept"
    )
    assert (0, "0 messages purged, 1 receipt purged\n") == run(
        "outbox", "purge", "--receipts-older-than", "2d", app="a_shop:receiver"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "say how old: --older-than, --receipts-older-than, or both"),
        (["--older-than", "0s", "--receipts-older-than", "47h"], "keep receipts for 172800 s at least"),
        (["--older-than", "0s", "--receipts-older-than", "0"], "keep receipts for 172800 s at least"),
    ],
)
def test_what_comes_again_is_not_forgotten_by_mistake(shop, run, received, arguments, words):
    """
    Nothing at all is purged then.
    """
    shop.sell(Counted(1))
    shop.relay.start(poll=(0.01, 0.02))
    eventually(lambda: shop.waiting() == 0)
    code, text = run("outbox", "purge", *arguments, app="a_shop:kept")

    assert (2, 3) == (code, len(rows_of(received)))
    assert words in text
    assert 1 == shop.outbox.purge(0)


def test_an_application_without_an_inbox_has_no_receipts(run, shop):
    """
    It says so where they are to be purged.
    """
    code, text = run("outbox", "purge", "--receipts-older-than", "30d")

    assert (2, "Error: receipts cannot be purged: this mediator has no inbox\n") == (code, text)


def test_an_interrupt_tells_what_was_purged(run, received, monkeypatch):
    """
    And what is still to be purged stays.
    """
    monkeypatch.setattr(sys.modules["a_shop"].kept.relay.outbox, "purge", raising(KeyboardInterrupt))

    assert (130, "0 messages purged, 0 receipts purged, then interrupted\n") == run(
        "outbox", "purge", "--older-than", "0s", app="a_shop:kept"
    )
    assert 3 == len(rows_of(received))


def test_an_inbox_that_cannot_be_reached_has_a_status_of_its_own(run, received, monkeypatch):
    """
    As that of an outbox.
    """
    monkeypatch.setattr(received, "purge", raising(cqrs.InboxUnavailable("connection refused")))
    code, text = run("outbox", "purge", "--older-than", "0s", app="a_shop:kept")

    assert (3, 1) == (code, len(text.splitlines()))
    assert "cannot reach the database of the inbox" in text


def raising(error):
    def raises(*_, **__):
        raise error

    return raises


@pytest.mark.parametrize(
    ("app", "words"),
    [
        ("a_shop", "write module:name"),
        (":mediator", "write module:name"),
        ("no_shop:mediator", "there is no module 'no_shop'"),
        ("a_shop.below:mediator", "there is no module 'a_shop.below'"),
        ("a_shop:mediater", "a_shop has no 'mediater', did you mean 'mediator'?"),
        ("a_shop:nothing", "expected a Mediator or a Consumer, not an object of the type int"),
        ("a_shop:Shop.sell", "calling it without arguments failed: TypeError"),
        ("a_shop:fails", "calling it without arguments failed: ValueError: no settings (line "),
        ("a_shop:plain", "this mediator has no outbox: give bootstrap(outbox=...) one"),
    ],
)
def test_an_application_that_is_none_is_told_in_one_line(shop, run, app, words):
    """
    With the status of a command that was called wrongly.
    """
    code, text = run("outbox", "status", app=app)

    assert (2, 1) == (code, len(text.splitlines()))
    assert words in text


def test_an_application_that_cannot_be_imported_is_told_in_one_line(run, tmp_path, monkeypatch):
    """
    With the line that is at fault; modules of the current directory are found.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "broken_shop.py").write_text("settings = {}\nsettings['url']\n")
    (tmp_path / "needy_shop.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "garbled_shop.py").write_text("def (\n")

    for name, words in {
        "broken_shop": f"KeyError: 'url' (line 2 of {tmp_path / 'broken_shop.py'})",
        "needy_shop": "No module named 'a_module_that_is_not_there' (line 1 of",
        "garbled_shop": "SyntaxError",
    }.items():
        code, text = run("outbox", "status", app=f"{name}:mediator")
        assert (2, 1) == (code, len(text.splitlines()))
        assert words in text


def test_an_application_is_named_anywhere(shop):
    """
    By `--app` after the command or before, or by the environment; who says it last is right.
    """

    def status_of(*arguments, variable=None):
        return CliRunner().invoke(main, [*arguments, "--json"], env={"CQRS_SYNC_APP": variable}).exit_code

    assert 0 == status_of("outbox", "status", "--app", "a_shop:mediator")
    assert 0 == status_of("--app", "a_shop:mediator", "outbox", "status")
    assert 0 == status_of("outbox", "status", variable="a_shop:mediator")
    assert 0 == status_of("outbox", "dead", "--app", "a_shop:mediator", "list", variable="nowhere:mediator")
    assert 0 == status_of("outbox", "dead", "--app", "nowhere:mediator", "list", "--app", "a_shop:mediator")
    assert 2 == status_of("outbox", "status")


def test_commands_take_a_mediator_that_is_at_hand(shop, capsys):
    """
    As Django's management commands call them.
    """
    with pytest.raises(SystemExit) as left:
        outbox.main(["status", "--json"], prog_name="manage.py cqrs_outbox", obj=Application(lambda: shop.mediator))

    assert (0, 0) == (left.value.code, json.loads(capsys.readouterr().out)["waiting"])


def test_what_is_not_installed_is_told_in_one_line():
    """
    The command line needs click and rich, and says how to get them.
    """
    program = "import sys; sys.modules['click'] = None; from cqrs_sync.__main__ import main"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )

    assert (2, "the command line needs click and rich: run `pip install 'cqrs-sync[cli]'`\n") == (
        done.returncode,
        done.stderr,
    )


def test_an_application_may_be_a_function(shop, run):
    """
    Which returns the mediator.
    """
    assert 0 == run("outbox", "status", app="a_shop:make")[0]


def test_an_outbox_that_cannot_be_reached_has_a_status_of_its_own(shop, run, monkeypatch):
    """
    Nobody takes it for an empty one.
    """

    def fail():
        raise cqrs.OutboxUnavailable("connection refused")

    monkeypatch.setattr(shop.outbox, "backlog", fail)
    code, text = run("outbox", "status")

    assert 3 == code
    assert "connection refused" in text


@pytest.mark.parametrize("text", ["soon", "7 days", "-1h", ""])
def test_a_duration_that_is_none_is_refused(shop, run, text):
    """
    With what can be written.
    """
    code, words = run("outbox", "purge", "--older-than", text)

    assert 2 == code
    assert "write 90s, 15m, 12h or 7d" in words


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (["status"], "No such command 'status'. Did you mean 'outbox status'?"),
        (["dlq", "list"], "No such command 'dlq'. Did you mean 'outbox dead' or 'consumer dead'?"),
        (["consume"], "No such command 'consume'. Did you mean 'consumer'?"),
        (["discard"], "No such command 'discard'. Did you mean 'outbox purge' or 'outbox dead purge'"),
        (["purge"], "No such command 'purge'. Did you mean 'outbox purge' or 'outbox dead purge'"),
        (["consumer", "dead", "discard"], "No such command 'discard'. Did you mean 'purge'?"),
        (["outbox", "stauts"], "No such command 'stauts'. Did you mean 'status'?"),
        (["topology", "frobnicate"], "No such command 'frobnicate'.\n"),
        (["consumer", "run", "--crashes", "5"], "No such option '--crashes'. Did you mean '--max-crashes'?"),
        (
            ["consumer", "run", "--outage-after=5"],
            "No such option '--outage-after'. Did you mean '--circuit-threshold'?",
        ),
        (["consumer", "run", "--every", "5"], "No such option '--every'. Did you mean '--report-every'?"),
        (["consumer", "lag", "--over", "5"], "No such option '--over'. Did you mean '--max-waiting'?"),
        (["relay", "--for", "5"], "No such option '--for'. Did you mean '--stop-after'?"),
        (["outbox", "dead", "list", "--over", "5"], "No such option '--over'.\n"),
    ],
)
def test_an_unknown_command_or_option_is_answered_with_similar_ones(run, shop, written, words):
    """
    Wherever they are.
    """
    code, text = run(*written)

    assert (2, True) == (code, words in text)


# What is printed


def test_what_is_dead_is_told_as_json(shop, run):
    """
    One object for each command, with keys that stay.
    """
    bury(shop, Sold("ada", 1))
    listed = json.loads(run("outbox", "dead", "list", "--json")[1])
    counted = json.loads(run("outbox", "dead", "list", "--by-reason", "--json")[1])
    shown = json.loads(run("outbox", "dead", "show", listed["dead"][0]["number"], "--body", "--json")[1])
    dry = json.loads(run("outbox", "dead", "purge", "--all", "--dry-run", "--json")[1])
    replayed = json.loads(run("outbox", "dead", "replay", "--all", "--json")[1])
    purged = json.loads(run("outbox", "purge", "--older-than", "0s", "--json")[1])

    keys = {
        "number", "kind", "target", "attempts", "age", "reason", "error", "blocks", "id", "type", "key", "bytes",
    }  # fmt: skip
    assert ({"dead", "total"}, keys) == (listed.keys(), listed["dead"][0].keys())
    assert {"dead_by_reason": [{"reason": "MessageRejected: no queue for …", "count": 1}], "total": 1} == counted
    assert {*keys, "attributes", "body"} == shown.keys()
    assert {"customer": "ada", "number": 1} == json.loads(shown["body"])
    assert {"selected": 1, "purged": 0, "interrupted": False} == dry
    assert {"selected": 1, "replayed": 1, "interrupted": False} == replayed
    assert {"purged": 0, "receipts": 0, "interrupted": False} == purged


def test_a_body_is_cut_and_obeyed_by_no_terminal(shop, run):
    """
    As text; as JSON it is whole.
    """
    body = "ada\x1b[2J\u202e" + "a" * 5000
    shop.outbox.add([OutboxEntry(message("sales", body.encode()), publish=True)], own_transaction=True)
    bury(shop)
    code, text = run("outbox", "dead", "show", "1", "--body")
    whole = json.loads(run("outbox", "dead", "show", "1", "--body", "--json")[1])["body"]

    assert 0 == code
    assert max(map(len, text.splitlines())) < 2100
    assert re.search(r"^body .*a… \(50\d\d characters\)$", text, re.MULTILINE)
    assert all(each.isprintable() for line in text.splitlines() for each in line)
    assert "a" * 5000 in whole


@pytest.mark.parametrize(
    ("value", "expected"),
    [("é 猫", "é 猫"), ("\x1b[31m", "\\x1b[31m"), ("a\nb\r", "a\\nb\\r"), ("\u202e", "\\u202e"), ("\udc80", "\\udc80"),
     (None, ""), (1.25, "1.2"), (7, "7")],
)  # fmt: skip
def test_what_is_not_printable_is_escaped(value, expected):
    """
    What moves the cursor, turns the direction of reading, or is no character.
    """
    assert expected == printable(value)


def test_numbers_have_their_nouns():
    """
    In the singular and the plural.
    """
    assert ["0 messages", "1 message", "2,000 messages"] == [counted(number, "message") for number in (0, 1, 2000)]


def test_durations_are_for_people():
    """
    With one digit.
    """
    assert ["0.3 s", "119.0 s", "2.0 min", "2.5 h", "3.0 d"] == [
        format_duration(seconds) for seconds in (0.3, 119, 120, 9000, 259_200)
    ]


# Durations, and what is chosen


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("1.5s", 1.5), ("15m", 900), ("12h", 43_200), ("7d", 604_800), (" 2w ", 1_209_600), ("0s", 0)],
)
def test_durations_are_read(text, expected):
    """
    As seconds, or with a unit.
    """
    assert expected == parse_duration(text)


@pytest.mark.parametrize("text", ["", "soon", "-1", "7 days", "1e3", "7d12h", "\u0663", "9" * 400, "9999w"])
def test_what_is_no_duration_is_refused(text):
    """
    With what can be written.
    """
    with pytest.raises(ValueError, match="write 90s, 15m, 12h or 7d"):
        parse_duration(text)


@pytest.mark.parametrize(("text", "written"), [("1500ms", "1.5"), ("5 ms", "0.005"), ("2000ms", "2")])
def test_milliseconds_are_told_as_what_to_write(text, written):
    """
    Seconds, as everywhere.
    """
    with pytest.raises(ValueError, match=f"write seconds, {written}$"):
        parse_duration(text)
    assert int(text.removesuffix("ms")) == parse_duration(written) * 1000


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, 3),
        ({"reason": "bad"}, 2),
        ({"reason": "gone"}, 0),
        ({"target": "orders"}, 2),
        ({"target": "orders", "reason": "worse"}, 1),
        ({"target": "orders", "reason": "bad"}, 1),
        ({"ids": frozenset("12")}, 2),
        ({"ids": frozenset({"1", "99"})}, 1),
        ({"limit": 1}, 1),
    ],
)
def test_dead_deliveries_are_counted(chosen, expected):
    """
    Those that are meant.
    """
    outbox = MemoryOutbox(on_no_transaction=cqrs.OnNoTransaction.OPEN)
    outbox.add([published("a"), published("b"), handled("c", handlers=["label"])])
    for error, claimed in zip(("bad", "worse"), outbox.claim(2, 60), strict=True):
        outbox.settle([Outcome.failed(claimed, error, after=None)])
    outbox.settle([Outcome.failed(each, "bad", after=None) for each in outbox.claim(1, 60, handlers=["label"])])

    assert expected == OutboxDeadLetters(outbox).count(DeadLetterFilter(**chosen))


def test_no_more_are_changed_than_there_were():
    """
    Those that are dead again meanwhile are left: otherwise it would never end.
    """
    asked = []

    def change(_, *, limit):
        asked.append(limit)
        return limit

    assert [500, 500, 200] == list(change_in_chunks(change, DeadLetterSelection(), 1200))
    assert [500, 500, 200] == asked
    assert [] == list(change_in_chunks(lambda _, limit: 0, DeadLetterSelection(), 1200))


# What is changed


@pytest.mark.parametrize(
    "arguments",
    [
        ["--all", "--target", "sales"],
        ["--all", "7"],
        ["0"],
        [str(2**63)],
        ["-5"],
        ["x"],
        ["--rate", "0", "--all"],
        ["--rate", "nan", "--all"],
        ["--rate", "inf", "--all"],
        ["--rate", "1e-300", "--all"],
    ],
)
def test_what_cannot_be_chosen_is_refused(shop, run, arguments):
    """
    Nobody replays all of them by mistake.
    """
    assert 2 == run("outbox", "dead", "replay", *arguments)[0]


def test_a_number_that_is_not_dead_is_not_found(shop, run):
    """
    With the status of what was not found.
    """
    assert (1, "Error: no dead letter has the number 7\n") == run("outbox", "dead", "show", 7)


def test_reasons_are_counted_all_or_not_at_all(shop, run):
    """
    A choice that would be left out is refused.
    """
    assert 2 == run("outbox", "dead", "list", "--by-reason", "--target", "sales")[0]


def test_much_is_changed_in_chunks(shop, run, monkeypatch):
    """
    Of 500 each; a rate makes them smaller.
    """
    bury_many(shop, 1100)
    limits = []
    replay = shop.outbox.replay
    monkeypatch.setattr(
        shop.outbox, "replay", lambda chosen, limit: limits.append(limit) or replay(chosen, limit=limit)
    )

    assert (0, "1100 replayed\n") == run("outbox", "dead", "replay", "--target", "counts")
    assert [500, 500, 100] == limits
    while claimed := shop.outbox.claim(1000, 30):
        shop.outbox.settle([Outcome(each, OutcomeKind.DONE) for each in claimed])
    bury_many(shop, 5)
    limits.clear()
    begun = time.monotonic()
    assert (0, "5 replayed\n") == run("outbox", "dead", "replay", "--all", "--rate", "10")
    assert [5] == limits
    assert time.monotonic() - begun < 25


def bury_many(shop, count):
    shop.sell(*(Counted(number) for number in range(count)))
    while claimed := shop.outbox.claim(1000, 30):
        shop.outbox.settle([Outcome.failed(each, "bad", after=None) for each in claimed])


def test_a_rate_is_kept():
    """
    After each chunk but the last one.
    """
    begun = time.monotonic()

    assert [5, 5, 5] == list(change_in_chunks(lambda _, limit: min(limit, 5), DeadLetterSelection(), 15, 50))
    assert 0.19 < time.monotonic() - begun < 5


def test_an_interrupt_before_anything_is_done_has_the_same_status(shop, run, monkeypatch):
    """
    As while a database does not answer: 1 would mean that something is not well.
    """
    monkeypatch.setattr(shop.outbox, "backlog", raising(KeyboardInterrupt))

    assert (130, "Error: interrupted\n") == run("outbox", "status")


def test_output_that_cannot_be_written_is_told_in_a_line(shop, monkeypatch, capsys):
    """
    With no traceback; where nobody reads any more there is nothing to be told.
    """

    class Full(io.StringIO):
        def __init__(self, number):
            super().__init__()
            self.number = number

        def write(self, text):
            raise OSError(self.number, os.strerror(self.number))

    for number, code in {errno.ENOSPC: 2, errno.EPIPE: 1}.items():
        monkeypatch.setattr(sys, "stdout", Full(number))
        with pytest.raises(SystemExit) as left:
            outbox.main(["status", "--json"], obj=Application(lambda: shop.mediator))
        assert code == left.value.code
    monkeypatch.setattr(sys, "stdout", Full(errno.ENOSPC))
    with pytest.raises(SystemExit):
        outbox.main(["dead", "list"], obj=Application(lambda: shop.mediator))

    assert 2 * "Error: standard output cannot be written: No space left on device\n" == capsys.readouterr().err


def test_standard_input_and_output_may_be_closed(shop, monkeypatch):
    """
    As by a daemon that starts it: nothing is asked, and nothing told.
    """
    bury(shop, Counted(1))
    for name in ("stdin", "stdout"):
        monkeypatch.setattr(sys, name, None)
    for arguments, status_of_it in ((["list"], 0), (["purge", "--all"], 2), (["replay", "--all"], 0)):
        with pytest.raises(SystemExit) as left:
            outbox.main(["dead", *arguments], obj=Application(lambda: shop.mediator))
        assert status_of_it == left.value.code

    assert 1 == shop.waiting()
    JsonLines(ReportFormat(str, dict, bool), 1.0).show({})


def test_an_interrupt_tells_what_was_done(shop, run, monkeypatch):
    """
    What has committed stays so, and the status is that of Ctrl-C.
    """
    bury_many(shop, 1100)
    discard, calls = shop.outbox.discard, []

    def interrupted(chosen, limit):
        calls.append(limit)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return discard(chosen, limit=limit)

    monkeypatch.setattr(shop.outbox, "discard", interrupted)

    assert (130, "500 purged, then interrupted\n") == run("outbox", "dead", "purge", "--all", "--yes")
    assert 600 == shop.outbox.backlog().dead


@pytest.mark.parametrize(("answer", "left"), [("y", 0), ("n", 2), ("", 2)])
def test_a_terminal_is_asked_before_anything_is_deleted(tmp_path, answer, left):
    """
    No is what it takes for an answer that is none.
    """
    url = f"sqlite:///{tmp_path / 'parcels.db'}"
    keep(url, Packed("elm", 1), Packed("oak", 2))
    engine = engine_of(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE cqrs_delivery SET status = 'dead'")
    near, far = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cqrs_sync", "outbox", "dead", "purge", "--all", "--app", APP],
        cwd=tmp_path, env=environment(PARCELS_DATABASE=url), stdin=far, stdout=far, stderr=far,
    )  # fmt: skip
    os.close(far)
    seen = b""
    while b"Purge 2 dead letters? [y/N]:" not in seen:
        seen += os.read(near, 1000)
    os.write(near, answer.encode() + b"\n")
    process.wait(20)
    os.close(near)
    with engine.connect() as connection:
        dead = connection.exec_driver_sql("SELECT COUNT(*) FROM cqrs_delivery").scalar()
    engine.dispose()

    assert (left, left and 1) == (dead, process.returncode)


# Where it is not


def test_a_database_that_is_not_there_has_a_status_of_its_own(tmp_path):
    """
    So have tables that are not there; the message names the way out.
    """
    nowhere = "postgresql+psycopg://postgres:secret@127.0.0.1:1/parcels"
    for url, words in {
        nowhere: "cannot reach the database of the outbox, check that it runs and that its address is right",
        f"sqlite:///{tmp_path / 'empty.db'}": "metadata.create_all(engine)",
    }.items():
        done = subprocess.run(
            [sys.executable, "-m", "cqrs_sync", "outbox", "status", "--app", APP],
            cwd=tmp_path, env=environment(PARCELS_DATABASE=url), capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert (3, "", 1) == (done.returncode, done.stdout, len(done.stderr.splitlines())), done.stderr
        assert words in done.stderr
        assert "secret" not in done.stderr
