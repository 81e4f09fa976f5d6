"""`outbox status`, `outbox dead …` and `outbox purge`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from cqrs_sync.cli.app import CHECK_FAILED, application_of, errors_in_one_line, open_outbox, relay_of
from cqrs_sync.cli.bulk import BulkJob
from cqrs_sync.cli.dead_letters import OutboxDeadLetters, dead_letter_commands, rows_by_reason
from cqrs_sync.cli.options import HELP, CommandGroup, duration_option, json_option
from cqrs_sync.cli.output import counted, format_duration, print_json, print_line, print_table
from cqrs_sync.outbox import Backlog
from cqrs_sync.workers.purge import Purge, purge_of_receipts

#: Seconds that receipts are kept by default: longer than most brokers keep messages that could come again.
_RECEIPTS_KEPT = 30 * 86_400.0
_TARGET_COLUMNS = ("kind", "target", "pending", "tried", "dead")


@click.group(cls=CommandGroup, context_settings=HELP)
def outbox() -> None:
    """Show what waits in the outbox, deal with its dead letters, delete what is old."""


outbox.add_command(dead_letter_commands(OutboxDeadLetters))


@outbox.command()
@duration_option("--max-lag", help="Exit with 1 if a message has waited longer, such as 60s.")
@click.option("--max-dead", type=click.IntRange(0), metavar="NUMBER", help="Exit with 1 if more deliveries are dead.")
@json_option
@click.pass_context
def status(context: click.Context, max_lag: float | None, max_dead: int | None, *, as_json: bool) -> None:
    """
    Show how many deliveries wait, for how long, and how many are dead.

    Exit status: 0; 1 if a limit is exceeded; 2 if the command was called wrongly; 3 if the outbox cannot be reached, or
    its tables are missing.
    """
    with open_outbox(context) as store:
        backlog = store.backlog()
    limits = (("lag", backlog.oldest or 0, max_lag), ("dead", backlog.dead, max_dead))
    exceeded = [name for name, value, limit in limits if limit is not None and value > limit]
    facts = {**_facts_of(backlog), "exceeded": exceeded}
    if as_json:
        print_json(facts)
    else:
        _print_status(facts)
    sys.exit(CHECK_FAILED if exceeded else 0)


def _facts_of(backlog: Backlog) -> dict[str, Any]:
    # The date is by this machine's clock.
    oldest = None if backlog.oldest is None else datetime.now(UTC) - timedelta(seconds=backlog.oldest)
    return {
        "waiting": backlog.waiting,
        "dead": backlog.dead,
        "lag": None if backlog.oldest is None else round(backlog.oldest, 3),
        "oldest": None if oldest is None else oldest.isoformat(timespec="seconds"),
        "targets": [{name: getattr(target, name) for name in _TARGET_COLUMNS} for target in backlog.targets],
        "dead_by_reason": rows_by_reason(backlog.dead_by_reason),
    }


def _print_status(facts: dict[str, Any]) -> None:
    print_line(f"{facts['waiting']:,} waiting, {facts['dead']:,} dead")
    if facts["lag"] is not None:
        print_line(f"the oldest has waited {format_duration(facts['lag'])}, since {facts['oldest']}")
    for name in facts["exceeded"]:
        print_line(f"limit exceeded: {name}")
    if facts["targets"]:
        print_line()
        print_table(_TARGET_COLUMNS, facts["targets"])
    if facts["dead_by_reason"]:
        print_line()
        print_table(("count", "reason"), facts["dead_by_reason"])


@outbox.command()
@duration_option("--older-than", help="Delete delivered messages that are older: 12h or 7d.")
@duration_option(
    "--receipts-older-than", help="Delete receipts of the inbox that are older. Default: 30d; at least two days."
)
@json_option
@click.pass_context
def purge(
    context: click.Context, older_than: float | None, receipts_older_than: float | None, *, as_json: bool
) -> None:
    """
    Delete old delivered messages, and old receipts of the inbox if there is one, in small transactions.

    Messages that wait or are dead stay, however old they are. Without --older-than only receipts are deleted. If a
    message comes again after its receipt is gone, its handlers run again: keep receipts for longer than brokers keep
    messages.
    """
    if older_than is None and receipts_older_than is None:
        raise click.UsageError("say how old: --older-than, --receipts-older-than, or both")
    counts, job = {"message": 0, "receipt": 0}, BulkJob("purging")
    with errors_in_one_line():
        purges = _purges(context, older_than, receipts_older_than)
        for purge in purges:
            try:
                job = BulkJob(f"purging {purge.noun}s").run(purge.chunks(), None)
            finally:
                purge.release_connection()
            counts[purge.noun] = job.done
            if job.interrupted:
                break
    receipts = f", {counted(counts['receipt'], 'receipt')} purged" if purges[-1].noun == "receipt" else ""
    facts = {"purged": counts["message"], "receipts": counts["receipt"]}
    job.finish(facts, f"{counted(counts['message'], 'message')} purged{receipts}", as_json=as_json)


def _purges(context: click.Context, older_than: float | None, receipts_older_than: float | None) -> list[Purge]:
    """Return what to purge, in this order. Raises ConfigurationError if receipts would be deleted too early."""
    application = application_of(context)
    consumer, mediator = application.consumer(), application.mediator()
    purges = []
    if older_than is not None:
        purges.append(Purge(relay_of(application).outbox, older_than, "message"))
    if receipts_older_than is not None or mediator.wiring.inbox is not None:
        kept = _RECEIPTS_KEPT if receipts_older_than is None else receipts_older_than
        purges.append(purge_of_receipts(mediator, kept, () if consumer is None else consumer.group.delays))
    return purges
