"""`purge`."""

from __future__ import annotations

import sys

import click

from cqrs_sync.commands.application import INTERRUPTED, reaching
from cqrs_sync.commands.chunks import Work
from cqrs_sync.commands.durations import Duration
from cqrs_sync.commands.text import as_json as as_json_option
from cqrs_sync.commands.text import print_json
from cqrs_sync.workers.desk import purged


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--older-than", type=Duration(), required=True, metavar="DURATION", help="Such as 12h or 7d: younger ones stay."
)
@as_json_option
@click.pass_context
def purge(context: click.Context, older_than: float, *, as_json: bool) -> None:
    """
    Delete messages that were delivered, in small transactions.

    What waits or is dead stays, however old it is.
    """
    with reaching(context) as outbox:
        work = Work("purging").through(purged(outbox, older_than), None)
    if as_json:
        print_json({"purged": work.done, "interrupted": work.interrupted})
    else:
        click.echo(f"{work.done} purged{', then interrupted' if work.interrupted else ''}")
    if work.interrupted:
        sys.exit(INTERRUPTED)
