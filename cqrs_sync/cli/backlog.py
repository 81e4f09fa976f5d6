"""`status`."""

from __future__ import annotations

import sys
from typing import Any

import click

from cqrs_sync.cli.application import NOT_WELL, reaching
from cqrs_sync.cli.durations import Duration
from cqrs_sync.cli.text import as_json as as_json_option
from cqrs_sync.cli.text import duration, print_json, print_table, say
from cqrs_sync.workers.desk import status_of


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@as_json_option
@click.option(
    "--max-lag",
    type=Duration(),
    metavar="DURATION",
    help="Exit with 1 where something has waited longer, such as 60s.",
)
@click.option(
    "--max-dead", type=click.IntRange(0), metavar="NUMBER", help="Exit with 1 where more deliveries are dead."
)
@click.pass_context
def status(context: click.Context, max_lag: float | None, max_dead: int | None, *, as_json: bool) -> None:
    """
    Show what waits, for how long, and what is dead.

    Exit status: 0; 1 where a limit is passed that was given; 2 where the command was called wrongly; 3 where the outbox
    cannot be reached, or its tables are missing.
    """
    with reaching(context) as outbox:
        backlog = outbox.backlog()
    facts = status_of(backlog)
    limits = (("lag", backlog.oldest or 0, max_lag), ("dead", backlog.dead, max_dead))
    passed = [what for what, value, limit in limits if limit is not None and value > limit]
    if as_json:
        print_json({**facts, "passed": passed})
    else:
        _show(facts, passed)
    sys.exit(NOT_WELL if passed else 0)


def _show(facts: dict[str, Any], passed: list[str]) -> None:
    lag = "" if facts["lag"] is None else f", the oldest for {duration(facts['lag'])}, since {facts['oldest']}"
    say(f"{facts['waiting']} wait{lag}; {facts['dead']} are dead")
    for what in passed:
        say(f"more than is allowed: {what}")
    if facts["targets"]:
        say()
        print_table(("kind", "target", "pending", "tried", "dead"), facts["targets"])
    if facts["dead_by_reason"]:
        say()
        rows = [{"dead": row["count"], "reason": row["reason"]} for row in facts["dead_by_reason"]]
        print_table(("dead", "reason"), rows)
