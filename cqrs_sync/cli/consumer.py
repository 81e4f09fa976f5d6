"""`consume`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from cqrs_sync.broker import PREFETCH
from cqrs_sync.cli.app import (
    CannotBegin,
    application_of,
    check_that_nothing_contradicts,
    group_options,
    name_of_group,
    retry_options,
)
from cqrs_sync.cli.options import Duration, Size
from cqrs_sync.cli.output import View, duration, screen_for, set_up_logs
from cqrs_sync.consumer import Consumer, OnUnknownType
from cqrs_sync.errors import ConfigurationError
from cqrs_sync.workers.consumer import ConsumeOptions, ConsumerProcess, Consuming

_DURATION: dict[str, Any] = {"type": Duration(), "metavar": "DURATION"}
_NUMBER: dict[str, Any] = {"type": click.IntRange(1), "metavar": "NUMBER"}
#: What a Consumer of the application says itself.
_OF_CONSUMER = {
    *("group", "topics", "retry_delays", "inline_limit", "ordered", "concurrency", "prefetch"),
    *("on_unknown", "crashes", "outage_after"),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@group_options
@click.option(
    "--concurrency", help="Messages that are handled at a time; the mediator's threads are the limit.", **_NUMBER
)
@click.option("--prefetch", help="Messages in hand at a time, at most: 200 unless told otherwise.", **_NUMBER)
@click.option(
    "--on-unknown",
    type=click.Choice(["park", "ack", "dead-letter"]),
    help="What happens to messages of types that are not bound here. Default: park.",
)
@click.option(
    "--crashes",
    help="Processes that may die of a message until it is a dead letter: 5 unless told otherwise.",
    **_NUMBER,
)
@click.option(
    "--outage-after", help="Failures in a row until one at a time is tried: 10 unless told otherwise.", **_NUMBER
)
@click.option("--grace", default=25.0, show_default=True, help="Time to finish in when told to stop.", **_DURATION)
@click.option("--for", "lasts", help="End after this time.", **_DURATION)
@click.option("--max-messages", help="End after so many messages.", **_NUMBER)
@click.option("--max-memory", type=Size(), metavar="SIZE", help="End where this process takes more memory: 512M, 2G.")
@click.option(
    "--stall", default=300.0, show_default=True, help="Exit with 1 where nothing is finished for so long.", **_DURATION
)
@click.option("--purge-after", help="Forget receipts of the inbox that are older, now and then: 14d, 30d.", **_DURATION)
@click.option(
    "--health-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A file that is there, and renewed, while it is well.",
)
@click.option("--health-port", type=click.IntRange(0, 65535), help="Answer /live and /ready over HTTP.")
@click.option("--health-host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where to answer.")
@click.option("--every", default=60.0, show_default=True, help="Time between two reports in a log.", **_DURATION)
@click.option("--json", "as_json", is_flag=True, help="Report on standard output, a JSON object in a line.")
@click.pass_context
def consume(context: click.Context, /, every: float, *, as_json: bool, **options: Any) -> None:
    """
    Handle what other services publish, until told to stop (SIGTERM, Ctrl-C).

    The application is a mediator with a broker, or a Consumer. Any number of processes of a group may run, on any
    number of machines. A broker that cannot be reached is waited for. When told to stop it finishes what runs, within
    --grace, and gives back the rest; a second signal ends it at once, with status 128 and its number.

    Exit status: 0; 1 where something was not finished within the grace, or made no progress; 2 where the command was
    called wrongly, or the broker refuses what the group needs.
    """
    of_consumer = {name: options.pop(name) for name in _OF_CONSUMER}
    if options["stall"] <= 0:
        raise CannotBegin("--stall takes a duration above 0")
    if of_consumer["prefetch"] is None and options["max_messages"] is not None:
        # What was in hand and is given back at the end counts as delivered.
        of_consumer["prefetch"] = min(PREFETCH, options["max_messages"])
    try:
        consumer = _consumer(context, of_consumer)
        set_up_logs()
        screen = screen_for(_VIEW, as_json=as_json, every=max(every, 0.1))
        try:
            status = ConsumerProcess(consumer, ConsumeOptions(**options), screen).run()
        finally:
            screen.close()
    except ConfigurationError as error:
        raise CannotBegin(str(error)) from error
    sys.exit(status)


def _consumer(context: click.Context, options: dict[str, Any]) -> Consumer:
    found = application_of(context)
    if isinstance(found, Consumer):
        check_that_nothing_contradicts(context, found, _OF_CONSUMER)
        return found
    chosen = {name: value for name, value in options.items() if value is not None}
    if "on_unknown" in chosen:
        chosen["on_unknown"] = OnUnknownType(chosen["on_unknown"].replace("-", " "))
    group = name_of_group(context, chosen.pop("group", None))
    retry = retry_options(chosen.pop("retry_delays", None), chosen.pop("inline_limit", None))
    return Consumer(found, group, **retry, **chosen)


def _line(progress: Consuming) -> Text:
    vitals = progress.vitals
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(vitals.state, "bold")
    line.append(f": {vitals.handled:,} handled, {progress.per_second:,.0f}/s; {vitals.in_hand:,} in hand")
    if vitals.oldest is not None:
        line.append(f", {vitals.running:,} run, the oldest for {duration(vitals.oldest.seconds)}")
    line.append(f"; {vitals.delayed:,} delayed; ")
    line.append(f"{vitals.dead:,} dead", "red" if vitals.dead else "")
    return line.append(f"; {vitals.trouble}", "red") if vitals.trouble and vitals.state != "ended" else line


def _facts(progress: Consuming) -> dict[str, Any]:
    return {
        **progress.vitals.facts(),
        "per_second": round(progress.per_second, 1),
        "seconds": round(progress.seconds, 3),
    }


_VIEW = View(_line, _facts, lambda progress: progress.vitals.state == "ended")
