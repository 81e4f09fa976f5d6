"""`demo`: threads send commands, the caller receives, each number is counted twice, and pictures show all that."""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import attrs
import click
import punq
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

import cqrs_sync as cqrs
from cqrs_sync.broker import ReceivingBroker, Subscription
from cqrs_sync.cli.app import INTERRUPTED, InvalidCall
from cqrs_sync.demo import meetings
from cqrs_sync.errors import ConfigurationError, CqrsError
from cqrs_sync.memory import MemoryBroker
from cqrs_sync.middleware import CallNext

_SENDERS, _MEETINGS = 4, [f"meeting-{number}" for number in range(10)]
#: Seconds without a message after which none is on its way, and seconds to close in.
_QUIET, _CLOSE = 0.25, 5.0


@attrs.define
class HandlerRuns:
    """What one handler has done."""

    runs: int = 0
    failed: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    threads: set[str] = attrs.field(factory=set)


@attrs.frozen
class Check:
    """Counts that must be equal, and what is wrong with them."""

    title: str
    sum: str
    wrong: Sequence[str]


class DemoRun:
    """
    Plays the example once. Any thread may read the counts meanwhile.

    `patience` is how many seconds `play` waits for a message that does not arrive.
    """

    def __init__(self, broker: ReceivingBroker, events: int, *, topic: str | None = None, patience: float = 15) -> None:
        self.events = events
        self.sent = self.answered = self.failed = self.consumed = 0
        self.raised: set[str] = set()
        self.confirmed: set[str] = set()
        self.handlers: dict[str, HandlerRuns] = {}
        self.last_failure: str = ""
        self.began: float = time.monotonic()
        self.ended: float = self.began
        self._copies: Counter[str] = Counter()
        self._problems: list[str] = []
        self._name = uuid.uuid4().hex[:8]
        # A topic of its own: runs do not receive each other's messages.
        self._topic = topic or f"meetings-{self._name}"
        self._broker, self._patience = broker, patience
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._participants = meetings.Participants()
        container = punq.Container()
        container.register(meetings.Participants, instance=self._participants)
        container.register(meetings.Directory, instance=meetings.Directory())
        self._meetings = cqrs.bootstrap(
            self._counted(cqrs.RequestMap(), meetings.requests),
            self._counted(cqrs.EventMap(), meetings.events),
            source="meetings",
            container=container,
            broker=broker,
            threads=8,
            middleware=cqrs.MiddlewareChain().add(self._count_published, cqrs.OutgoingMessage),
        )
        self._directory = cqrs.bootstrap(
            meetings.directory_requests,
            self._counted(cqrs.EventMap(), meetings.directory_events),
            container=container,
            threads=cqrs.SameThread(),
        )

    def play(self, log: Callable[[str], object] = lambda _: None) -> None:
        """
        Send all commands, receive all messages, and close the broker; `log` gets the progress once a second.

        Raises CqrsError if the broker cannot be reached. What goes wrong later is in `checks`.
        """
        senders = [threading.Thread(target=self._send, args=(number,), daemon=True) for number in range(_SENDERS)]
        try:
            # First of all: a broker may refuse messages while there is no queue for them.
            with self._broker.subscribe(cqrs.Group(f"demo-{self._name}", [self._topic])) as subscription:
                self.began = time.monotonic()
                for sender in senders:
                    sender.start()
                self._receive(subscription, senders, log)
        finally:
            self._stopped.set()
            for sender in senders:
                if sender.ident is not None:
                    sender.join(_CLOSE)
            self._meetings.close(_CLOSE)

    def progress(self) -> str:
        """Say how far it is."""
        counts = f"{self.answered} of {self.events} commands answered, {len(self.confirmed)} events confirmed"
        return f"{counts}, {self.consumed} consumed"

    def checks(self) -> Sequence[Check]:
        """Compare each count with one that was made elsewhere."""
        planned, off = self.events, self.events // meetings.SWITCHED_OFF
        runs = sum(each.runs for name, each in self.handlers.items() if name != "add_to_directory")
        copies = Counter(dict.fromkeys(self.raised, 1))
        joined = _pairs(self._participants.users_in)
        listed = _pairs(lambda meeting: self._directory.send(meetings.ListParticipants(meeting)))
        counts = {"raised": len(self.raised), "confirmed": len(self.confirmed), "consumed": self.consumed}
        return [
            _check("commands", planned, {"sent": self.sent, "responses": self.answered}),
            _check("handlers", 3 * planned, {"due": 3 * planned, "runs": runs}),
            _check("failures", off, {"of text_the_user": self.failed, "phones switched off": off}, self._problems),
            _compare("messages", planned, counts, copies, self._copies),
            _compare("read model", planned, {"joined": joined.total(), "listed": listed.total()}, joined, listed),
        ]

    def _counted(self, target: Any, source: Any) -> Any:
        for binding in source:
            runs = self.handlers.setdefault(binding.handler.__name__, HandlerRuns())
            target.bind(binding.message_type, self._counting(binding.handler, runs))
        return target

    def _counting(self, handler: Callable[..., Any], runs: HandlerRuns) -> Callable[..., Any]:
        @functools.wraps(handler)
        def call(message: Any, **services: Any) -> Any:
            begun, failed = time.monotonic(), True
            try:
                answer = handler(message, **services)
                failed = False
                return answer
            finally:
                with self._lock:
                    self.ended = time.monotonic()
                    runs.runs += 1
                    runs.failed += failed
                    runs.seconds += self.ended - begun
                    runs.longest = max(runs.longest, self.ended - begun)
                    runs.threads.add(threading.current_thread().name)

        return call

    def _count_published(self, messages: Sequence[cqrs.OutgoingMessage], call_next: CallNext, /) -> Any:
        ids = {message.id for message in messages}
        with self._lock:
            self.raised |= ids
        published = call_next(tuple(attrs.evolve(message, topic=self._topic) for message in messages))
        with self._lock:
            self.confirmed |= ids
        return published

    def _send(self, first: int) -> None:
        for number in range(first, self.events, _SENDERS):
            if self._stopped.is_set():
                return
            with self._lock:
                self.sent += 1
            failures: list[BaseException] = []
            try:
                self._meetings.send(meetings.JoinMeeting(f"user-{number + 1:04}", _MEETINGS[number % 10]))
                answered = True
            except cqrs.EventsFailed as error:
                # The user is in the meeting all the same: the error has the response.
                failures, answered = [failure.error for failure in error.failures], error.response is not None
            except Exception as error:  # noqa: BLE001 -- the summary shows it
                failures, answered = [error], False
            with self._lock:
                self.answered += answered
                for failure in failures:
                    if isinstance(failure, meetings.PhoneSwitchedOff):
                        self.failed, self.last_failure = self.failed + 1, str(failure)
                    else:
                        self._problems.append(f"not planned: {failure}")
                        self._stopped.set()

    def _receive(
        self, subscription: Subscription, senders: list[threading.Thread], log: Callable[[str], object]
    ) -> None:
        """Handle messages until all have arrived, or none has for `patience` seconds."""
        until, next_log = 0.0, 0.0
        while True:
            if time.monotonic() >= next_log:
                next_log = time.monotonic() + 1
                log(self.progress())
            sending = any(sender.is_alive() for sender in senders)
            delivery = None
            try:
                delivery = subscription.receive(timeout=_QUIET)
                if delivery is not None:
                    self._directory.receive(delivery.message)
                    delivery.ack()
                    self.consumed += 1
                    self._copies[delivery.message.attributes["id"]] += 1
            except cqrs.BrokerUnavailable:
                # It may come back.
                threading.Event().wait(_QUIET)
            except Exception as error:  # noqa: BLE001 -- the summary shows it
                self._problems.append(f"the consumer stopped: {error}")
                return
            if sending or delivery is not None:
                until = time.monotonic() + self._patience
            elif not self.confirmed - self._copies.keys() or time.monotonic() > until:
                return


def _pairs(users_in: Callable[[str], Sequence[str]]) -> Counter[str]:
    return Counter(f"{user} in {meeting}" for meeting in _MEETINGS for user in users_in(meeting))


def _check(title: str, planned: int, counts: Mapping[str, int], problems: Iterable[str] = ()) -> Check:
    text, before = "", None
    for label, count in counts.items():
        text += ("" if before is None else " = " if count == before else " != ") + f"{count} {label}"
        before = count
    wrong = [f"{count} {label}, not {planned}" for label, count in counts.items() if count != planned]
    return Check(title, text, [*wrong, *problems])


def _compare(title: str, planned: int, counts: Mapping[str, int], due: Counter[str], found: Counter[str]) -> Check:
    lost, doubled = sorted((due - found).elements()), sorted((found - due).elements())
    problems = [*(f"lost: {each}" for each in lost), *(f"doubled: {each}" for each in doubled)]
    check = _check(title, planned, counts, problems)
    return attrs.evolve(check, sum=f"{check.sum}, {len(lost)} lost, {len(doubled)} doubled")


_URLS = "memory, amqp://user:password@host:5672/ or kafka://host:9092"


@click.command(context_settings={"show_default": True})
@click.option("--broker", "url", default="memory", metavar="URL", help=f"{_URLS}.")
@click.option("--events", type=click.IntRange(1), default=1000, help="How many commands to send.")
@click.option("--topic", metavar="NAME", help="A topic that exists, for brokers that do not create topics.")
@click.option("--plain", is_flag=True, help="Write a log instead of a picture.")
def demo(url: str, events: int, topic: str | None, *, plain: bool) -> None:
    """
    Play an example: users join meetings.

    Commands are sent, event handlers run on a thread pool, and notification events go through the broker into
    a read model.

    Exit status: 0 if all numbers add up, 1 if one does not, 2 if the demo cannot start.
    """
    # What matters is in the summary. Logs of the brokers' clients would tear the picture.
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        title = f"demo on {address_of(url)}"
        run = DemoRun(broker_of(url), events, topic=topic)
    except (ValueError, ConfigurationError, ImportError) as error:
        raise InvalidCall(f"--broker: {error}") from error
    plain = plain or not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb"
    options = {"force_terminal": False, "color_system": None, "width": 100} if plain else {}
    sys.exit(perform(run, title, Console(highlight=False, **options)))  # type: ignore[arg-type]


def perform(run: DemoRun, title: str, console: Console) -> int:
    """Play, show it, and return the exit status. Raises InvalidCall if the broker cannot be reached."""
    try:
        if console.is_terminal:
            with Live(console=console, transient=True, get_renderable=lambda: picture(run, title)):
                run.play()
        else:
            run.play(console.print)
    except CqrsError as error:
        raise InvalidCall(f"{title}: {error}") from error
    except KeyboardInterrupt:
        click.echo(f"Interrupted: {run.progress()}.", err=True)
        return INTERRUPTED
    checks = run.checks()
    console.print(summary(run, checks, title))
    return 1 if any(check.wrong for check in checks) else 0


def broker_of(url: str) -> ReceivingBroker:
    """Make the broker of a URL. Raises ValueError, ConfigurationError, or ImportError where its extra is missing."""
    if url == "memory":
        return MemoryBroker()
    match url.partition("://")[0]:
        case "amqp" | "amqps":
            from cqrs_sync.integrations.rabbitmq import RabbitMQBroker  # noqa: PLC0415 -- optional

            # RabbitMQ deletes the queues of a run a minute after its end.
            return RabbitMQBroker(url, exchange="cqrs-demo", queue_arguments={"x-expires": 60_000})
        case "kafka" | "kafkas":
            from cqrs_sync.integrations.kafka import KafkaBroker  # noqa: PLC0415 -- optional

            # Some brokers let a new group wait for half a session.
            return KafkaBroker(url, consumer_config={"session_timeout_ms": 6000, "heartbeat_interval_ms": 2000})
    raise ValueError(f"choose {_URLS}")


def address_of(url: str) -> str:
    """Return the URL without user and password. Raises ValueError where they cannot be told apart."""
    parts = urlsplit(url)
    if "@" in url and "@" not in parts.netloc:
        raise ValueError("write special characters in user and password as %XX, a slash as %2F")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else url


def picture(run: DemoRun, title: str) -> RenderableType:
    """Draw the counts of this moment."""
    bars = Table.grid("", Column(ratio=1), Column(justify="right"), padding=(0, 1), expand=True)
    for label, count in (("answered", run.answered), ("confirmed", len(run.confirmed)), ("consumed", run.consumed)):
        bars.add_row(label, ProgressBar(total=run.events, completed=count), f"{count}/{run.events}")
    failure = f"text_the_user fails on purpose: {run.last_failure}" if run.last_failure else ""
    return Group("", _heading(run, title), "", bars, "", _handlers(run), "", Text(failure, "yellow"))


def summary(run: DemoRun, checks: Sequence[Check], title: str) -> RenderableType:
    """Draw the end: what each handler did, and whether it adds up."""
    sums = Table.grid(padding=(0, 2, 0, 0))
    for check in checks:
        sums.add_row(Text("no", "bold red") if check.wrong else Text("ok", "green"), check.title, check.sum)
        for wrong in check.wrong[:3]:
            sums.add_row("", "", Text(wrong, "red"))
    verdict = Text("It adds up: nothing lost, nothing doubled.", "bold green")
    if any(check.wrong for check in checks):
        verdict = Text("It does not add up.", "bold red")
    heading = Text(f"{title}, {run.ended - run.began:.1f} s", "bold")
    return Group(
        "", heading, "", _handlers(run), "", sums, "", verdict, "The code that ran: cqrs_sync/demo/meetings.py"
    )


def _heading(run: DemoRun, title: str) -> RenderableType:
    return Text(f"{title}, {run.ended - run.began:.1f} s", "bold")


def _handlers(run: DemoRun) -> RenderableType:
    table = Table("handler", "runs", "failed", "mean", "longest", "threads", box=None, pad_edge=False)
    for name, handler in run.handlers.items():
        times = [f"{1000 * time:.1f} ms" for time in (handler.seconds / max(handler.runs, 1), handler.longest)]
        table.add_row(name, str(handler.runs), str(handler.failed), *times, str(len(handler.threads)))
    return table
