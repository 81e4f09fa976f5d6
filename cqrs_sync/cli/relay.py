"""`relay`."""

from __future__ import annotations

import sys
from typing import Any

import click
from rich.text import Text

from cqrs_sync.cli.app import CannotBegin, application_of, relay_of
from cqrs_sync.cli.options import Duration
from cqrs_sync.cli.output import View, duration, screen_for, set_up_logs
from cqrs_sync.errors import ConfigurationError
from cqrs_sync.workers.relay import RelayOptions, RelayProcess
from cqrs_sync.workers.worker import Progress

_DURATION: dict[str, Any] = {"type": Duration(), "metavar": "DURATION"}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--publishers", type=click.IntRange(1, 64), default=2, show_default=True, help="Threads that publish.")
@click.option(
    "--poll",
    type=(Duration(), Duration()),
    default=(0.05, 4.0),
    show_default=True,
    metavar="FIRST LONGEST",
    help="Seconds between two looks: the first while there is work, up to the second while there is none.",
)
@click.option("--lease", default=30.0, show_default=True, help="How long a claim holds.", **_DURATION)
@click.option("--batch", type=click.IntRange(1), default=500, show_default=True, help="Messages in a claim, at most.")
@click.option("--grace", default=25.0, show_default=True, help="Time to finish in when told to stop.", **_DURATION)
@click.option("--drain", is_flag=True, help="Deliver what is due, and end.")
@click.option("--for", "lasts", help="End after this time; with --drain, at the latest.", **_DURATION)
@click.option("--purge-after", help="Delete delivered messages that are older, now and then: 12h, 7d.", **_DURATION)
@click.option("--every", default=60.0, show_default=True, help="Time between two reports in a log.", **_DURATION)
@click.option("--json", "as_json", is_flag=True, help="Report on standard output, a JSON object in a line.")
@click.pass_context
def relay(context: click.Context, /, poll: tuple[float, float], every: float, *, as_json: bool, **options: Any) -> None:
    """
    Deliver what the outbox keeps, until told to stop (SIGTERM, Ctrl-C).

    Any number of them may run, on any number of machines. A database or a broker that cannot be reached is
    waited for. When told to stop it finishes what is under way, within --grace; a second signal
    ends it at once, with status 128 and its number.

    Exit status: 0; 1 where something was not finished within the grace, or where --drain had to give up after --for; 2
    where the command was called wrongly.
    """
    found = relay_of(application_of(context))
    shortest, longest = poll
    if not 0 < shortest <= longest:
        raise CannotBegin("--poll takes two durations above 0, the longer one last")
    chosen = RelayOptions(shortest_poll=shortest, longest_poll=longest, **options)
    set_up_logs()
    screen = screen_for(_VIEW, as_json=as_json, every=max(every, 0.1))
    try:
        status = RelayProcess(found, chosen, screen).run()
    except ConfigurationError as error:
        raise CannotBegin(str(error)) from error
    finally:
        screen.close()
    sys.exit(status)


def _line(progress: Progress) -> Text:
    backlog = progress.backlog
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append("ending" if progress.is_ending else "relaying", "bold")
    line.append(f": {progress.delivered:,} delivered, {progress.per_second:,.0f}/s")
    if backlog is None:
        return line.append(", the outbox cannot be counted", "red")
    lag = "" if backlog.oldest is None else f", lag {duration(backlog.oldest)}"
    line.append(f"; {backlog.waiting:,} wait{lag}; ")
    return line.append(f"{backlog.dead:,} dead", "red" if backlog.dead else "")


def _facts(progress: Progress) -> dict[str, Any]:
    backlog = progress.backlog
    return {
        "state": "ended" if progress.has_ended else "ending" if progress.is_ending else "relaying",
        "delivered": progress.delivered,
        "per_second": round(progress.per_second, 1),
        "seconds": round(progress.seconds, 3),
        "waiting": None if backlog is None else backlog.waiting,
        "lag": None if backlog is None or backlog.oldest is None else round(backlog.oldest, 3),
        "dead": None if backlog is None else backlog.dead,
    }


_VIEW = View(_line, _facts, lambda progress: progress.has_ended)
