"""Promises about the demo: it adds up or says what does not, is readable anywhere, and ends clean."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import uuid
from urllib.parse import urlsplit

import attrs
import pytest
from rich.console import Console, ConsoleDimensions

import cqrs_sync as cqrs
from cqrs_sync.demo import directory, meetings, picture, world
from cqrs_sync.demo.brokers import address_of, open_broker
from cqrs_sync.demo.command import perform
from cqrs_sync.demo.ledger import HandlerRuns, Journey, Snapshot
from cqrs_sync.demo.playing import Outcome, Plan
from cqrs_sync.demo.summary import add_up
from cqrs_sync.demo.wiring import services_of_meetings
from cqrs_sync.errors import BrokerUnavailable, PublishFailed
from cqrs_sync.memory import MemoryBroker
from cqrs_sync.testing.contracts.broker import receive
from tests.servers import free_port
from tests.servers.proxy import TcpProxy
from tests.source import ROOT

ADDS_UP = "It adds up: nothing lost, nothing doubled."
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def run(*arguments, program=("-m", "cqrs_sync"), timeout=60):
    """Run a program of this library as users do, with warnings as errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", *program, *arguments],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def sums_of(output):
    """Return the lines of the summary, by their titles."""
    found = re.findall(r"^ (ok|no) (\w+(?: model)?) +(.*)$", output, re.MULTILINE)
    return {title: (mark, line) for mark, title, line in found}


# It adds up


@pytest.mark.parametrize("pool", [0, 1, 2, 16])
def test_everything_adds_up_on_any_pool(pool):
    """
    The demo ends with a summary that adds up, and with status 0, on no pool and on small and large ones.
    """
    done = run("demo", "--events", "60", "--pool", str(pool))

    assert (0, "") == (done.returncode, done.stderr)
    assert {
        "commands": ("ok", "60 sent = 60 responses"),
        "handlers": ("ok", "300 due (5 x 60) = 300 runs"),
        "failures": ("ok", "3 of TextTheUser = 3 phones switched off"),
        "messages": ("ok", "60 raised = 60 confirmed = 60 consumed, 0 lost, 0 doubled"),
        "read model": ("ok", "60 joined = 60 listed, 0 lost, 0 doubled"),
    } == sums_of(done.stdout)
    assert ADDS_UP in done.stdout


def test_one_event_is_enough():
    """
    A single event is played as well, with one sender and a handler that fails.
    """
    done = run("demo", "--events", "1", "--senders", "1")

    assert 0 == done.returncode, done.stdout + done.stderr
    assert ("ok", "1 of TextTheUser = 1 phones switched off") == sums_of(done.stdout)["failures"]


def test_the_example_needs_nobody_who_watches():
    """
    The two services of the example work as they stand, wired by hand in a few lines.
    """
    services, broker = services_of_meetings(world.Meetings(), world.Phones()), MemoryBroker()
    services.register(world.Directory, instance=world.Directory())
    front = cqrs.bootstrap(meetings.requests, meetings.events, container=services, broker=broker, threads=2)
    back = cqrs.bootstrap(directory.requests, directory.events, container=services, threads=cqrs.SameThread())
    with front, back, broker.subscribe("meetings", group="directory") as deliveries:
        answers = [front.send(meetings.JoinMeeting(user, "standup")) for user in ("ann", "bob")]
        for _ in answers:
            back.events.receive(deliveries.receive(timeout=1).message)

        assert [1, 2] == answers
        assert ("ann", "bob") == back.send(directory.ListParticipants("standup"))
        assert ["ann joined standup", "bob joined standup"] == services.resolve(world.AuditTrail).lines


@pytest.mark.broker
def test_rabbitmq_confirms_and_delivers_everything(rabbitmq_url):
    """
    1000 notification events are confirmed by RabbitMQ and consumed: none lost, none doubled.
    """
    done = run("demo", "--broker", rabbitmq_url, "--events", "1000")

    assert 0 == done.returncode, done.stdout + done.stderr
    assert ADDS_UP in done.stdout
    assert ("ok", "1000 raised = 1000 confirmed = 1000 consumed, 0 lost, 0 doubled") == sums_of(done.stdout)["messages"]


@pytest.mark.broker
def test_a_topic_can_be_named(rabbitmq_url):
    """
    Where a broker makes no topics, the demo plays on one that exists.
    """
    topic = f"named-{uuid.uuid4().hex[:8]}"
    with (
        contextlib.closing(open_broker(rabbitmq_url)) as broker,
        broker.subscribe(topic, group=f"demo-{topic}") as deliveries,
    ):
        done = run("demo", "--broker", rabbitmq_url, "--events", "3", "--topic", topic)

        assert 0 == done.returncode, done.stdout + done.stderr
        assert [topic] * 3 == [delivery.message.topic for delivery in receive(deliveries, 3, timeout=10)]


@pytest.mark.broker
def test_rabbitmq_may_go_and_come_back(rabbitmq_url):
    """
    Where the path to RabbitMQ is cut for a moment, everything is confirmed, and nothing is lost.
    """
    host, port = urlsplit(rabbitmq_url).hostname, urlsplit(rabbitmq_url).port or 5672
    with TcpProxy(host, port) as proxy:
        url = rabbitmq_url.replace(address_of(rabbitmq_url).partition("://")[2], f"127.0.0.1:{proxy.port}")
        child = subprocess.Popen(
            [sys.executable, "-m", "cqrs_sync", "demo", "--broker", url, "--events", "600", "--plain"],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            assert any("commands answered" in line for line in child.stdout), "it ended early"
            assert proxy.cut() > 0
            proxy.restore()
            output, _ = child.communicate(timeout=60)
        finally:
            child.kill()
            child.wait()

    # What was under way is sent again: it may come twice, and then the demo says so.
    assert sums_of(output)["messages"][1].startswith("600 raised = 600 confirmed"), output
    assert " 0 lost, " in sums_of(output)["messages"][1]
    assert " 0 lost, " in sums_of(output)["read model"][1]


@pytest.mark.broker
def test_kafka_confirms_and_delivers_everything(kafka_servers):
    """
    1000 notification events are confirmed by Kafka and consumed: none lost, none doubled.
    """
    done = run("demo", "--broker", f"kafka://{kafka_servers}", "--events", "1000")

    assert 0 == done.returncode, done.stdout + done.stderr
    assert ADDS_UP in done.stdout
    assert ("ok", "1000 raised = 1000 confirmed = 1000 consumed, 0 lost, 0 doubled") == sums_of(done.stdout)["messages"]


# It does not


class Losing(MemoryBroker):
    """Confirms the tenth message, and loses it."""

    def publish(self, messages, /, *, timeout=None):
        if len(self.published) == 9:
            self.published.extend(messages)
        else:
            super().publish(messages)


class Doubling(MemoryBroker):
    """Delivers the tenth message twice."""

    def publish(self, messages, /, *, timeout=None):
        super().publish(messages)
        if len(self.published) == 10:
            super().publish(messages)


class Forging(MemoryBroker):
    """Delivers the ninth body with the tenth message."""

    def publish(self, messages, /, *, timeout=None):
        if len(self.published) == 9:
            messages = [attrs.evolve(message, body=self.published[-1].body) for message in messages]
        super().publish(messages)


class Garbling(MemoryBroker):
    """Delivers nonsense after a while."""

    def publish(self, messages, /, *, timeout=None):
        if len(self.published) == 9:
            messages = [attrs.evolve(message, body=b"non sense") for message in messages]
        super().publish(messages)


class Dying(MemoryBroker):
    """Is gone after ten messages."""

    def publish(self, messages, /, *, timeout=None):
        if len(self.published) >= 10:
            raise PublishFailed([(message, BrokerUnavailable("gone for good")) for message in messages])
        super().publish(messages)


class Deaf(MemoryBroker):
    """Takes everything in and delivers nothing after a while."""

    def subscribe(self, *topics, group):
        subscription = super().subscribe(*topics, group=group)
        receive, received = subscription.receive, []

        def receive_ten(timeout):
            if len(received) == 10:
                raise BrokerUnavailable("gone for good")
            delivery = receive(timeout)
            received.extend([delivery] if delivery else [])
            return delivery

        subscription.receive = receive_ten
        return subscription


def sabotaged(broker, events=30, **options):
    """Play with a broker that does wrong; the exit status and what was shown."""
    console = Console(file=io.StringIO(), width=100, color_system=None)
    status = perform(Plan(events=events, senders=1, patience=0.3, **options), broker, "sabotaged", console=console)
    return status, console.file.getvalue()


@pytest.mark.parametrize(
    ("broker", "wrong", "words"),
    [
        (
            Losing,
            ["messages", "read model"],
            ["= 30 confirmed != 29 consumed, 1 lost, 0 doubled", "lost: user-0010 in meeting-9"],
        ),
        (
            Doubling,
            ["messages", "read model"],
            ["!= 31 consumed, 0 lost, 1 doubled", "doubled: user-0010 in meeting-9"],
        ),
        (Forging, ["read model"], ["30 joined = 30 listed, 1 lost, 1 doubled", "lost: user-0010 in meeting-9"]),
        (
            Dying,
            ["commands", "handlers", "failures", "messages", "read model"],
            ["gone for good", "19 of 30 commands", "11 raised != 10 confirmed = 10 consumed"],
        ),
        (Deaf, ["messages", "read model"], ["30 raised = 30 confirmed != 10 consumed, 20 lost, 0 doubled"]),
        (Garbling, ["failures", "messages", "read model"], ["the consumer stopped: the body is not JSON"]),
    ],
)
def test_what_goes_wrong_is_named(broker, wrong, words):
    """
    A message that is lost, doubled or forged makes the sum wrong: status 1, and it says what is missing.
    """
    status, shown = sabotaged(broker())

    assert (1, "It does not add up.") == (status, shown.splitlines()[-1].strip())
    assert set(wrong) <= {title for title, (mark, _) in sums_of(shown).items() if mark == "no"}
    assert [] == [each for each in words if each not in shown]


def test_a_lost_message_ends_the_program_with_a_status():
    """
    A shell sees by the exit status that a message was lost.
    """
    program = (
        "from rich.console import Console\n"
        "from cqrs_sync.demo.command import perform\n"
        "from cqrs_sync.demo.playing import Plan\n"
        "from tests.integrations.test_demo import Losing\n"
        "raise SystemExit(perform(Plan(events=30, patience=0.3), Losing(), 'sabotaged', console=Console()))\n"
    )

    done = run(program=("-c", program))

    assert (1, "") == (done.returncode, done.stderr)
    assert "no" == sums_of(done.stdout)["messages"][0]


GOOD = Snapshot(
    sent=2, answered=2, raised=2, confirmed=2, consumed=2, failed=1,
    handlers={name: HandlerRuns(name, runs=2) for name in picture.HANDLERS},
)  # fmt: skip
THERE = {"meeting-0": ["user-0001"], "meeting-1": ["user-0002"]}
FINE = Outcome(Plan(events=2), GOOD, lost=[], doubled=[], joined=THERE, listed=THERE)
ONE_RUN = {**GOOD.handlers, "KeepAuditTrail": HandlerRuns("KeepAuditTrail", runs=1)}


@pytest.mark.parametrize(
    ("change", "title"),
    [
        ({"sent": 1, "answered": 1}, "commands"),
        ({"answered": 1}, "commands"),
        ({"handlers": ONE_RUN}, "handlers"),
        ({"failed": 0}, "failures"),
        ({"failed": 2}, "failures"),
        ({"problems": ("something else",)}, "failures"),
        ({"raised": 1}, "messages"),
        ({"confirmed": 1}, "messages"),
        ({"consumed": 3}, "messages"),
        ({"lost": ["1"]}, "messages"),
        ({"doubled": ["1"]}, "messages"),
        ({"listed": {"meeting-0": ["user-0001"]}}, "read model"),
        ({"listed": {**THERE, "meeting-0": ["user-0001", "user-0001"]}}, "read model"),
        ({"joined": {"meeting-0": ["user-0001"]}, "listed": {"meeting-0": ["user-0001"]}}, "read model"),
    ],
)
def test_every_count_is_held_against_another(change, title):
    """
    Any number that is off makes its line of the summary wrong, and no other line.
    """
    counts = {name: value for name, value in change.items() if hasattr(GOOD, name)}
    rest = {name: value for name, value in change.items() if name not in counts}
    outcome = attrs.evolve(FINE, snapshot=attrs.evolve(GOOD, **counts), **rest)

    assert [] == [check.title for check in add_up(FINE) if check.wrong]
    assert [title] == [check.title for check in add_up(outcome) if check.wrong]


# It can be read


def in_terminal(columns, lines, *arguments, program=("-m", "cqrs_sync")):
    """Run in a terminal of this size; the exit status and everything that was drawn."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    child = subprocess.Popen(
        [sys.executable, "-W", "error", *program, *arguments],
        cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(lines)},
    )  # fmt: skip
    os.close(theirs)
    try:
        drawn = _read_all(ours, until=time.monotonic() + 30)
        return child.wait(10), drawn
    finally:
        child.kill()
        child.wait()
        os.close(ours)


def _read_all(descriptor, until):
    parts = []
    while select.select([descriptor], [], [], max(0.0, until - time.monotonic()))[0]:
        try:
            part = os.read(descriptor, 65536)
        except OSError:
            # Linux says so where the other end is closed.
            part = b""
        if not part:
            return b"".join(parts).decode()
        parts.append(part)
    raise AssertionError(f"it went on: {b''.join(parts)[-2000:]!r}")


@pytest.mark.parametrize(("columns", "lines"), [(20, 8), (40, 24), (80, 24), (120, 40), (200, 60)])
def test_the_picture_is_live_in_terminals_of_any_size(columns, lines):
    """
    In a terminal the demo draws, keeps within its width, gives the cursor back and ends with the summary.
    """
    status, drawn = in_terminal(columns, lines, "demo", "--events", "150")
    text = _CONTROL.sub("", drawn)

    assert 0 == status, text
    assert "\x1b[?25l" in drawn, "nothing was drawn live"
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")
    assert [] == [line for line in re.split(r"[\r\n]+", text) if len(line) > columns]
    assert "It adds up" in " ".join(text.split())


def test_a_terminal_can_have_the_log():
    """
    With `--plain`, and in a terminal that cannot move its cursor, nothing is drawn over.
    """
    status, drawn = in_terminal(80, 24, "demo", "--events", "30", "--plain")

    assert 0 == status
    assert None is _CONTROL.search(drawn)


@pytest.mark.parametrize(("columns", "lines"), [(20, 8), (40, 12), (40, 24), (80, 24), (120, 40), (300, 100)])
def test_a_picture_fits(columns, lines):
    """
    A picture is never higher or wider than the terminal, from nothing to everything there is to show.
    """
    many = [Journey(b'{"user_id": "user-123456", "meeting_id": "meeting-9"}', 0.0, 0.5)] * 50
    threads = [f"pool_{number}" for number in range(0, 64, 2)]
    runs = {name: HandlerRuns(name, 123456, 99, 123.4, 123.4, 1.0, threads) for name in picture.HANDLERS}
    counts = dict.fromkeys(["sent", "answered", "raised", "confirmed", "consumed", "failed"], 123456)
    full = Snapshot(elapsed=1234.5, **counts, last_failure="x" * 80, journeys=many, handlers=runs)
    for snapshot in (Snapshot(), full):
        console = Console(file=io.StringIO(), width=columns, height=lines, color_system=None)
        drawn = picture.live_picture(snapshot, Plan(123456), "amqp://h:1", ConsoleDimensions(columns, lines))
        console.print(drawn, crop=False)
        shown = console.file.getvalue().splitlines()

        assert min(columns, 112) >= max(len(line.rstrip()) for line in shown)
        assert max(lines, 14) >= len(shown)


def test_names_of_threads_are_short():
    """
    Threads are shown by their names' stem and the ranges of their numbers.
    """
    assert "consumer, pool 0-2,5, sender 0" == picture.threads(
        ["pool_0", "sender_0", "pool_5", "pool_1", "pool_2", "consumer"]
    )


def test_long_work_shows_its_progress():
    """
    A log tells once a second how far it is.
    """
    done = run("demo", "--events", "250", "--senders", "1", "--pool", "1")

    assert 0 == done.returncode, done.stdout + done.stderr
    assert (
        len(re.findall(r"^\d+ of 250 commands answered, \d+ confirmed, \d+ consumed", done.stdout, re.MULTILINE)) >= 2
    )


def test_nobody_else_writes_into_the_picture():
    """
    What the clients of brokers log is not shown: it would tear the picture.
    """
    program = "from cqrs_sync.__main__ import main\nmain(['demo', '--events', '3'], standalone_mode=False)\n"
    warns = "import atexit, logging; atexit.register(logging.getLogger('pika').error, 'a client complains')\n"

    done = run(program=("-c", warns + program))

    assert (0, "") == (done.returncode, done.stderr)


# It cannot begin


@pytest.mark.parametrize("url", ["amqp://user:hush-hush@127.0.0.1:{port}/", "kafka://127.0.0.1:{port}"])
def test_an_unreachable_broker_is_one_line(url):
    """
    Where the broker does not answer, one line says so, without a traceback or the password: status 2.
    """
    port = free_port()

    done = run("demo", "--broker", url.format(port=port))

    assert 2 == done.returncode
    assert 1 == len(done.stderr.splitlines()), done.stderr
    assert done.stderr.startswith(f"Error: {url.partition('://')[0]}://127.0.0.1:{port} cannot be used: ")
    assert "hush-hush" not in done.stdout + done.stderr


@pytest.mark.broker
def test_a_wrong_password_is_not_shown(rabbitmq_url):
    """
    Where RabbitMQ refuses the password, one line says so, and does not repeat it: status 2.
    """
    done = run("demo", "--broker", f"amqp://guest:hush-hush@{address_of(rabbitmq_url).partition('://')[2]}/")

    assert 2 == done.returncode
    assert 1 == len(done.stderr.splitlines()), done.stderr
    assert "refuses user and password" in done.stderr
    assert "hush-hush" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "url",
    ["nats://user:hush-hush@localhost", "amqp://user:4711/2@localhost", "kafka://user:hush-hush@", "memory:"],
)
def test_a_url_that_will_not_do_is_one_line(url):
    """
    A wrong URL is refused in one line, without the password: status 2.
    """
    done = run("demo", "--broker", url)

    assert (2, "") == (done.returncode, done.stdout)
    assert 1 == len(done.stderr.splitlines()), done.stderr
    assert done.stderr.startswith("Error: --broker: ")
    assert None is re.search("hush|4711", done.stderr)


WITHOUT = """
import runpy, sys
from importlib.abc import MetaPathFinder

missing = sys.argv.pop(1)

class NotInstalled(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"{name} is optional", name=name)

sys.meta_path.insert(0, NotInstalled())
runpy.run_module("cqrs_sync", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("missing", "extra", "broker"),
    [
        ("click", "cli", "memory"),
        ("rich", "cli", "memory"),
        ("pika", "rabbitmq", "amqp://localhost"),
        ("kafka", "kafka", "kafka://localhost:9092"),
    ],
)
def test_a_missing_extra_is_named(missing, extra, broker):
    """
    Where an optional dependency is not installed, one line says how to install it, and the status is not 0.
    """
    done = run(missing, "demo", "--broker", broker, program=("-c", WITHOUT))

    assert 0 != done.returncode
    assert 1 == len(done.stderr.splitlines()), done.stderr
    assert f"pip install 'cqrs-sync[{extra}]'" in done.stderr


@pytest.mark.parametrize("missing", ["pika", "kafka"])
def test_the_demo_needs_no_broker_client(missing):
    """
    With the embedded broker, no client of another one has to be installed.
    """
    done = run(missing, "demo", "--events", "5", program=("-c", WITHOUT))

    assert 0 == done.returncode, done.stderr


# It is interrupted

INTERRUPTIBLE = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)   # a shell's background jobs ignore it
runpy.run_module("cqrs_sync", run_name="__main__", alter_sys=True)
"""


def test_ctrl_c_ends_it_clean():
    """
    Ctrl-C ends the demo within seconds, without a traceback: status 130.
    """
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, "demo", "--events", "100000"],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert any("commands answered" in line for line in child.stdout), "it ended on its own"
        child.send_signal(signal.SIGINT)
        _, complaint = child.communicate(timeout=10)
    finally:
        child.kill()
        child.wait()

    assert 130 == child.returncode
    assert None is not re.fullmatch(r"Interrupted: \d+ commands were answered, .*\n", complaint), complaint
