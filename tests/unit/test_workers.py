"""Promises of the parts of a relay process."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextvars import copy_context
from functools import partial
from types import SimpleNamespace

import pytest
from attrs import frozen

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryOutbox
from cqrs_sync.outbox import Backlog, Outcome, OutcomeKind, TargetBacklog
from cqrs_sync.testing.contracts.outbox import published
from cqrs_sync.workers.consumer import log_unfinished_messages
from cqrs_sync.workers.health import HealthFile, HealthServer, HealthSnapshot
from cqrs_sync.workers.purge import Purge
from cqrs_sync.workers.relay import BacklogGauge, RelayOptions, RelayWorker
from cqrs_sync.workers.worker import PeriodicTask, RateMeter, Signals
from tests.consumer.conftest import Joined, Workshop
from tests.promises.outbox_fixtures import Shipped, Shop, closing
from tests.source import ROOT
from tests.waiting import eventually


def kept(*entries):
    """An outbox with these entries in it."""
    outbox = MemoryOutbox(on_no_transaction=cqrs.OnNoTransaction.OPEN)
    outbox.add(entries)
    return outbox


# Periodic tasks


@pytest.fixture
def periodic():
    started = []

    def start(do, release_connection=lambda: None):
        started.append(PeriodicTask("cqrs-test", do, release_connection))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        each.close()


def test_a_periodic_task_runs_again_until_it_is_done(periodic):
    """
    In one thread, which lets go of its connection at the end.
    """
    pauses, threads, release_connection = [0.0, 0.0, None], set(), []

    def do():
        threads.add(threading.current_thread().name)
        return pauses.pop(0)

    periodic(do, lambda: release_connection.append(1))

    eventually(lambda: release_connection)
    assert ([], {"cqrs-test"}) == (pauses, threads)


@pytest.mark.parametrize(("error", "lines"), [(cqrs.OutboxUnavailable("away"), 0), (ValueError("a bug"), 1)])
def test_a_periodic_task_survives_errors(periodic, caplog, monkeypatch, error, lines):
    """
    A database that is away is told of by others; anything else is told of once.
    """
    monkeypatch.setattr("cqrs_sync.workers.worker._RETRY", 0.01)
    calls = []

    def do():
        calls.append(1)
        raise error

    periodic(do)

    eventually(lambda: len(calls) > 3)
    assert lines == len([record for record in caplog.records if record.levelname != "DEBUG"])


def test_a_periodic_task_ends_in_its_pause(periodic):
    """
    At once, and so does one that pauses in between.
    """
    begun, paused = threading.Event(), []

    def do():
        begun.set()
        paused.append(running.pause(60))

    running = PeriodicTask("cqrs-test", do, lambda: None)
    running.start()
    assert begun.wait(10)
    running.close()

    eventually(lambda: paused == [True])


# Signals


def test_signals_are_noted_one_after_the_other():
    """
    And what was in force before is again afterwards.
    """
    before = signal.getsignal(signal.SIGTERM)
    with Signals() as signals:
        assert signals.wait(0) is None
        signal.raise_signal(signal.SIGTERM)
        assert signal.SIGTERM == signals.wait(0)
        signal.raise_signal(signal.SIGINT)
        assert signal.SIGINT == signals.wait(20)

    assert before == signal.getsignal(signal.SIGTERM)


def test_a_signal_wakes_whoever_waits():
    """
    Within a step, not at the end of the wait.
    """
    with Signals() as signals:
        threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGTERM]).start()
        begun = time.monotonic()

        assert signal.SIGTERM == signals.wait(30)
        assert time.monotonic() - begun < 5


def test_signals_outside_of_the_main_thread_are_not_noted():
    """
    Python takes none there.
    """
    seen = []

    def look():
        with Signals() as signals:
            seen.append(signals.wait(0))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(10)

    assert [None] == seen


def test_a_signal_ends_a_process_that_has_not_looked_at_the_last_one():
    """
    It waits for something it never gets, such as a terminal that takes no output.
    """
    program = (
        "import signal\nfrom cqrs_sync.workers.worker import Signals\n"
        "with Signals():\n    signal.raise_signal(signal.SIGTERM)\n    signal.raise_signal(signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, check=False)

    assert 130 == done.returncode


# A hard exit


EXIT = """
import atexit, sys, threading
from cqrs_sync.workers.worker import ExitDeadline, force_exit
def words():
    print("last words", file=sys.stderr)
def met_within(seconds):
    deadline = ExitDeadline(seconds, lambda: None)
    deadline.start()
    deadline.allow_exit(0)
"""


@pytest.mark.parametrize(
    ("program", "status", "said"),
    [
        ("ExitDeadline(0.2, words).start(); threading.Event().wait()", 1, "last words"),
        ("force_exit(3, lambda: threading.Event().wait())", 3, ""),
        ("force_exit(3, lambda: 1 / 0)", 3, ""),
        ("met_within(0.5); atexit.register(threading.Event().wait)", 0, "does not exit"),
        ("met_within(0.2); threading.Event().wait(0.6); words(); sys.exit(4)", 4, "last words"),
    ],
    ids=["hangs", "hanging words", "failing words", "hanging hook", "goes on"],
)
def test_a_process_ends_by_its_deadline(program, status, said):
    """
    Whatever hangs in it; unless it was done in time, and goes on with something else.
    """
    done = subprocess.run(
        [sys.executable, "-c", EXIT + program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )

    assert (status, True) == (done.returncode, said in done.stderr), done.stderr


# How far it is


def test_the_pace_is_that_of_the_last_seconds(monkeypatch):
    """
    Not the average since the beginning.
    """
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    meter = RateMeter(0.5)
    rates = []
    for delivered in (0, 1000, 1000, 1000, 1000, 1100):
        now[0] += 2.0
        rates.append(round(meter.rate(delivered)))

    assert [0, 250, 167, 167, 0, 17] == rates


def test_a_backlog_that_takes_long_to_count_is_counted_seldom(monkeypatch):
    """
    Counting takes a twentieth of the time at most.
    """
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    class Slow:
        took = 0.0

        def backlog(self):
            now[0] += self.took
            return Backlog((), (), None)

    outbox = Slow()
    gauge = BacklogGauge(outbox, 0.5)
    quick = gauge.count()
    outbox.took = 3.0

    assert (5.0, 60.0) == (quick, gauge.count())
    assert gauge.backlog is not None


def test_a_backlog_that_cannot_be_counted_is_not_known():
    """
    Nobody takes the last one for it.
    """

    backlogs = [Backlog((), (), None)]

    class Outbox:
        def backlog(self):
            if not backlogs:
                raise cqrs.OutboxUnavailable("away")
            return backlogs.pop()

        def release_connection(self):
            pass

    gauge = BacklogGauge(Outbox(), 60)
    gauge.count()
    gauge.count_within(10)

    assert gauge.backlog is None


def test_messages_are_purged_chunk_by_chunk():
    """
    Until there are none left that are old enough.
    """
    outbox = kept(*(published(f"{number}") for number in range(1100)))
    while claimed := outbox.claim(500, 60):
        outbox.settle([Outcome(each, OutcomeKind.DONE) for each in claimed])

    assert [1000, 100] == list(Purge(outbox, 0, "message").chunks())


@pytest.mark.parametrize(("last", "lines"), [(0, "1500 receipt(s) purged"), (None, "receipts cannot be purged")])
def test_what_is_purged_now_and_then_leaves_time_for_others(caplog, last, lines):
    """
    It ends between two chunks when it is told to, and a database that is away is told of.
    """
    caplog.set_level(logging.INFO)

    class Store:
        def __init__(self):
            self.left = [1000, 500, last]

        def purge(self, older_than, limit):
            count = self.left.pop(0)
            if count is None:
                raise cqrs.InboxUnavailable("away")
            return count

    pauses = []
    assert 20 < Purge(Store(), 60, "receipt").run(pauses.append) < 100
    assert lines in caplog.text
    assert 2 == len(pauses)
    store = Store()
    Purge(store, 60, "receipt").run(lambda seconds: True)
    assert [500, last] == store.left


def test_a_target_backlog_adds_up():
    """
    What waits is what nobody has tried and what is tried again.
    """
    backlog = Backlog((TargetBacklog("topic", "orders", 1, 2, 3),), (("bad", 3),), 1.0)

    assert (3, 3) == (backlog.waiting, backlog.dead)


# The health of a consumer


def test_the_health_file_is_not_there_where_the_consumer_is_not_alive(tmp_path):
    """
    And again when it is; never after the end.
    """
    path, alive = tmp_path / "health", [True]
    facts = dict.fromkeys(("received", "handled", "delayed", "dead", "dropped", "in_flight", "running"), 0)
    health = HealthFile(
        path,
        lambda: HealthSnapshot("stuck", is_alive=alive[0], is_ready=False, trouble="it hangs", oldest=None, **facts),
    )
    health.start()
    assert path.exists()
    alive[0] = False
    health.renew()
    assert not path.exists()
    alive[0] = True
    health.renew()
    assert path.exists()
    health.close()
    health.renew()

    assert not path.exists()


# What is said of what was not finished


@pytest.fixture
def workshop():
    workshop = Workshop()
    yield workshop
    workshop.close()


@frozen
class Hung(cqrs.DomainEvent):
    number: int


def test_the_threads_in_which_handlers_of_its_events_run_are_shown(workshop, caplog):
    """
    Beside the thread that handles the message and waits for them.
    """
    gate = workshop.hold_up()
    consumer = workshop.consumer(Joined)
    events = cqrs.EventMap()
    events.bind(Hung, gate.__call__)
    events.bind(Hung, partial(gate.__call__))
    workshop.mediators.append(mediator := cqrs.bootstrap(events=events, threads=cqrs.ThreadPool(2, name="inner")))
    workshop.react = lambda event: mediator.publish(Hung(event.number))
    with consumer:
        workshop.publish(Joined("m", 1))
        gate.wait_for(2)
        log_unfinished_messages(consumer, 60.0)
        gate.open()
    stacks = {
        each.args[0].rpartition("_")[0]: each.args[1] for each in caplog.records if "is still running" in each.msg
    }

    assert {"cqrs", "inner"} == stacks.keys()
    assert all(" in __call__" in stack for stack in stacks.values())


class OwnThreads:
    """An executor of an application: each call has a thread of its own."""

    def run(self, source, /, *, timeout=None, may_help=True):
        def work():
            for call in iter(source.next_call, None):
                copy_context().run(*call)
            if timeout is not None:
                source.finished_late()

        thread = threading.Thread(target=work, name="own-thread", daemon=True)
        thread.start()
        if timeout is None:
            thread.join()
        return timeout is None

    def close(self, timeout=5.0):
        pass


def own_stacks(caplog):
    return [each.args[1] for each in caplog.records if each.args[:1] == ("own-thread",)]


def test_the_threads_of_an_executor_of_the_application_are_shown(workshop, caplog):
    """Those that handle a message, and those that run a durable handler."""
    gate = workshop.hold_up()
    consumer = workshop.consumer(Joined, threads=OwnThreads())
    with consumer:
        workshop.publish(Joined("m", 1))
        gate.wait_for(1)
        log_unfinished_messages(consumer, 60.0)
        gate.open()
    assert [True] == [" in __call__" in stack for stack in own_stacks(caplog)]

    caplog.clear()
    gate = workshop.hold_up()
    events = cqrs.EventMap()
    events.bind(Shipped, gate.__call__, phase=cqrs.Phase.DURABLE, name="ship")
    shop = Shop(events=events, threads=OwnThreads())
    with closing(shop):
        shop.sell(Shipped(1))
        gate.wait_for(1)
        RelayWorker(shop.relay, RelayOptions(), SimpleNamespace(every=60.0))._log_unfinished()
        gate.open()
    assert [True] == [" in __call__" in stack for stack in own_stacks(caplog)]


def deaf_after_one(broker, goes_on):
    """Let subscriptions of this broker hang once they have handed out a message."""
    subscribe = broker.subscribe

    def subscribed(group):
        subscription = subscribe(group)
        receive = subscription.receive_many

        def receive_many(most, timeout):
            came = receive(1, timeout)
            if came:
                subscription.receive_many = lambda *_: goes_on.wait(30) and []
            return came

        subscription.receive_many = receive_many
        return subscription

    broker.subscribe = subscribed


def shown(caplog, consumer, stall):
    """The threads whose stacks are logged: the one that receives, and those of the pool."""
    caplog.clear()
    log_unfinished_messages(consumer, stall)
    threads = [each.args[0] for each in caplog.records if each.msg.startswith("thread %s is still running")]
    return sorted({"receiver" if name == "cqrs-receiver" else "pool" for name in threads})


def test_the_thread_that_receives_is_shown_only_where_it_is_at_fault(workshop, caplog):
    """
    It hangs, or no handler runs; beside a handler that hangs it would only lead astray.
    """
    gate, goes_on = workshop.hold_up(), threading.Event()
    consumer = workshop.consumer(Joined)
    deaf_after_one(workshop.broker, goes_on)
    try:
        with consumer:
            assert ["receiver"] == shown(caplog, consumer, 60.0)
            workshop.publish(Joined("m", 1))
            gate.wait_for()
            assert ["pool"] == shown(caplog, consumer, 60.0)
            eventually(lambda: consumer.health(0.2).is_receiver_hung)
            assert ["pool", "receiver"] == shown(caplog, consumer, 0.2)
            gate.open()
            goes_on.set()
    finally:
        goes_on.set()


# The health port


@pytest.fixture
def health_port():
    """A health server, and the address of its port."""
    facts = dict.fromkeys(("received", "handled", "delayed", "dead", "dropped", "in_flight", "running"), 0)
    alive = HealthSnapshot("receiving", is_alive=True, is_ready=True, trouble="", oldest=None, **facts)
    server = HealthServer("127.0.0.1", 0, lambda: alive)
    server.start()
    yield server, ("127.0.0.1", int(server.url.rpartition(":")[2]))
    server.close()


def answer(address, request=b"GET /live HTTP/1.1\r\n\r\n"):
    """What a client is answered; empty if it is cut off."""
    with socket.create_connection(address, timeout=10) as client:
        client.sendall(request)
        parts = []
        with contextlib.suppress(ConnectionError):
            while part := client.recv(65536):
                parts.append(part)
        return b"".join(parts)


def is_taken(client, part):
    """Whether a connection still takes bytes."""
    try:
        client.sendall(part)
    except ConnectionError:
        return False
    return True


def test_slow_clients_are_cut_off_and_keep_nobody_waiting(health_port):
    """
    Even one that sends a byte now and then, and any number of them that send nothing.
    """
    _, address = health_port
    begun = time.monotonic()
    with contextlib.ExitStack() as clients:
        mute = [clients.enter_context(socket.create_connection(address, timeout=10)) for _ in range(8)]
        slow = clients.enter_context(socket.create_connection(address, timeout=10))
        assert answer(address).startswith(b"HTTP/1.1 200 ")
        assert time.monotonic() - begun < 1.0
        cut_off = eventually(lambda: not is_taken(slow, b"x"), pause=0.05)
        assert cut_off
        assert 8 * [b""] == [each.recv(1) for each in mute]
    assert time.monotonic() - begun < 8


def test_more_clients_than_it_serves_are_refused(health_port):
    """
    So that they cost no more threads; when they are gone, it answers again.
    """
    _, address = health_port
    with contextlib.ExitStack() as clients:
        for _ in range(40):
            clients.enter_context(socket.create_connection(address, timeout=10))
        assert sum(thread.name.startswith("Thread-") for thread in threading.enumerate()) < 40
    assert eventually(lambda: answer(address)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /live HTTP/1.1\r\n" + b"a: b\r\n" * 5000 + b"\r\n", b"431"),
        (b"GET /live HTTP/1.1\r\n" + (b"a: " + b"b" * 500 + b"\r\n") * 50 + b"\r\n", b"200"),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n", b"error"),
        (b"HEAD /ready HTTP/1.0\r\n\r\n", b"200"),
        (b"POST /live HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n", b"405"),
        (b"BREW /live HTTP/1.1\r\n\r\n", b"405"),
        (b"\xff\x00\r\n\r\n", b"4"),
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"GET //live HTTP/1.1\r\n\r\n", b"404"),
    ],
    ids=["headers", "long headers", "path", "head", "post", "unknown", "garbage", "root", "slashes"],
)
def test_hostile_requests_are_bounded_and_answered(health_port, request_, status):
    """
    Or cut off; after each the next client is answered.
    """
    _, address = health_port
    found = answer(address, request_)

    assert not found or status in found.partition(b"\r\n")[0], found
    assert answer(address).endswith(b"}")


def test_control_characters_of_a_client_do_not_reach_the_log(health_port, caplog):
    """
    A terminal that shows the log would obey them.
    """
    _, address = health_port
    caplog.set_level(logging.DEBUG)
    answer(address, b"GET /\x1b[2J\rlive HTTP/1.1\r\n\r\n")
    eventually(lambda: "health port" in caplog.text)

    assert r"\x1b[2J" in caplog.text
    assert not {"\x1b", "\r"} & {*caplog.text}


def test_the_port_is_closed_within_its_time(health_port):
    """
    Although a client is connected.
    """
    server, address = health_port
    with socket.create_connection(address, timeout=10):
        begun = time.monotonic()
        server.close()

        assert time.monotonic() - begun < 1.5
    with pytest.raises(ConnectionRefusedError):
        eventually(lambda: socket.create_connection(address, timeout=1).close())
