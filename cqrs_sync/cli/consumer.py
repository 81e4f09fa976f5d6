"""`consumer run`, `consumer lag` and `consumer dead …`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from cqrs_sync.broker import PREFETCH
from cqrs_sync.cli.app import (
    CHECK_FAILED,
    GROUP_OPTIONS,
    InvalidCall,
    application_of,
    check_consumer_options,
    errors_in_one_line,
    group_name,
    open_group,
    retry_arguments,
    warn_if_unknown,
)
from cqrs_sync.cli.dead_letters import GroupDeadLetters, dead_letter_commands
from cqrs_sync.cli.options import (
    HELP,
    CommandGroup,
    Size,
    duration_option,
    group_options,
    json_option,
    number_option,
    worker_options,
)
from cqrs_sync.cli.output import (
    ReportFormat,
    configure_logging,
    display_for,
    format_duration,
    print_json,
    print_line,
    print_table,
)
from cqrs_sync.consumer import Consumer, OnUnknownType
from cqrs_sync.workers.consumer import ConsumerOptions, ConsumerProgress, ConsumerWorker

#: Options that a Consumer of the application has itself.
_OF_CONSUMER = {*GROUP_OPTIONS, "concurrency", "prefetch", "on_unknown", "max_crashes", "circuit_threshold"}


@click.group(cls=CommandGroup, context_settings=HELP)
def consumer() -> None:
    """Handle messages of other services, show what waits for a group, deal with its dead letters."""


consumer.add_command(dead_letter_commands(GroupDeadLetters))


@consumer.command()
@group_options
@number_option("--concurrency", help="Messages that are handled at a time; the mediator's threads are the limit.")
@number_option("--prefetch", help="Messages in flight, at most. Default: 200.")
@click.option(
    "--on-unknown",
    type=click.Choice(["park", "ack", "dead-letter"]),
    help="What happens to messages of types that have no handler here. Default: park.",
)
@number_option("--max-crashes", help="Crashes after which a message is a dead letter. Default: 5.")
@number_option(
    "--circuit-threshold", help="Failures in a row after which the consumer tries one message at a time. Default: 10."
)
@worker_options
@number_option("--max-messages", help="Stop after so many messages.")
@click.option("--max-memory", type=Size(), metavar="SIZE", help="Stop if this process uses more memory: 512M, 2G.")
@duration_option("--stall", default=300.0, show_default=True, help="Exit with 1 if nothing is finished for so long.")
@duration_option("--purge-after", help="Delete receipts of the inbox that are older, every minute: 14d, 30d.")
@click.option(
    "--health-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A file that is renewed every few seconds while the consumer is alive.",
)
@click.option("--health-port", type=click.IntRange(0, 65535), help="Answer /live and /ready over HTTP.")
@click.option("--health-host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where to answer.")
@click.pass_context
def run(context: click.Context, /, every: float, *, as_json: bool, **options: Any) -> None:
    """
    Handle what other services publish, until SIGTERM or Ctrl-C.

    The application is a mediator with a broker, or a Consumer. Any number of processes of a group may run, on any
    number of machines. A consumer waits for a broker that cannot be reached. When it is told to stop it finishes what
    runs, within --grace, and gives back the rest; a second signal ends it at once, with status 128 plus the signal's
    number.

    Exit status: 0; 1 if something was not finished within the grace, or nothing made progress; 2 if the command was
    called wrongly, or the broker refuses what the group needs.
    """
    of_consumer = {name: options.pop(name) for name in _OF_CONSUMER}
    if options["stall"] <= 0:
        raise InvalidCall("--stall takes a duration above 0")
    if of_consumer["prefetch"] is None and options["max_messages"] is not None:
        # Messages that are given back at the end count as delivered once more.
        of_consumer["prefetch"] = min(PREFETCH, options["max_messages"])
    with errors_in_one_line():
        found = _make_consumer(context, of_consumer)
        configure_logging()
        display = display_for(_FORMAT, as_json=as_json, every=every)
        try:
            status = ConsumerWorker(found, ConsumerOptions(**options), display).run()
        finally:
            display.close()
    sys.exit(status)


def _make_consumer(context: click.Context, options: dict[str, Any]) -> Consumer:
    application = application_of(context)
    if (found := application.consumer()) is not None:
        check_consumer_options(context, application, found, _OF_CONSUMER)
        return found
    given = {name: value for name, value in options.items() if value is not None}
    if "on_unknown" in given:
        given["on_unknown"] = OnUnknownType(given["on_unknown"].replace("-", " "))
    retry = retry_arguments(given.pop("retry_delays", None), given.pop("inline_limit", None))
    mediator, group = application.mediator(), group_name(application, given.pop("group", None))
    return Consumer(mediator, group, **retry, **given)


@consumer.command()
@group_options
@click.option(
    "--max-waiting", "limit", type=click.IntRange(0), metavar="NUMBER", help="Exit with 1 if more messages wait."
)
@json_option
@click.pass_context
def lag(context: click.Context, /, limit: int | None, *, as_json: bool, **location: Any) -> None:
    """
    Show how many messages of a group are waiting, deferred and dead.

    Exit status: 0; 1 if more than --max-waiting wait; 2 if the command was called wrongly; 3 if the broker cannot be
    reached.
    """
    with open_group(context, **location) as (broker, group):
        backlog = broker.backlog(group)
        waiting = sum(backlog.waiting.values())
        if not (waiting or backlog.delayed or backlog.dead):
            warn_if_unknown(broker, group)
    exceeded = ["waiting"] if limit is not None and waiting > limit else []
    facts = {"group": group.name, "waiting": waiting, "delayed": backlog.delayed, "dead": backlog.dead}
    if as_json:
        print_json({**facts, "sources": dict(backlog.waiting), "exceeded": exceeded})
    else:
        print_line(f"{group.name}: {waiting:,} waiting, {backlog.delayed:,} delayed, {backlog.dead:,} dead")
        if exceeded:
            print_line(f"limit exceeded: more than {limit:,} waiting")
        if backlog.waiting:
            print_line()
            rows = [{"waiting": count, "source": source} for source, count in backlog.waiting.items()]
            print_table(("waiting", "source"), rows)
    sys.exit(CHECK_FAILED if exceeded else 0)


def _line(progress: ConsumerProgress) -> Text:
    health = progress.health
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(health.state, "bold")
    line.append(f": {health.handled:,} handled, {progress.per_second:,.0f}/s; {health.in_flight:,} in flight")
    if health.oldest is not None:
        line.append(f", {health.running:,} running, the oldest for {format_duration(health.oldest.seconds)}")
    line.append(f"; {health.delayed:,} delayed; ")
    line.append(f"{health.dead:,} dead", "red" if health.dead else "")
    if health.trouble and health.state != "stopped":
        line.append(f"; {health.trouble}", "red")
    return line


def _facts(progress: ConsumerProgress) -> dict[str, Any]:
    rates = {"per_second": round(progress.per_second, 1), "seconds": round(progress.seconds, 3)}
    return {**progress.health.facts(), **rates}


_FORMAT = ReportFormat(_line, _facts, lambda progress: progress.health.state == "stopped")
