"""`status`."""

from __future__ import annotations

import sys
from typing import Any

import click

from cqrs_sync.cli.app import (
    NOT_WELL,
    application_of,
    mediator_of,
    reaching,
    relay_of,
    told_in_a_line,
)
from cqrs_sync.cli.bulk import Work
from cqrs_sync.cli.options import Duration
from cqrs_sync.cli.output import as_json as as_json_option
from cqrs_sync.cli.output import duration, print_json, print_table, say
from cqrs_sync.consumer import Consumer
from cqrs_sync.workers.desk import status_of
from cqrs_sync.workers.purge import Purging, purging_receipts


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


#: Seconds that receipts are kept where nobody says: longer than most brokers keep what could come again.
_KEPT = 30 * 86_400.0


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--older-than", type=Duration(), metavar="DURATION", help="Messages: 12h or 7d, younger ones stay.")
@click.option(
    "--receipts-older-than",
    type=Duration(),
    metavar="DURATION",
    help="Receipts of the inbox: 30d unless told otherwise, two days at least.",
)
@as_json_option
@click.pass_context
def purge(
    context: click.Context, older_than: float | None, receipts_older_than: float | None, *, as_json: bool
) -> None:
    """
    Delete messages that were delivered, and receipts of the inbox where there is one, in small transactions.

    Messages that wait or are dead stay, however old they are. Without --older-than receipts alone are deleted. What
    comes again when its receipt is gone is done again: keep receipts for longer than brokers keep messages.
    """
    if older_than is None and receipts_older_than is None:
        raise click.UsageError("say how old: --older-than, --receipts-older-than, or both")
    counts, work = {"messages": 0, "receipts": 0}, Work("purging")
    with told_in_a_line():
        rounds = _rounds(context, older_than, receipts_older_than)
        for name, purging in rounds.items():
            try:
                work = Work(f"purging {name}").through(purging.chunks(), None)
            finally:
                purging.release_connection()
            counts[name] = work.done
            if work.interrupted:
                break
    receipts = f", and {counts['receipts']} receipt(s)" if "receipts" in rounds else ""
    facts = {"purged": counts["messages"], "receipts": counts["receipts"]}
    work.tell(facts, f"{counts['messages']} purged{receipts}", as_json=as_json)


def _rounds(context: click.Context, older_than: float | None, receipts_older_than: float | None) -> dict[str, Purging]:
    """Return what is to be purged, by its name. Raises ConfigurationError for what cannot be."""
    found = application_of(context)
    mediator, delays = mediator_of(found), found.group.delays if isinstance(found, Consumer) else ()
    rounds = {}
    if older_than is not None:
        rounds["messages"] = Purging(relay_of(found).outbox, older_than, "message")
    if receipts_older_than is not None or mediator.wiring.inbox is not None:
        kept = _KEPT if receipts_older_than is None else receipts_older_than
        rounds["receipts"] = purging_receipts(mediator, kept, delays)
    return rounds
