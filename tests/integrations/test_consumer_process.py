"""Promises of `cqrs-sync consumer run` as a process: it ends in time, is replaced if it should be, tells its health."""

from __future__ import annotations

import fcntl
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
import urllib.error
import urllib.request

import attrs
import pytest

from cqrs_sync.broker import Group, IncomingMessage
from cqrs_sync.cli.dead_letter_scan import browse
from cqrs_sync.integrations.rabbitmq import RabbitMQBroker
from cqrs_sync.testing.contracts.broker import message
from tests.integrations.processes import environment
from tests.servers.rabbitmq import forget
from tests.waiting import eventually

APP = "tests.integrations.consumer_app:mediator"


@pytest.fixture
def consume(start_worker):
    """Start consumers of the group `post`."""

    def start(*arguments, app=APP, group="post", **variables):
        named = ["--group", group] if group else []
        return start_worker("consumer", "run", "--app", app, *named, *arguments, **variables)

    return start


def ask(url):
    """The status and the JSON that a URL answers with."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 -- our own process
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def unread(pipe):
    """How many bytes wait in a pipe."""
    return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))[0]


def numbers(lines, word):
    return [int(line.split()[1]) for line in lines if line.startswith(word)]


# It ends in time


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_has_begun_is_finished_and_nothing_else_is_begun(consume, gate, number):
    """
    Told to stop under load, it exits with 0.
    """
    consuming = consume("--concurrency", "2", LETTERS_COUNT="50", LETTERS_GATE=str(gate))
    begun = {consuming.line(), consuming.line()}
    consuming.send(number)
    consuming.logged(rf"{number.name}: stopping within 25 s, 2 handler\(s\) running")
    gate.unlink()

    assert 0 == consuming.status(), consuming.log()
    assert {line.replace("begun", "done") for line in begun} == set(consuming.rest())
    assert "stopped: 2 handled" in consuming.log()


def test_a_handler_that_hangs_is_named_with_its_stack_and_left(consume):
    """
    The process ends within its grace, with 1.
    """
    consuming = consume("--grace", "2", LETTERS_COUNT="1", LETTERS_FAULT="hangs")
    consuming.line()
    told = time.monotonic()
    consuming.send()

    assert 1 == consuming.status()
    assert 0.9 < time.monotonic() - told < 10
    assert re.search(r"message 'letter.written' '[0-9a-f-]+' was not finished in time, after \d", consuming.log())
    assert re.search(r"consumer_app\.py\", line \d+, in deliver", consuming.log())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(consume, tmp_path, number):
    """
    Whatever its grace, with what a shell calls the status of a program that the signal has ended.
    """
    health = tmp_path / "health"
    consuming = consume(
        "--grace", "10m", "--health-file", str(health), LETTERS_COUNT="1", LETTERS_FAULT="hangs"
    )  # fmt: skip
    consuming.line()
    consuming.send(number)
    consuming.logged("stopping within 600 s")
    assert consuming.process.poll() is None
    consuming.send(number)

    assert 128 + number == consuming.status()
    assert "second signal: exiting at once, 1 handler(s) running; the broker delivers their messages" in consuming.log()
    assert not health.exists()


def test_an_application_that_does_not_let_it_leave_is_left(consume):
    """
    Everything was settled: a thread of the application that never ends changes neither that nor the status.
    """
    consuming = consume("--grace", "2", LETTERS_COUNT="1", LETTERS_FAULT="stays")
    assert ["begun 0", "done 0"] == [consuming.line(), consuming.line()]
    consuming.send()

    assert 0 == consuming.status(10)
    consuming.logged("threads that block it: of-the-application")


def test_no_grace_is_enough_for_nothing(consume):
    """
    Where nothing runs, it exits with 0.
    """
    consuming = consume("--grace", "0s", "--json", LETTERS_SAYS="JSON")
    consuming.line()
    consuming.send()

    assert 0 == consuming.status(), consuming.log()


# It is replaced where it should be


def test_a_consumer_that_makes_no_progress_is_told_of_and_ends(consume, tmp_path):
    """
    With the stacks of its handlers, and status 1; its health file is gone before.
    """
    health = tmp_path / "health"
    consuming = consume(
        "--stall", "1", "--concurrency", "1", "--health-file", str(health), LETTERS_COUNT="2", LETTERS_FAULT="hangs"
    )  # fmt: skip
    consuming.line()

    assert 1 == consuming.status(15)
    assert not health.exists()
    assert re.search(
        r"the consumer is stuck: no message finished for \d+ s, 2 in flight: stopping within 3 s", consuming.log()
    )
    assert 1 == len(re.findall(r"consumer_app\.py\", line \d+, in deliver", consuming.log()))
    assert "cqrs-receiver" not in consuming.log()


def test_a_handler_that_hangs_is_told_of_while_others_make_progress(consume):
    """
    With its stack, in the log and as trouble; the process is alive and goes on.
    """
    consuming = consume(
        "--stall", "1", "--grace", "2", "--health-port", "0",
        LETTERS_COUNT="8000", LETTERS_FAULT="hangs-first,waits", LETTERS_SAYS="JSON",
    )  # fmt: skip
    url = consuming.logged(r"health: (http://127\.0\.0\.1:\d+)/live")[1]
    said = consuming.logged(
        r" WARNING cqrs_sync.workers.watchdogs message 'letter.written' '([0-9a-f-]+)' has been in handling for \d+ s "
        r"\(bound handlers: deliver\);"
    )
    consuming.logged(r"consumer_app\.py\", line \d+, in deliver")
    status, live = ask(f"{url}/live")

    assert (200, True, said[1]) == (status, live["alive"], live["oldest"]["id"])
    assert "1 handler(s) running for more than 1 s" == live["trouble"]
    assert "is stuck" not in consuming.log()
    consuming.send()
    assert 1 == consuming.status()


def test_a_process_that_was_frozen_has_all_its_time_again(consume):
    """
    With a message in hand it is alive when it goes on; one that hangs all the same is found out after that.
    """
    stall = 2.0
    consuming = consume("--stall", str(stall), "--health-port", "0", LETTERS_COUNT="1", LETTERS_FAULT="hangs")
    url = consuming.logged(r"health: (http://127\.0\.0\.1:\d+)/live")[1]
    consuming.line()
    consuming.send(signal.SIGSTOP)
    # It is to be frozen for longer than its patience.
    threading.Event().wait(stall * 1.5)
    consuming.send(signal.SIGCONT)
    thawed = time.monotonic()
    assert 200 == ask(f"{url}/live")[0]
    consuming.logged(r"the consumer is stuck: no message finished for \d+ s, 1 in flight")

    assert stall * 0.8 < time.monotonic() - thawed < stall + 15
    assert 1 == consuming.status()


def test_it_ends_after_some_messages(consume):
    """
    With status 0, and no message half done.
    """
    consuming = consume("--max-messages", "20", LETTERS_COUNT="2000", LETTERS_FAULT="waits")
    lines = consuming.rest()

    assert 0 == consuming.status(), consuming.log()
    assert 20 <= len(numbers(lines, "done")) < 500
    assert sorted(numbers(lines, "begun")) == sorted(numbers(lines, "done"))
    assert re.search(r"the limit of messages is reached: \d+: stopping", consuming.log())


def test_it_ends_where_it_takes_too_much_memory(consume):
    """
    Not before; with status 0.
    """
    consuming = consume("--max-memory", "512M", LETTERS_COUNT="200", LETTERS_FAULT="grows,waits")
    lines = consuming.rest()

    assert 0 == consuming.status(), consuming.log()
    assert 20 < len(numbers(lines, "done")) < 200
    assert re.search(r"the limit of memory is reached: \d{3} MiB: stopping", consuming.log())


def test_it_ends_when_its_time_is_over(consume):
    """
    With status 0.
    """
    consuming = consume("--stop-after", "0.5s")

    assert 0 == consuming.status()
    assert "0.5 s are over: stopping" in consuming.log()


# It says how it is


def test_reports_are_lines_of_json(consume):
    """
    Of what it has received and what became of it; the last one says that it has ended.
    """
    consuming = consume("--json", "--report-every", "0.1", LETTERS_COUNT="7", LETTERS_SAYS="JSON")
    eventually(lambda: json.loads(consuming.line())["handled"] == 7)
    consuming.send()
    last = json.loads(consuming.rest()[-1])

    assert 0 == consuming.status()
    assert {
        "at", "state", "alive", "ready", "trouble", "received", "handled", "delayed", "dead", "dropped", "in_flight",
        "running", "oldest", "per_second", "seconds",
    } == last.keys()  # fmt: skip
    kept = ("state", "received", "handled", "in_flight", "ready", "trouble")
    assert ("stopped", 7, 7, 0, False, "") == tuple(last[key] for key in kept)


def test_who_reads_nothing_keeps_it_from_nothing(consume):
    """
    A pipe that is full stops reports, and neither handlers nor the end.
    """
    consuming = consume("--json", "--report-every", "0.1", "--grace", "2", LETTERS_SAYS="JSON")
    pipe = consuming.process.stdout.fileno()
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
    eventually(lambda: unread(pipe) > 4096 - 400)
    consuming.send()

    assert 0 == consuming.status(), consuming.log()
    consuming.logged("stopped: 0 handled")


def test_its_health_is_told_over_http(consume, gate):
    """
    Alive as long as it makes progress, ready as long as it receives; with what it is at.
    """
    consuming = consume(
        "--health-port", "0", "--concurrency", "1", LETTERS_COUNT="3", LETTERS_GATE=str(gate)
    )  # fmt: skip
    url = consuming.logged(r"health: (http://127\.0\.0\.1:\d+)/live")[1]
    consuming.line()
    status, live = ask(f"{url}/live")
    ready = ask(f"{url}/ready?probe")[0]

    assert (200, 200) == (status, ready)
    assert (True, True, "receiving", 1) == (live["alive"], live["ready"], live["state"], live["running"])
    assert ("letter.written", ["deliver"]) == (live["oldest"]["type"], live["oldest"]["handlers"])
    assert 404 == ask(f"{url}/")[0]
    consuming.send()
    consuming.logged("stopping within")
    status, ending = ask(f"{url}/ready")
    assert (503, "stopping", True) == (status, ending["state"], ending["alive"])
    gate.unlink()
    assert 0 == consuming.status()


def test_clients_that_ask_nothing_keep_no_one_from_asking(consume):
    """
    Each has a second; what comes after the head of a question is not read.
    """
    consuming = consume("--health-port", "0")
    url = consuming.logged(r"health: (http://127\.0\.0\.1:\d+)/live")[1]
    address = ("127.0.0.1", int(url.rpartition(":")[2]))
    with socket.create_connection(address) as mute, socket.create_connection(address) as rude:
        rude.sendall(b"POST /live HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n" + b"x" * 1000)
        assert 200 == ask(f"{url}/live")[0]
        assert b"" == mute.recv(1)
        assert rude.recv(100).startswith(b"HTTP/1.1 405 ")
    consuming.send()

    assert 0 == consuming.status()


def test_its_health_is_told_in_a_file(consume, tmp_path):
    """
    It is there, whole, as long as the consumer is well.
    """
    health = tmp_path / "health"
    consuming = consume("--health-file", str(health))
    facts = json.loads(eventually(lambda: health.exists() and health.read_text()))
    first = health.stat().st_mtime_ns
    assert facts["alive"]
    eventually(lambda: health.stat().st_mtime_ns > first)
    # Its broker may take longer to answer than the file to be renewed.
    eventually(lambda: json.loads(health.read_text())["state"] == "receiving", timeout=20)
    consuming.send()

    assert 0 == consuming.status()
    assert not health.exists()
    assert [] == [path for path in tmp_path.iterdir() if path.name.startswith("health")]


# It says what is wrong


def test_a_consumer_of_the_application_is_consumed_with(consume):
    """
    Its options are those of the code.
    """
    consuming = consume(app="tests.integrations.consumer_app:consumer", group=None, LETTERS_COUNT="1")

    assert ["begun 0", "done 0"] == [consuming.line(), consuming.line()]
    consuming.send()
    assert 0 == consuming.status()


def test_the_group_may_be_in_the_environment(consume):
    """
    As the application may.
    """
    consuming = consume(group=None, CQRS_SYNC_GROUP="post", LETTERS_COUNT="1")
    assert "begun 0" == consuming.line()


@pytest.mark.parametrize(
    ("app", "options", "words"),
    [
        (APP, [], "name the group: --group NAME, or CQRS_SYNC_GROUP"),
        (APP, ["--group", " "], "a group needs a name"),
        (APP, ["--group", "post", "--inline-limit", "2m"], "inline_limit must be between 0 and 60 s"),
        (APP, ["--group", "post", "--retry-delays", "0.1;1"], "is not a duration"),
        (APP, ["--group", "post", "--on-unknown", "burn"], "'burn' is not one of"),
        (APP, ["--group", "post", "--max-memory", "much"], "is not a size"),
        (APP, ["--group", "post", "--max-memory", "1M"], "MiB before it receives anything, and should stop at 1 MiB"),
        (APP, ["--group", "post", "--stall", "0"], "--stall takes a duration above 0"),
        (APP, ["--group", "post", "--health-file", "no/where"], "cannot be written"),
        (APP, ["--group", "post", "--health-port", "80000"], "80000 is not in the range"),
        (APP, ["--group", "post", "--health-port", "0", "--health-host", "no.host.invalid"], "cannot be opened"),
        ("tests.integrations.consumer_app:nothing", ["--group", "post"], "this mediator has no broker"),
        ("tests.integrations.consumer_app:events", ["--group", "post"], "expected a Mediator or a Consumer"),
        (
            "tests.integrations.consumer_app:consumer",
            ["--group", "other", "--prefetch", "1"],
            "leave out --group, --prefetch, or name a mediator",
        ),
    ],
)  # fmt: skip
def test_wrong_calls_are_told_in_a_line(consume, app, options, words):
    """
    With status 2, and without a traceback.
    """
    consuming = consume(*options, app=app, group=None)

    assert 2 == consuming.status(), consuming.log()
    assert words in consuming.log()
    assert "Traceback" not in consuming.log()


def test_a_topic_that_no_bound_event_has_is_told_of(consume):
    """
    Once, with those that there are: it may be misspelled. It is no error, for events may come by other ways.
    """
    consuming = consume("--topic", "letters", "--topic", "leters", "--stop-after", "0.3s")

    assert 0 == consuming.status()
    assert "no event with a handler has the topic 'leters' (known topics: 'letters'): the group rec" in consuming.log()
    assert 1 == consuming.log().count("no event with a handler")


@pytest.mark.parametrize(("concurrency", "lines"), [("50", 1), ("4", 0)])
def test_more_at_a_time_than_there_are_threads_is_told_of(consume, concurrency, lines):
    """
    Once, with what would be needed: the mediator of this application has 4. The consumer itself says so.
    """
    consuming = consume("--concurrency", concurrency, "--stop-after", "0.3s")

    assert 0 == consuming.status()
    words = "concurrency is 50 but the mediator has 4 thread(s), so 4 message(s) are handled at a time: use "
    assert lines == consuming.log().count(words + "bootstrap(threads=50)")
    assert lines == consuming.log().count(" WARNING ")


def test_a_port_that_is_taken_is_told(consume):
    """
    With its number.
    """
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        consuming = consume("--health-port", str(port))

        assert 2 == consuming.status()
    assert f"the health port {port} of '127.0.0.1' cannot be opened" in consuming.log()


def test_a_broker_that_refuses_the_group_is_no_reason_to_wait(consume):
    """
    No waiting mends that: status 2, and one line says why.
    """
    consuming = consume(LETTERS_FAULT="refused")

    assert 2 == consuming.status()
    assert "consumer stopped by a configuration error: the queue of 'post' is diff" in consuming.log()
    assert "configuration error: stopping within 25 s" in consuming.log()
    assert (1, 1) == (consuming.log().count("is different"), consuming.log().count(" ERROR "))


# On RabbitMQ


@pytest.fixture
def post(rabbitmq_url, exchange):
    """A group on RabbitMQ, the environment of its consumers, and what publishes to it."""
    group = Group("post", ("letters",), delays=(10.0, 60.0, 600.0))
    broker = RabbitMQBroker(rabbitmq_url, exchange=exchange)
    broker.apply_topology(group)
    yield broker, group, {"LETTERS_BROKER": rabbitmq_url, "LETTERS_EXCHANGE": exchange}
    broker.close()
    forget(rabbitmq_url, exchange, group)


def letters(count):
    return [message("letters", b'{"street": "s%d", "number": %d}' % (n % 7, n), key=f"s{n % 7}") for n in range(count)]


@pytest.mark.broker
def test_signals_under_load_lose_nothing_and_double_nothing(consume, post):
    """
    Told to stop again and again, in the middle of work, it settles what it has begun: status 0 each time.
    """
    broker, group, variables = post
    typed = [attrs.evolve(each, attributes={**each.attributes, "type": "letter.written"}) for each in letters(400)]
    broker.publish(typed)
    done = []
    for _ in range(5):
        consuming = consume(LETTERS_FAULT="waits", **variables)
        done += [consuming.line(), consuming.line()]
        consuming.send()
        done += consuming.rest()
        assert 0 == consuming.status(), consuming.log()
    assert 0 < len(numbers(done, "done")) < 400
    last = consume("--max-messages", str(400 - len(numbers(done, "done"))), **variables)
    done += last.rest()

    assert 0 == last.status(), last.log()
    assert list(range(400)) == sorted(numbers(done, "done"))
    assert 0 == sum(broker.backlog(group).waiting.values())


@pytest.mark.broker
def test_dead_letters_are_dealt_with_on_a_broker_that_lasts(consume, post, tmp_path):
    """
    A process that replays is killed in the middle, again and again: nothing is lost.
    """
    broker, group, variables = post
    dead = [
        IncomingMessage(
            "letters", each.body, each.content_type, each.key,
            {**each.attributes, "type": "letter.written"}, {"reason": "a" if n % 2 else "b", "attempts": "6"},
        )
        for n, each in enumerate(letters(60))
    ]  # fmt: skip
    broker.add_dead_letters(dead, group)
    command = [
        sys.executable,
        "-m",
        "cqrs_sync",
        "consumer",
        "dead",
        "replay",
        "--app",
        APP,
        "--group",
        "post",
        "--reason",
        "b",
    ]
    for waiting in (1, 8, 15):
        with subprocess.Popen(
            [*command, "--rate", "20", "--yes"], cwd=tmp_path, env=environment(**variables), stdin=subprocess.DEVNULL
        ) as replaying:
            eventually(lambda least=waiting: sum(broker.backlog(group).waiting.values()) >= least)
            replaying.kill()
    odd = set(range(1, 60, 2))
    # What a process had in hand that was killed comes back when the broker has noticed.
    eventually(
        lambda: _replayed([*command, "--json"], tmp_path, variables) == 0 and _left(broker, group) == odd, timeout=40
    )
    consuming = consume(**variables)
    handled = set()
    while len(handled) < 30:
        handled |= set(numbers([consuming.line()], "done"))
    consuming.send()

    assert 0 == consuming.status()
    assert set(range(0, 60, 2)) == handled


def _replayed(command, directory, variables):
    done = subprocess.run(
        command, cwd=directory, env=environment(**variables), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert 0 == done.returncode, done.stderr
    return json.loads(done.stdout)["replayed"]


def _left(broker, group):
    return {json.loads(each.body)["number"] for each in browse(broker, group)}
