"""The command line of groups of consumers: dead letters, what waits, and what is on the broker."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter

import attrs
import pytest
from click.testing import CliRunner

import cqrs_sync as cqrs
from cqrs_sync.__main__ import main
from cqrs_sync.broker import IncomingMessage, TopologyItem
from cqrs_sync.cli.dead_letter_scan import BATCH, DeadLetterFilter, DeadLetterScan, id_of
from cqrs_sync.consumer import Consumer, group_of
from cqrs_sync.errors import BrokerUnavailable
from cqrs_sync.memory import MemoryBroker
from tests.consumer.conftest import Joined
from tests.waiting import eventually


class Office:
    """A mediator, its broker, and the group whose letters are dead."""

    def __init__(self):
        self.broker = MemoryBroker()
        events = cqrs.EventMap()
        self.seen = []
        events.bind(Joined, self.seen_by)
        self.mediator = cqrs.bootstrap(source="tests", events=events, broker=self.broker)
        self.group = group_of(self.mediator, "office")
        self.broker.subscribe(self.group).close()

    def seen_by(self, event: Joined) -> None:
        self.seen.append(event.number)

    def bury(self, *numbers, reason="ValueError: no meeting …", **notes):
        noted = {"attempts": "6", "parked": "2", "reason": reason, "at": "2026-01-01T00:00:00", **notes}
        letters = [
            IncomingMessage(
                "meetings", b'{"meeting": "m", "number": %d}' % number, "application/json", "m",
                {"id": f"id-{number}", "type": "meeting.joined", "source": "s", "specversion": "1.0"}, noted,
            )
            for number in numbers
        ]  # fmt: skip
        self.broker.add_dead_letters(letters, self.group)

    def dead(self):
        found = []
        with self.broker.read_dead_letters(self.group) as letters:
            while (delivery := letters.receive(timeout=0)) is not None:
                found.append(id_of(delivery.message))
        return found

    def waiting(self):
        """What its group receives now."""
        found = []
        with self.broker.subscribe(self.group) as deliveries:
            while (delivery := deliveries.receive(timeout=0)) is not None:
                found.append(delivery.message)
        return found


@pytest.fixture
def office(monkeypatch):
    """What the command line finds as `an_office:mediator`."""
    office = Office()
    module = type(sys)("an_office")
    module.mediator = office.mediator
    module.consumer = Consumer(office.mediator, "office")
    monkeypatch.setitem(sys.modules, "an_office", module)
    yield office
    office.mediator.close(5)


@pytest.fixture
def run(office):
    """Run a command; its exit status, and what it printed."""

    def run(*arguments, app="an_office:mediator", group="office"):
        named = ["--group", group] if group else []
        result = CliRunner().invoke(main, ["--app", app, *map(str, arguments), *named])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return result.exit_code, result.output

    return run


def ids(*numbers):
    return [f"id-{number}" for number in numbers]


# Dead letters are looked at


def test_dead_letters_are_listed_and_stay(office, run):
    """
    The oldest ones, or the newest ones; by reason; without their bodies.
    """
    office.bury(1, 2, 3)
    office.bury(4, reason="PermanentError: \x1b[31mred")
    listed = json.loads(run("consumer", "dead", "list", "--json")[1])
    _, text = run("consumer", "dead", "list")

    assert ids(1, 2, 3, 4) == [letter["id"] for letter in listed["dead"]]
    assert ("meeting.joined", "m", 6, 4) == (
        *(listed["dead"][0][key] for key in ("type", "key", "attempts")), listed["total"],
    )  # fmt: skip
    assert "body" not in listed["dead"][0]
    assert "\x1b" not in text
    assert ids(1) == [
        each["id"] for each in json.loads(run("consumer", "dead", "list", "--limit", 1, "--json")[1])["dead"]
    ]
    newest = json.loads(run("consumer", "dead", "list", "--newest", "--limit", 2, "--json")[1])["dead"]
    assert ids(3, 4) == [each["id"] for each in newest]
    chosen = json.loads(run("consumer", "dead", "list", "--reason", "ValueError: no meeting …", "--json")[1])["dead"]
    assert ids(1, 2, 3) == [each["id"] for each in chosen]
    assert ids(1, 2, 3, 4) == office.dead()


def test_dead_letters_are_counted_by_reason(office, run):
    """
    The most frequent one first.
    """
    office.bury(1, reason="b")
    office.bury(2, 3)
    _, printed = run("consumer", "dead", "list", "--by-reason", "--json")

    assert [{"count": 2, "reason": "ValueError: no meeting …"}, {"count": 1, "reason": "b"}] == json.loads(printed)[
        "dead_by_reason"
    ]
    assert 2 == run("consumer", "dead", "list", "--by-reason", "--newest")[0]


def test_a_dead_letter_is_shown(office, run):
    """
    With its headers, and its body only where that is asked for.
    """
    office.bury(1, 2, handlers="deliver")
    code, text = run("consumer", "dead", "show", "id-2")
    facts = json.loads(run("consumer", "dead", "show", "id-2", "--body", "--json")[1])

    assert 0 == code
    assert "attributes.source" in text
    assert "number" not in text
    assert ('{"meeting": "m", "number": 2}', "deliver") == (facts["body"], facts["handlers"])
    assert (1, "Error: no dead letter has the id id-7\n") == run("consumer", "dead", "show", "id-7")


@pytest.mark.parametrize(
    ("noted", "told"), [("3", 3), ("0", 0), ("many", "many"), ("\u0663", "\u0663"), ("9" * 16, "9" * 16), ("", "")]
)
def test_counts_are_numbers_for_programs(office, run, noted, told):
    """
    What somebody else has written there is no count, and stays as it is.
    """
    office.bury(1, attempts=noted, replays=noted)
    (listed,) = json.loads(run("consumer", "dead", "list", "--json")[1])["dead"]
    shown = json.loads(run("consumer", "dead", "show", "id-1", "--json")[1])

    assert 4 * [told] == [letter[name] for letter in (listed, shown) for name in ("attempts", "replays")]
    assert 0 == run("consumer", "dead", "list")[0]


def test_a_letter_without_an_id_is_named_by_what_it_consists_of(office, run):
    """
    Anybody may have sent it.
    """
    office.broker.add_dead_letters([IncomingMessage("meetings", b"\xff\x00", notes={"reason": "bad"})], office.group)
    (letter,) = json.loads(run("consumer", "dead", "list", "--json")[1])["dead"]

    assert "\\xff" in run("consumer", "dead", "show", letter["id"], "--body")[1]
    assert (0, "1 purged\n") == run("consumer", "dead", "purge", letter["id"], "--yes")


@pytest.mark.parametrize("command", ["replay", "purge"])
@pytest.mark.parametrize("options", [["--yes"], ["--dry-run"]])
def test_a_letter_that_is_not_there_is_told_of(office, run, command, options):
    """
    Its id may be misspelled.
    """
    office.bury(1, 2)
    code, printed = run("consumer", "dead", command, "id-9", *options)

    assert 1 == code
    assert printed.endswith("Error: no dead letter has the id id-9\n")
    assert ids(1, 2) == office.dead()


def test_no_letter_is_deleted_where_nobody_can_be_asked(office, run):
    """
    As in a script whose author expected a question: only `--yes` means it, also where nothing is dead yet.
    """
    assert 2 == run("consumer", "dead", "purge", "--all")[0]
    office.bury(1, 2)
    for chosen in (["--all"], ["id-1"], ["--reason", "a"]):
        code, text = run("consumer", "dead", "purge", *chosen)
        assert (2, True) == (code, "add --yes" in text)

    assert ids(1, 2) == office.dead()
    assert (0, "2 would be purged\n") == run("consumer", "dead", "purge", "--all", "--dry-run")
    assert (0, "2 purged\n") == run("consumer", "dead", "purge", "--all", "--yes")


@pytest.mark.parametrize("command", [["replay"], ["replay", "--dry-run"], ["purge", "--yes"]])
def test_a_reason_that_chooses_nothing_is_told_how_it_is_written(office, run, command):
    """
    A part of it is none; where nothing is dead there is nothing to copy.
    """
    words = "copy it from `main consumer dead list --by-reason --json | jq -r '.dead_by_reason[].reason'`"
    assert words not in run("consumer", "dead", *command, "--reason", "ValueError")[1]
    office.bury(1)
    code, text = run("consumer", "dead", *command, "--reason", "ValueError")

    assert (0, True) == (code, words in text)
    assert ids(1) == office.dead()
    assert words not in run("consumer", "dead", *command, "--reason", "ValueError: no meeting …")[1]


# Dead letters go back


def test_dead_letters_are_replayed_with_their_attempts_forgotten(office, run):
    """
    To their group alone; how often that was is counted.
    """
    other = attrs.evolve(office.group, name="other")
    office.broker.subscribe(other).close()
    office.bury(1, 2)
    assert (0, "2 would be replayed\n") == run("consumer", "dead", "replay", "--all", "--dry-run")
    assert ids(1, 2) == office.dead()
    code, printed = run("consumer", "dead", "replay", "--all", "--json")
    messages = office.waiting()

    assert (0, {"dead": 2, "replayed": 2, "put_back": 0, "interrupted": False}) == (code, json.loads(printed))
    assert [] == office.dead()
    assert ids(1, 2) == [id_of(message) for message in messages]
    assert {"reason", "at", "replays"} == messages[0].notes.keys()
    assert "1" == messages[0].notes["replays"]
    assert 0 == sum(office.broker.backlog(other).waiting.values())


def test_a_replay_after_a_replay_is_counted(office, run):
    """
    Whatever somebody has written there.
    """
    office.bury(1, replays="3")
    office.bury(2, replays="many")
    run("consumer", "dead", "replay", "--all")

    assert ["4", "1"] == [message.notes["replays"] for message in office.waiting()]


def test_some_are_chosen_and_the_others_stay(office, run):
    """
    By id, by reason, and so many at most; those between them go to the end.
    """
    office.bury(1, 2, 3, reason="a")
    office.bury(4, 5, reason="b")

    assert (0, "1 replayed\n") == run("consumer", "dead", "replay", "id-2")
    assert ids(3, 4, 5, 1) == office.dead()
    assert (0, "1 replayed\n") == run("consumer", "dead", "replay", "--reason", "b", "--limit", 1, "--rate", 1000)
    assert ids(5, 1, 3) == office.dead()
    assert Counter(ids(1, 3, 5)) == Counter(office.dead())
    assert (0, "2 purged\n") == run("consumer", "dead", "purge", "--reason", "a", "--yes")
    assert ids(5) == office.dead()
    assert ids(2, 4) == [id_of(message) for message in office.waiting()]


def test_what_was_replayed_is_handled_once_more(office, run):
    """
    By the handlers of its group.
    """
    office.bury(*range(5))
    run("consumer", "dead", "replay", "--all")
    with Consumer(office.mediator, "office"):
        eventually(lambda: len(office.seen) == 5)

    assert list(range(5)) == office.seen


def test_it_ends_although_what_it_puts_back_is_there_again(office, run):
    """
    It looks at as many as were there at first; many more than are in hand at a time.
    """
    office.bury(*range(3 * BATCH), reason="a")
    office.bury(*range(3 * BATCH, 3 * BATCH + 7), reason="b")
    facts = json.loads(run("consumer", "dead", "replay", "--reason", "b", "--json")[1])

    assert (3 * BATCH + 7, 7) == (facts["dead"], facts["replayed"])
    assert ids(*range(3 * BATCH)) == sorted(office.dead(), key=lambda text: int(text[3:]))
    assert 7 == len(office.waiting())


def test_few_are_in_hand_at_a_time(office, monkeypatch):
    """
    However many are not chosen: brokers hand out no more than a reader asks for.
    """
    office.bury(*range(5 * BATCH), reason="a")
    opened, held = [], []
    read = office.broker.read_dead_letters

    def read_and_remember(group):
        opened.append((group, read(group)))
        return opened[-1][1]

    monkeypatch.setattr(office.broker, "read_dead_letters", read_and_remember)
    look = lambda seconds: held.append(len(opened[0][1]._unsettled))  # noqa: E731
    list(DeadLetterScan(office.broker, office.group, DeadLetterFilter(reason="b"), print, is_cancelled=look))

    assert BATCH > max(held) > 1
    assert opened[0][0].prefetch >= BATCH


class Dies(BaseException):
    """What a process may be ended by."""


@pytest.mark.parametrize("moment", range(32))
def test_nothing_is_lost_where_it_is_ended_in_between(office, moment, monkeypatch):
    """
    Whenever: each letter is dead still, or back, or both.
    """
    office.bury(*range(10), reason="a")
    office.bury(10, 11, 12, 13, reason="b")
    left = iter(range(moment))
    broker = office.broker

    def die():
        if next(left, None) is None:
            raise Dies

    def dying(method):
        def call(*arguments, **options):
            die()
            method(*arguments, **options)
            die()

        return call

    monkeypatch.setattr(broker, "defer", dying(broker.defer))
    monkeypatch.setattr(broker, "add_dead_letters", dying(broker.add_dead_letters))
    handle = lambda messages: office.broker.defer(messages, office.group, after=0)  # noqa: E731
    scan = DeadLetterScan(
        office.broker, office.group, DeadLetterFilter(reason="b"), handle, rate=1.0, is_cancelled=lambda _: die()
    )  # fmt: skip
    with pytest.raises(Dies):
        list(scan)

    assert set(ids(*range(14))) == {*office.dead(), *(id_of(message) for message in office.waiting())}


def test_ctrl_c_ends_it_between_two_letters(office, run, monkeypatch):
    """
    With what was replayed until then, and status 130.
    """
    office.bury(*range(20))
    defer = office.broker.defer

    def pressing(*arguments, **options):
        defer(*arguments, **options)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(office.broker, "defer", pressing)
    code, text = run("consumer", "dead", "replay", "--all", "--rate", 5)

    assert (130, "5 replayed, then interrupted\n") == (code, text)
    assert ids(*range(5, 20)) == office.dead()
    assert ids(*range(5)) == [id_of(message) for message in office.waiting()]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "choose what to"),
        (["--all", "--reason", "a"], "--all cannot be combined with arguments or filters"),
        (["--all", "--rate", "0"], "0.0 is not in the range"),
        (["--all", "--rate", "nan"], "'nan' is not a number"),
        (["--all", "--rate", "inf"], "inf is not in the range"),
        (["--all", "--rate", "1e-300"], "1e-300 is not in the range"),
    ],
)
def test_what_to_replay_is_said(run, options, words):
    """
    Nothing is chosen by chance.
    """
    code, text = run("consumer", "dead", "replay", *options)

    assert 2 == code
    assert words in text


# What waits, and what is there


def test_the_lag_is_told(office, run):
    """
    With a status for alarms.
    """
    office.bury(1)
    for number in range(3):
        office.mediator.publish(Joined("m", number))
    code, text = run("consumer", "lag")

    assert 0 == code
    assert "office" in text
    assert {
        "group": "office",
        "waiting": 3,
        "delayed": 0,
        "dead": 1,
        "sources": {"meetings": 3},
        "exceeded": ["waiting"],
    } == (json.loads(run("consumer", "lag", "--json", "--max-waiting", 2)[1]))
    assert (1, 0) == (run("consumer", "lag", "--max-waiting", 2)[0], run("consumer", "lag", "--max-waiting", 3)[0])


def test_the_topology_is_planned_and_made(office, run):
    """
    Looking makes nothing; where something is missing it has status 1.
    """
    code, text = run("topology", "plan", group="new")
    assert 1 == code
    assert "missing" in text
    assert 1 == run("topology", "plan", group="new")[0]
    code, text = run("topology", "apply", group="new")
    assert 0 == code
    assert "missing" not in text
    assert "there" == json.loads(run("topology", "plan", "--json", group="new")[1])["items"][0]["state"]


def test_what_is_different_is_explained(office, run, monkeypatch):
    """
    With what to do about it.
    """
    item = TopologyItem("queue", "office", "durable", "different", "it is no quorum queue: delete it when it is empty")
    monkeypatch.setattr(office.broker, "inspect_topology", lambda group: [item])
    code, text = run("topology", "plan")

    assert 1 == code
    assert "queue office: it is no quorum queue: delete it when it is empty" in text


def test_the_options_of_a_group_reach_the_broker(office, run, monkeypatch):
    """
    Its topics, delays and order are what its places depend on.
    """
    seen = []
    monkeypatch.setattr(office.broker, "inspect_topology", lambda group: seen.append(group) or [])
    run(
        "topology",
        "plan",
        "--topic",
        "a",
        "--topic",
        "b",
        "--retry-delays",
        "0.1,5s,1m",
        "--inline-limit",
        "1s",
        "--unordered",
    )
    run("topology", "plan")

    assert [(("a", "b"), (5.0, 60.0), False), (("meetings",), (10.0, 60.0, 600.0), True)] == [
        (group.topics, group.delays, group.ordered) for group in seen
    ]


def test_a_consumer_of_the_application_says_which_group_it_is(office, run):
    """
    And options that contradict it are errors.
    """
    office.bury(1)

    assert 1 == json.loads(run("consumer", "lag", "--json", app="an_office:consumer", group=None)[1])["dead"]
    assert 0 == run("consumer", "lag", app="an_office:consumer", group="office")[0]
    code, text = run("consumer", "lag", "--topic", "x", app="an_office:consumer", group="other")
    assert 2 == code
    assert "leave out --group, --topic, or name a mediator" in text


def test_a_group_of_the_environment_does_not_contradict_a_consumer(office, run, monkeypatch):
    """
    Whoever looks at one group is not to be answered for another; an option that says it is what counts.
    """
    for name, expected in {"office": 0, "other": 2}.items():
        monkeypatch.setenv("CQRS_SYNC_GROUP", name)
        for command in (["lag"], ["run", "--stop-after", "0s"]):
            code, text = run("consumer", *command, app="an_office:consumer", group=None)
            assert expected == code, text
    assert "CQRS_SYNC_GROUP in the environment says that the group is 'other', but the application names" in text
    assert "a Consumer of the group 'office'" in text
    assert 0 == run("consumer", "lag", app="an_office:consumer", group="office")[0]


def test_the_environment_says_which_group_it_is(office, run, monkeypatch):
    """
    Where no option does.
    """
    assert (2, "Error: name the group: --group NAME, or CQRS_SYNC_GROUP in the environment\n") == run(
        "consumer", "lag", group=None
    )
    monkeypatch.setenv("CQRS_SYNC_GROUP", "office")

    assert 0 == run("consumer", "lag", group=None)[0]


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["lag"], 0),
        (["dead", "list"], 0),
        (["dead", "show", "id-1"], 1),
        (["dead", "replay", "--all"], 0),
        (["dead", "purge", "--all", "--dry-run"], 0),
    ],
)
def test_a_group_that_is_unknown_is_told_of(office, run, command, status):
    """
    Nobody takes it for one with nothing to do, as where its name is mistyped; one that is known is not doubted.
    """
    words = "the broker has no queue or topic of the group 'offices'"
    code, text = run("consumer", *command, group="offices")
    assert (status, True) == (code, words in text)

    code, text = run("consumer", *command)
    assert (status, False) == (code, "the broker has no queue" in text)


def test_what_is_told_of_an_unknown_group_is_no_part_of_the_answer(office, monkeypatch):
    """
    Programs read standard output.
    """
    result = CliRunner().invoke(
        main, ["consumer", "lag", "--json", "--app", "an_office:mediator", "--group", "offices"]
    )

    assert ("offices", 0) == (json.loads(result.stdout)["group"], result.exit_code)
    assert "the broker has no queue" in result.stderr


@pytest.mark.parametrize("command", [["lag"], ["dead", "list"], ["dead", "replay", "--all"]])
def test_ctrl_c_ends_a_question_with_a_status_of_its_own(office, run, monkeypatch, command):
    """
    As while a broker does not answer: 1 would mean that something is not well.
    """

    def interrupted(group):
        raise KeyboardInterrupt

    monkeypatch.setattr(office.broker, "backlog", interrupted)

    assert (130, "Error: interrupted\n") == run("consumer", *command)


def test_a_broker_that_cannot_be_reached_is_told_in_a_line(office, run, monkeypatch):
    """
    With a status of its own.
    """

    def unreachable(group):
        raise BrokerUnavailable("connection refused")

    monkeypatch.setattr(office.broker, "backlog", unreachable)
    code, text = run("consumer", "dead", "replay", "--all")

    assert (3, "Error: the broker cannot be reached, or refused: connection refused\n") == (code, text)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--max-messages", 3], 3),
        (["--max-messages", 3, "--prefetch", 50], 50),
        (["--max-messages", 1000], 200),
        ([], 200),
    ],
)
def test_whoever_is_to_end_soon_has_little_in_hand(run, monkeypatch, options, expected):
    """
    What it gives back at its end counts as delivered, and who is delivered too often without an end is given up.
    """
    made = []

    class Process:
        def __init__(self, consumer, *_):
            made.append(consumer.group.prefetch)

        def run(self):
            return 0

    monkeypatch.setattr("cqrs_sync.cli.consumer.ConsumerWorker", Process)

    assert 0 == run("consumer", "run", *options)[0]
    assert [expected] == made
