"""`demo`."""

from __future__ import annotations

import io
import logging
import os
import sys

import click
from rich.console import Console, RenderableType

from cqrs_sync.broker import ReceivingBroker
from cqrs_sync.cli.app import INTERRUPTED, CannotBegin
from cqrs_sync.demo.brokers import address_of, open_broker
from cqrs_sync.demo.playing import Plan, Play
from cqrs_sync.demo.screens import LivePicture, PlainLog, summary_of
from cqrs_sync.demo.summary import add_up
from cqrs_sync.errors import ConfigurationError, CqrsError

#: Columns of a log, which has no edge.
_LOG_WIDTH = 100


@click.command()
@click.option(
    "--broker",
    "url",
    default="memory",
    show_default=True,
    metavar="URL",
    help="memory, amqp://user:password@host:5672/ or kafka://host:9092.",
)
@click.option(
    "--events", type=click.IntRange(1), default=1000, show_default=True, help="How many notification events to publish."
)
@click.option(
    "--pool",
    type=click.IntRange(0),
    default=8,
    show_default=True,
    help="Threads for event handlers; 0 runs them where the command was sent.",
)
@click.option("--senders", type=click.IntRange(1), default=4, show_default=True, help="Threads that send commands.")
@click.option("--topic", metavar="NAME", help="A topic that exists, for brokers that make none when they are asked.")
@click.option("--plain", is_flag=True, help="Write a log instead of drawing a picture.")
def demo(url: str, events: int, pool: int, senders: int, topic: str | None, *, plain: bool) -> None:
    """
    Play an example: users join meetings.

    Commands go in, their events are handled on a thread pool, notification events
    are confirmed by the broker and consumed again into a read model.

    Exit status: 0 where every number adds up, 1 where one does not, 2 where the
    demo cannot begin.
    """
    _silence_logs()
    plan = Plan(events=events, pool=pool, senders=senders, existing_topic=topic)
    sys.exit(perform(plan, _opened(url), address_of(url), console=_console(plain=plain)))


def perform(plan: Plan, broker: ReceivingBroker, address: str, *, console: Console) -> int:
    """Play the demo and return the exit status. Raises CannotBegin where the broker cannot be reached."""
    play = Play(plan, broker)
    try:
        with LivePicture(console, plan, address) if console.is_terminal else PlainLog(console, plan, address) as screen:
            outcome = play.perform(screen)
    except CqrsError as error:
        raise CannotBegin(f"{address} cannot be used: {error}") from error
    except KeyboardInterrupt:
        so_far = play.ledger.snapshot()
        counts = f"{so_far.answered} commands were answered, {so_far.confirmed} events confirmed"
        click.echo(f"Interrupted: {counts}, {so_far.consumed} consumed.", err=True)
        return INTERRUPTED
    checks = add_up(outcome)
    _print(summary_of(outcome, checks, address, console.width), console)
    return 1 if any(check.wrong for check in checks) else 0


def _print(drawn: RenderableType, console: Console) -> None:
    """Print without the spaces that fill lines up."""
    with console.capture() as captured:
        console.print(drawn)
    for line in captured.get().splitlines():
        click.echo(line.rstrip(), file=console.file, color=True)


def _opened(url: str) -> ReceivingBroker:
    try:
        return open_broker(url)
    except (ValueError, ConfigurationError, ImportError) as error:
        raise CannotBegin(f"--broker: {error}") from error


def _console(*, plain: bool) -> Console:
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal without Unicode gets a question mark, not a traceback.
        sys.stdout.reconfigure(errors="replace")
    live = not plain and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    if live:
        return Console(highlight=False, force_terminal=True)
    return Console(highlight=False, force_terminal=False, color_system=None, width=_LOG_WIDTH)


def _silence_logs() -> None:
    """Keep clients of brokers from writing into the picture: what matters is in the summary."""
    logging.getLogger().addHandler(logging.NullHandler())
