"""What the tests of the Threads promises share: messages, a gauge of what runs, gates, and child processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from attrs import frozen

import cqrs_sync as cqrs
from cqrs_sync.testing.contracts.executor import Calls
from cqrs_sync.testing.waiting import BOUND, in_threads
from cqrs_sync.threads import watchdog
from tests.source import ROOT


@frozen
class Go(cqrs.Command[str]):
    """Raise these events."""

    events: tuple[cqrs.Event, ...] = ()


@frozen
class Happened(cqrs.DomainEvent):
    number: int = 0


@frozen
class Followed(cqrs.DomainEvent):
    number: int = 0


@frozen
class Told(cqrs.NotificationEvent, topic="told", name="threads.told"):
    number: int = 0


def go(request: Go) -> str:
    for event in request.events:
        cqrs.raise_event(event)
    return "gone"


def happenings(count: int) -> Go:
    return Go(tuple(Happened(number) for number in range(count)))


def mediator_of(
    threads: cqrs.threads.Executor | int | None, *bindings: tuple[type, Callable[..., object]], **options: Any
) -> cqrs.Mediator:
    """Wire a mediator that answers Go, with these event handlers and further request handlers."""
    requests = cqrs.RequestMap()
    requests.bind(Go, go)
    events = cqrs.EventMap()
    for message, handler in bindings:
        (requests if issubclass(message, cqrs.Request) else events).bind(message, handler)
    return cqrs.bootstrap(requests, events, source="tests", threads=threads, **options)


class Gauge:
    """How many threads run handlers at once, each counted once however deep it is in them."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.peak = 0
        self.begun = 0
        #: The threads that ever ran a handler.
        self.threads: set[threading.Thread] = set()
        self._depths: dict[threading.Thread, int] = {}

    @property
    def running(self) -> int:
        return len(self._depths)

    @contextmanager
    def handling(self) -> Iterator[None]:
        thread = threading.current_thread()
        with self.changed:
            self.begun += 1
            self.threads.add(thread)
            self._depths[thread] = self._depths.get(thread, 0) + 1
            self.peak = max(self.peak, len(self._depths))
            self.changed.notify_all()
        try:
            yield
        finally:
            with self.changed:
                self._depths[thread] -= 1
                if not self._depths[thread]:
                    del self._depths[thread]
                self.changed.notify_all()

    def wait_until(self, condition: Callable[[Gauge], bool], timeout: float = BOUND) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: condition(self), timeout), (
                f"{self.running} running, {self.begun} begun after {timeout} s"
            )


class Gate:
    """Handlers wait here until the test opens it, or a time limit ends."""

    def __init__(self) -> None:
        self._opened = threading.Event()

    def wait(self) -> None:
        assert self._opened.wait(BOUND), "the gate was not opened in time"

    def open(self) -> None:
        self._opened.set()


@contextmanager
def in_thread(function: Callable[..., Any], *arguments: Any) -> Iterator[threading.Thread]:
    """Run `function` beside the block; at its end wait for it, and raise what it raised."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function(*arguments)
        except BaseException as error:  # noqa: BLE001 -- raised where it is waited for
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield thread
    thread.join(BOUND)
    assert not thread.is_alive(), f"{getattr(function, '__qualname__', function)} still ran after {BOUND} s"
    if errors:
        raise errors[0]


#: The one of this process.
_watchdog = watchdog._watchdog


def collections_of_the_watchdog() -> list[Collection[object]]:
    """Return everything that the watchdog keeps for the deadlines it watches."""
    return [value for value in vars(_watchdog).values() if isinstance(value, Collection)]


def locks_of(resettable: object) -> list[Any]:
    """Return the locks of an object that is made anew in a child."""
    values = vars(resettable).values()
    locks = [value._lock if isinstance(value, threading.Condition) else value for value in values]
    return list({id(lock): lock for lock in locks if hasattr(lock, "acquire")}.values())


def locks_of_the_watchdog() -> list[Any]:
    """Return the locks of the watchdog."""
    return locks_of(_watchdog)


def on_pool_thread() -> bool:
    """Tell whether this is a thread of a `concurrent.futures.ThreadPoolExecutor`, by looking at the stack."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "concurrent.futures.thread" and frame.f_code.co_name == "_worker":
            return True
        frame = frame.f_back
    return False


# What programs for child processes begin with.
PREAMBLE = """
import atexit, json, logging, os, sys, threading, time
import cqrs_sync as cqrs
from tests.promises.threads_fixtures import *
"""


def program(source: str, *, timeout: float = 60.0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program that begins with PREAMBLE in a new interpreter, to its end."""
    return subprocess.run(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(source)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def answer_of(done: subprocess.CompletedProcess[str]) -> Any:
    """Return the last line of a program that ended well, read as JSON."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def wait_for_exit(child: int, timeout: float) -> int | None:
    """Return the exit status of a forked child; None where it had to be killed after `timeout` seconds."""
    until = time.monotonic() + timeout
    never = threading.Event()
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        never.wait(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None


def fork(action: Callable[[], object], *, timeout: float = 20.0) -> int | None:
    """Run `action` in a forked child: 0 where it returned, 1 where it raised, None where it took too long."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    return wait_for_exit(child, timeout)


__all__: Sequence[str] = [
    "BOUND",
    "Calls",
    "Followed",
    "Gate",
    "Gauge",
    "Go",
    "Happened",
    "Told",
    "answer_of",
    "collections_of_the_watchdog",
    "fork",
    "go",
    "happenings",
    "in_thread",
    "in_threads",
    "locks_of",
    "locks_of_the_watchdog",
    "mediator_of",
    "on_pool_thread",
    "program",
    "wait_for_exit",
]
