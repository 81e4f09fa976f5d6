"""Promises about the demo: it adds up or says what does not, it can be read anywhere, and it ends clean."""

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
from rich.console import Console

from cqrs_sync.broker import Group
from cqrs_sync.demo.command import DemoRun, address_of, broker_of, perform
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


def started(*arguments, program=("-m", "cqrs_sync")):
    """Start the same, and let the test read what it prints."""
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def sums_of(output):
    """Return the lines of the summary by their titles."""
    found = re.findall(r"^(ok|no) +(\w+(?: model)?) +(.*?) *$", output, re.MULTILINE)
    return {title: (mark, line) for mark, title, line in found}


# It adds up


@pytest.mark.parametrize(("events", "failed"), [(1, 0), (60, 2)])
def test_everything_adds_up(events, failed):
    done = run("demo", "--events", str(events))

    assert (0, "") == (done.returncode, done.stderr)
    assert {
        "commands": ("ok", f"{events} sent = {events} responses"),
        "handlers": ("ok", f"{3 * events} due = {3 * events} runs"),
        "failures": ("ok", f"{failed} of text_the_user = {failed} phones switched off"),
        "messages": ("ok", f"{events} raised = {events} confirmed = {events} consumed, 0 lost, 0 doubled"),
        "read model": ("ok", f"{events} joined = {events} listed, 0 lost, 0 doubled"),
    } == sums_of(done.stdout)
    assert ADDS_UP in done.stdout


@pytest.mark.broker
@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
def test_a_broker_confirms_and_delivers_everything(broker, request):
    url = request.getfixturevalue(f"{broker}_url" if broker == "rabbitmq" else "kafka_servers")

    done = run("demo", "--broker", url if broker == "rabbitmq" else f"kafka://{url}", "--events", "1000")

    assert 0 == done.returncode, done.stdout + done.stderr
    assert ADDS_UP in done.stdout
    assert ("ok", "1000 raised = 1000 confirmed = 1000 consumed, 0 lost, 0 doubled") == sums_of(done.stdout)["messages"]


@pytest.mark.broker
def test_a_topic_can_be_named(rabbitmq_url):
    topic = f"named-{uuid.uuid4().hex[:8]}"
    with (
        contextlib.closing(broker_of(rabbitmq_url)) as broker,
        broker.subscribe(Group(f"demo-{topic}", [topic])) as deliveries,
    ):
        done = run("demo", "--broker", rabbitmq_url, "--events", "3", "--topic", topic)

        assert 0 == done.returncode, done.stdout + done.stderr
        assert [topic] * 3 == [delivery.message.topic for delivery in receive(deliveries, 3, timeout=10)]


@pytest.mark.broker
def test_rabbitmq_may_go_and_come_back(rabbitmq_url):
    parts = urlsplit(rabbitmq_url)
    with TcpProxy(parts.hostname, parts.port or 5672) as proxy:
        url = rabbitmq_url.replace(parts.netloc.rpartition("@")[2], f"127.0.0.1:{proxy.port}")
        child = started("demo", "--broker", url, "--events", "600", "--plain")
        try:
            assert any(re.match(r"[1-9]\d* of 600 commands", line) for line in child.stdout), "it ended early"
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


# It does not add up


class Wrong(MemoryBroker):
    """Treats the tenth message and those after it in some wrong way."""

    def publish(self, messages, /, *, timeout=None):
        self.do(messages, len(self.published) + 1)

    def do(self, messages, number):
        super().publish(messages)


class Losing(Wrong):
    def do(self, messages, number):
        if number == 10:
            self.published.extend(messages)
        else:
            super().do(messages, number)


class Doubling(Wrong):
    def do(self, messages, number):
        super().do(messages, number)
        if number == 10:
            super().do(messages, number)


class Forging(Wrong):
    def do(self, messages, number):
        body = self.published[-1].body if number == 10 else messages[0].body
        super().do([attrs.evolve(message, body=body) for message in messages], number)


class Garbling(Wrong):
    def do(self, messages, number):
        body = b"non sense" if number == 10 else messages[0].body
        super().do([attrs.evolve(message, body=body) for message in messages], number)


class Dying(Wrong):
    def do(self, messages, number):
        if number > 10:
            raise PublishFailed([(message, BrokerUnavailable("gone for good")) for message in messages])
        super().do(messages, number)


class Deaf(MemoryBroker):
    """Takes everything in, and delivers ten messages."""

    def subscribe(self, group, /):
        subscription = super().subscribe(group)
        receive, received = subscription.receive, []

        def receive_ten(timeout):
            if len(received) == 10:
                raise BrokerUnavailable("gone for good")
            delivery = receive(timeout)
            received.extend([delivery] if delivery else [])
            return delivery

        subscription.receive = receive_ten
        return subscription


def played(broker):
    """Play on this broker; return the exit status and what was shown."""
    console = Console(file=io.StringIO(), width=100, color_system=None)
    status = perform(DemoRun(broker, 30, patience=0.3), "wrong", console)
    return status, console.file.getvalue()


@pytest.mark.parametrize(
    ("broker", "wrong", "words"),
    [
        (Losing, {"messages", "read model"}, ["30 confirmed != 29 consumed, 1 lost, 0 doubled", "lost: user-"]),
        (Doubling, {"messages", "read model"}, ["31 consumed, 0 lost, 1 doubled", "doubled: user-"]),
        (Forging, {"read model"}, ["30 joined = 30 listed, 1 lost, 1 doubled", "lost: user-"]),
        (Dying, {"commands", "handlers", "failures", "messages", "read model"}, ["gone for good", "10 confirmed"]),
        (Deaf, {"messages", "read model"}, ["30 raised = 30 confirmed != 10 consumed, 20 lost, 0 doubled"]),
        (Garbling, {"failures", "messages", "read model"}, ["the consumer stopped: the body is not JSON"]),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_named(broker, wrong, words):
    """A message that is lost, doubled or forged makes the sum wrong: status 1, and the summary says what is missing."""
    status, shown = played(broker())

    assert 1 == status
    assert "It does not add up." in shown
    assert wrong <= {title for title, (mark, _) in sums_of(shown).items() if mark == "no"}
    assert [] == [each for each in words if each not in shown]


@pytest.mark.parametrize(
    ("count", "value", "title"),
    [
        ("sent", 29, "commands"),
        ("answered", 29, "commands"),
        ("failed", 0, "failures"),
        ("failed", 2, "failures"),
        ("raised", set(), "messages"),
        ("confirmed", set(), "messages"),
        ("consumed", 31, "messages"),
    ],
)
def test_every_count_is_compared_with_another(count, value, title):
    """A number that is off makes its line of the summary wrong, and no other line."""
    demo = DemoRun(MemoryBroker(), 30)
    demo.play()

    assert [] == [check.title for check in demo.checks() if check.wrong]
    setattr(demo, count, value)
    assert [title] == [check.title for check in demo.checks() if check.wrong]


# It can be read


def in_terminal(columns, lines, *arguments):
    """Run the demo in a terminal of this size; return the exit status and everything that was drawn."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    child = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "cqrs_sync", "demo", *arguments],
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


@pytest.mark.parametrize(("columns", "lines"), [(20, 8), (80, 24), (200, 60)])
def test_the_picture_is_live_in_terminals_of_any_size(columns, lines):
    """The demo draws, keeps within the terminal, gives the cursor back and ends with the summary."""
    status, drawn = in_terminal(columns, lines, "--events", "150")
    text = _CONTROL.sub("", drawn)

    assert 0 == status, text
    assert "\x1b[?25l" in drawn, "nothing was drawn live"
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")
    assert [] == [line for line in re.split(r"[\r\n]+", text) if len(line) > columns]
    assert max(int(count) for count in re.findall(r"\x1b\[(\d+)A", drawn) or ["0"]) < lines
    assert "It adds up" in " ".join(text.split())


def test_a_terminal_can_have_the_log():
    status, drawn = in_terminal(80, 24, "--events", "30", "--plain")

    assert 0 == status
    assert None is _CONTROL.search(drawn)


def test_a_log_tells_its_progress():
    done = run("demo", "--events", "800")

    assert 0 == done.returncode, done.stdout + done.stderr
    assert 2 <= len(re.findall(r"(?m)^\d+ of 800 commands answered, \d+ events confirmed, \d+ consumed", done.stdout))


def test_clients_of_brokers_write_nothing_into_the_picture():
    program = "from cqrs_sync.__main__ import main\nmain(['demo', '--events', '3'], standalone_mode=False)\n"
    warns = "import atexit, logging; atexit.register(logging.getLogger('pika').error, 'a client complains')\n"

    done = run(program=("-c", warns + program))

    assert (0, "") == (done.returncode, done.stderr)


# It cannot start


@pytest.mark.parametrize("url", ["amqp://user:hush-hush@127.0.0.1:{port}/", "kafka://127.0.0.1:{port}"])
def test_an_unreachable_broker_is_one_line(url):
    port = free_port()

    done = run("demo", "--broker", url.format(port=port))

    assert 2 == done.returncode
    assert 1 == len(done.stderr.splitlines()), done.stderr
    assert done.stderr.startswith(f"Error: demo on {url.partition('://')[0]}://127.0.0.1:{port}: ")
    assert "hush-hush" not in done.stdout + done.stderr


@pytest.mark.broker
def test_a_wrong_password_is_not_shown(rabbitmq_url):
    done = run("demo", "--broker", f"amqp://guest:hush-hush@{address_of(rabbitmq_url).partition('://')[2]}/")

    assert 2 == done.returncode
    assert 1 == len(done.stderr.splitlines()), done.stderr
    assert "refuses user and password" in done.stderr
    assert "hush-hush" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "url",
    ["nats://user:hush-hush@localhost", "amqp://user:4711/2@localhost", "kafka://user:hush-hush@", "memory:"],
)
def test_a_wrong_url_is_one_line_without_the_password(url):
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
    done = run(missing, "demo", "--broker", broker, program=("-c", WITHOUT))

    assert 0 != done.returncode
    assert 1 == len(done.stderr.splitlines()), done.stderr
    assert f"pip install 'cqrs-sync[{extra}]'" in done.stderr


@pytest.mark.parametrize("missing", ["pika", "kafka"])
def test_the_demo_in_memory_needs_no_broker_client(missing):
    done = run(missing, "demo", "--events", "5", program=("-c", WITHOUT))

    assert 0 == done.returncode, done.stderr


# It is interrupted

INTERRUPTIBLE = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)   # a shell's background jobs ignore it
runpy.run_module("cqrs_sync", run_name="__main__", alter_sys=True)
"""


def test_ctrl_c_ends_it_clean():
    """Ctrl-C ends the demo within seconds, without a traceback: status 130."""
    child = started("demo", "--events", "100000", program=("-c", INTERRUPTIBLE))
    try:
        assert any(re.match(r"[1-9]\d* of \d+ commands", line) for line in child.stdout), "it ended on its own"
        child.send_signal(signal.SIGINT)
        _, complaint = child.communicate(timeout=10)
    finally:
        child.kill()
        child.wait()

    assert 130 == child.returncode
    assert None is not re.fullmatch(r"Interrupted: \d+ of \d+ commands answered, .*\n", complaint), complaint
