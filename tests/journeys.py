"""
How many files a message crosses: `python -m tests.journeys`, with `--files` to list them.

A journey is counted warm, over all threads, with a profile function: the files of the package that are called,
their folders, the calls, and how often a thread goes from one file to another. Journeys that need a server
are left out where it is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import attrs

import cqrs_sync as cqrs
from tests.source import PACKAGE

RABBITMQ = os.environ.get("CQRS_TEST_RABBITMQ_URL") or "amqp://guest:guest@127.0.0.1:5672/"
#: At most so many files: those of one journey, or of several together.
BARS = {"a": 8, "bc": 35}
#: Seconds without a call after which a journey is over, and seconds it may take.
_QUIET, _BOUND = 0.3, 10.0
_WARM = 5


@attrs.frozen
class Count:
    """What one journey crossed."""

    title: str
    files: list[str]
    calls: int
    switches: int
    threads: int

    @property
    def folders(self) -> int:
        """How many folders the files are in, the package itself among them."""
        return len({str(Path(file).parent) for file in self.files})


class Profile:
    """Notes calls into the package. It is installed before any thread starts, and counts while it is told to."""

    def __init__(self) -> None:
        self.is_on = False
        self.last = 0.0
        self._codes: dict[CodeType, str | None] = {}
        self._calls: defaultdict[int, list[str]] = defaultdict(list)

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """Note one call."""
        if event != "call" or not self.is_on:
            return
        code = frame.f_code
        if code not in self._codes:
            self._codes[code] = _file_of(code)
        file = self._codes[code]
        if file is not None:
            self._calls[threading.get_ident()].append(file)
            self.last = time.monotonic()

    def count(self, title: str, journey: Callable[[], object]) -> Count:
        """Count one journey, until no thread calls anything any more."""
        self._calls.clear()
        self.is_on, self.last = True, time.monotonic()
        begun = time.monotonic()
        try:
            journey()
            while time.monotonic() - self.last < _QUIET and time.monotonic() - begun < _BOUND:
                threading.Event().wait(0.01)
        finally:
            self.is_on = False
        calls = list(self._calls.values())
        files = sorted({file for of_thread in calls for file in of_thread})
        switches = sum(here != there for each in calls for here, there in pairwise(each))
        return Count(title, files, sum(map(len, calls)), switches, len(calls))


def _file_of(code: CodeType) -> str | None:
    """Return the file of the package that a function is in; comprehensions and lambdas belong to their function."""
    if code.co_name.startswith("<") or not code.co_filename.startswith(str(PACKAGE)):
        return None
    return str(Path(code.co_filename).relative_to(PACKAGE))


# The service that is looked at. attrs comes first: it builds a slotted class anew.


@attrs.frozen
class Join(cqrs.Command[str]):
    """A command."""

    user: str


@attrs.frozen
class Joined(cqrs.DomainEvent):
    """An event for handlers after the commit."""

    user: str


@attrs.frozen
class Announced(cqrs.NotificationEvent, topic="journeys", name="journeys.announced", key="user"):
    """An event for other services."""

    user: str


class Calls:
    """Counts the calls of handlers, and lets others wait for them."""

    def __init__(self) -> None:
        self.total = 0
        self._changed = threading.Condition()

    def add(self) -> None:
        """Count one."""
        with self._changed:
            self.total += 1
            self._changed.notify_all()

    def wait_for(self, total: int) -> None:
        """Wait until there were so many."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.total >= total, _BOUND), f"{self.total} of {total} calls"


def in_process(profile: Profile) -> Iterator[Count]:
    """(a) A command, its handler, and two event handlers on a pool of two."""
    requests, events = cqrs.RequestMap(), cqrs.EventMap()

    @requests.bind
    class JoinHandler(cqrs.RequestHandler[Join, str]):
        def handle(self, request: Join) -> str:
            self.raise_event(Joined(request.user))
            return request.user

    @events.bind
    class First(cqrs.EventHandler[Joined]):
        def handle(self, event: Joined) -> None: ...

    @events.bind
    class Second(cqrs.EventHandler[Joined]):
        def handle(self, event: Joined) -> None: ...

    with cqrs.bootstrap(requests, events, threads=2) as mediator:
        for _ in range(_WARM):
            mediator.send(Join("ada"))
        yield profile.count("send, two event handlers on the pool", lambda: mediator.send(Join("ada")))


@contextmanager
def _sqlite(stack: ExitStack) -> Iterator[tuple[Any, cqrs.RequestMap, cqrs.EventMap, dict[str, Any]]]:
    """A database with outbox and inbox, and what a mediator is made of."""
    import sqlalchemy as sa
    from sqlalchemy.orm import sessionmaker

    from cqrs_sync.integrations import sqlalchemy as ours

    directory = stack.enter_context(tempfile.TemporaryDirectory())
    engine = ours.begin_immediate(
        sa.create_engine(f"sqlite:///{directory}/journeys.sqlite3", connect_args={"timeout": 30})
    )
    metadata = sa.MetaData()
    ours.tables(metadata)
    ours.inbox_table(metadata)
    metadata.create_all(engine)
    sessions = ours.Sessions(sessionmaker(engine))
    requests, events = cqrs.RequestMap(), cqrs.EventMap()
    middleware = cqrs.MiddlewareChain().add(sessions.atomic, cqrs.Command)
    yield sessions, requests, events, {"middleware": middleware, "threads": 2}
    engine.dispose()


def through_an_outbox(profile: Profile) -> Iterator[Count]:
    """(b) A command whose event goes through an outbox in SQLite to RabbitMQ, which confirms it."""
    from cqrs_sync.integrations.rabbitmq import RabbitMQBroker
    from cqrs_sync.integrations.sqlalchemy import SQLAlchemyOutbox
    from cqrs_sync.outbox import DeadLetterSelection
    from tests.servers.rabbitmq import bound_queue
    from tests.waiting import eventually

    exchange = f"journeys-{uuid.uuid4().hex[:8]}"
    with ExitStack() as stack:
        sessions, requests, events, options = stack.enter_context(_sqlite(stack))
        stack.enter_context(bound_queue(RABBITMQ, exchange, "journeys"))

        @requests.bind
        class JoinHandler(cqrs.RequestHandler[Join, str]):
            def handle(self, request: Join) -> str:
                self.raise_event(Announced(request.user))
                return request.user

        outbox = SQLAlchemyOutbox(sessions)
        broker = RabbitMQBroker(RABBITMQ, exchange=exchange)
        with cqrs.bootstrap(requests, events, source="tests", broker=broker, outbox=outbox, **options) as mediator:
            for _ in range(_WARM):
                mediator.send(Join("ada"))
                eventually(lambda: outbox.backlog().waiting == 0, timeout=_BOUND)
            yield profile.count("send, outbox, publish to RabbitMQ", lambda: mediator.send(Join("ada")))
            eventually(lambda: outbox.backlog().waiting == 0, timeout=_BOUND)
            assert not outbox.dead_letters(DeadLetterSelection())


def into_an_inbox(profile: Profile) -> Iterator[Count]:
    """(c) A message of a RabbitMQ queue, its handler with a receipt in an inbox in SQLite, and the ack."""
    from cqrs_sync.consumer import Consumer
    from cqrs_sync.integrations.rabbitmq import RabbitMQBroker
    from cqrs_sync.integrations.sqlalchemy import SQLAlchemyInbox
    from tests.servers.rabbitmq import bound_queue, drained, forget, opened
    from tests.waiting import eventually

    exchange, calls = f"journeys-{uuid.uuid4().hex[:8]}", Calls()
    with ExitStack() as stack:
        sessions, requests, events, options = stack.enter_context(_sqlite(stack))
        queue = stack.enter_context(bound_queue(RABBITMQ, exchange, "journeys"))

        @events.bind
        class Heard(cqrs.EventHandler[Announced]):
            def handle(self, event: Announced) -> None:
                calls.add()

        # What the library writes, to be sent again by a stranger: sending is not part of this journey.
        with cqrs.bootstrap(source="tests", broker=RabbitMQBroker(RABBITMQ, exchange=exchange), threads=2) as sender:
            sender.publish(Announced("ada"))
        ((template, body),) = drained(RABBITMQ, queue)
        broker = RabbitMQBroker(RABBITMQ, exchange=exchange)
        inbox = SQLAlchemyInbox(sessions)
        mediator = stack.enter_context(
            cqrs.bootstrap(requests, events, source="tests", broker=broker, inbox=inbox, **options)
        )
        consumer = Consumer(mediator, "g")
        stack.callback(forget, RABBITMQ, exchange, consumer.group)
        stack.enter_context(consumer)
        channel = stack.enter_context(opened(RABBITMQ))
        eventually(lambda: consumer.health().is_ready, timeout=_BOUND)

        def journey() -> None:
            due = calls.total + 1
            channel.basic_publish(exchange, "journeys", body, _renewed(template))
            calls.wait_for(due)

        for _ in range(_WARM):
            journey()
        yield profile.count("RabbitMQ queue, handler with inbox, ack", journey)


def _renewed(properties: Any) -> Any:
    """Give the properties of an AMQP message a new id."""
    new = str(uuid.uuid4())
    properties.headers = {
        name: new if value == properties.message_id else value for name, value in properties.headers.items()
    }
    properties.message_id = new
    return properties


def to_kafka(profile: Profile) -> Iterator[Count]:
    """(d) An event that is published to Kafka, with kafka-python."""
    from cqrs_sync.integrations.kafka import KafkaBroker
    from tests.servers.kafka import Tansu

    with ExitStack() as stack:
        servers = os.environ.get("CQRS_TEST_KAFKA") or stack.enter_context(Tansu()).servers
        mediator = stack.enter_context(cqrs.bootstrap(source="tests", broker=KafkaBroker(servers), threads=2))
        for _ in range(_WARM):
            mediator.publish(Announced("ada"))
        yield profile.count("publish to Kafka", lambda: mediator.publish(Announced("ada")))


JOURNEYS = {"a": in_process, "b": through_an_outbox, "c": into_an_inbox, "d": to_kafka}


def counts_of(names: str) -> dict[str, Count]:
    """Count these journeys, one letter each."""
    profile = Profile()
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        return {name: count for name in names for count in JOURNEYS[name](profile)}
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.journeys", description=__doc__)
    parser.add_argument("journeys", nargs="?", default="abcd", help="their letters: abcd")
    parser.add_argument("--files", action="store_true", help="list the files")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    counts = counts_of(options.journeys)
    if options.json:
        print(json.dumps({name: attrs.asdict(count) for name, count in counts.items()}))
        return 0
    print(f"{'':4}{'journey':<42}{'files':>6}{'folders':>9}{'calls':>7}{'switches':>10}{'threads':>9}")
    for name, count in counts.items():
        numbers = f"{len(count.files):>6}{count.folders:>9}{count.calls:>7}{count.switches:>10}{count.threads:>9}"
        print(f"({name}) {count.title:<42}{numbers}")
        if options.files:
            print("".join(f"      {file}\n" for file in count.files), end="")
    for names, bar in BARS.items():
        if set(names) <= counts.keys():
            files = {file for name in names for file in counts[name].files}
            print(f"{'+'.join(f'({name})' for name in names)}: {len(files)} files, the bar is {bar}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
