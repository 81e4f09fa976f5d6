"""`relay`: a process that delivers what the outbox keeps."""

from __future__ import annotations

import sys
from typing import Any

import click
from rich.text import Text

from cqrs_sync.cli.app import InvalidCall, application_of, errors_in_one_line, relay_of
from cqrs_sync.cli.options import HELP, CommandWithHints, Duration, duration_option, worker_options
from cqrs_sync.cli.output import ReportFormat, configure_logging, display_for, format_duration
from cqrs_sync.workers.relay import RelayOptions, RelayProgress, RelayWorker


@click.command(cls=CommandWithHints, context_settings=HELP)
@click.option("--publishers", type=click.IntRange(1, 64), default=2, show_default=True, help="Threads that publish.")
@click.option(
    "--poll",
    type=(Duration(), Duration()),
    default=(0.05, 4.0),
    show_default=True,
    metavar="FIRST LONGEST",
    help="Seconds between two polls: FIRST while there is work, up to LONGEST while there is none.",
)
@duration_option("--lease", default=30.0, show_default=True, help="How long a claim lasts.")
@click.option("--batch", type=click.IntRange(1), default=500, show_default=True, help="Messages per claim, at most.")
@click.option("--drain", is_flag=True, help="Deliver what is due, then stop; at the latest after --stop-after.")
@duration_option("--purge-after", help="Delete delivered messages that are older, every minute: 12h, 7d.")
@worker_options
@click.pass_context
def relay(context: click.Context, /, poll: tuple[float, float], every: float, *, as_json: bool, **options: Any) -> None:
    """
    Deliver what the outbox keeps, until SIGTERM or Ctrl-C.

    Any number of relays may run, on any number of machines. A relay waits for a database or a broker that cannot be
    reached. When it is told to stop it finishes what is in flight, within --grace; a second signal ends it at once,
    with status 128 plus the signal's number.

    Exit status: 0; 1 if something was not finished within the grace, or if --drain gave up after --stop-after; 2 if
    the command was called wrongly.
    """
    found = relay_of(application_of(context))
    shortest, longest = poll
    if not 0 < shortest <= longest:
        raise InvalidCall("--poll takes two durations above 0, the longer one last")
    configure_logging()
    display = display_for(_FORMAT, as_json=as_json, every=every)
    try:
        with errors_in_one_line():
            status = RelayWorker(found, RelayOptions(poll=poll, **options), display).run()
    finally:
        display.close()
    sys.exit(status)


def _line(progress: RelayProgress) -> Text:
    backlog = progress.backlog
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append("stopping" if progress.state == "stopping" else "relaying", "bold")
    line.append(f": {progress.delivered:,} delivered, {progress.per_second:,.0f}/s; ")
    if backlog is None:
        return line.append("the outbox cannot be counted", "red")
    lag = "" if backlog.oldest is None else f", lag {format_duration(backlog.oldest)}"
    line.append(f"{backlog.waiting:,} waiting{lag}; ")
    return line.append(f"{backlog.dead:,} dead", "red" if backlog.dead else "")


def _facts(progress: RelayProgress) -> dict[str, Any]:
    backlog = progress.backlog
    return {
        "state": progress.state,
        "delivered": progress.delivered,
        "per_second": round(progress.per_second, 1),
        "seconds": round(progress.seconds, 3),
        "waiting": None if backlog is None else backlog.waiting,
        "lag": None if backlog is None or backlog.oldest is None else round(backlog.oldest, 3),
        "dead": None if backlog is None else backlog.dead,
    }


_FORMAT = ReportFormat(_line, _facts, lambda progress: progress.state == "stopped")
