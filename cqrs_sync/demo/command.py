"""`demo`: a picture while it runs, a summary at the end."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from cqrs_sync.broker import ReceivingBroker
from cqrs_sync.cli.app import INTERRUPTED, InvalidCall
from cqrs_sync.demo.run import Check, DemoRun
from cqrs_sync.errors import ConfigurationError, CqrsError
from cqrs_sync.memory import MemoryBroker

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
