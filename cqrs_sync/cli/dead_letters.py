"""`dead list`, `show`, `replay` and `purge`."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from cqrs_sync.cli.app import NOT_WELL, reaching
from cqrs_sync.cli.bulk import (
    Work,
    changes,
    check_that_it_is_meant,
    confirm,
    rate_option,
    tell_how_a_reason_is_written,
)
from cqrs_sync.cli.output import as_json as as_json_option
from cqrs_sync.cli.output import escaped, print_json, print_table, say, tell
from cqrs_sync.outbox import Outbox, Selection
from cqrs_sync.workers.desk import CHUNK, count_of, dead_of, in_chunks, status_of

#: Characters of a body that are shown.
_BODY = 2000
#: What a database may number.
_NUMBER = click.IntRange(1, 2**63 - 1)
_COLUMNS = ("number", "target", "type", "key", "attempts", "age", "reason")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def dead() -> None:
    """Look at what was given up, try it again, or delete it."""


_reason = click.option("--reason", metavar="TEXT", help="Only those that failed for this reason, as `list` shows it.")
_target = click.option("--target", metavar="NAME", help="Only those for this topic or durable handler.")


@dead.command("list")
@_reason
@_target
@click.option("--by-reason", is_flag=True, help="Count them all for each reason.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Show so many.")
@as_json_option
@click.pass_context
def list_dead(
    context: click.Context, reason: str | None, target: str | None, limit: int, *, by_reason: bool, as_json: bool
) -> None:
    """List dead deliveries, oldest first."""
    if by_reason and (reason is not None or target is not None):
        raise click.UsageError("--by-reason counts them all: leave out --reason and --target")
    with reaching(context) as outbox:
        facts = status_of(outbox.backlog())
        found = [] if by_reason else outbox.dead(Selection(reason=reason, target=target), limit=limit)
    rows = [dead_of(each) for each in found]
    if as_json:
        listed = {"dead_by_reason": facts["dead_by_reason"]} if by_reason else {"dead": rows}
        print_json({**listed, "total": facts["dead"]})
    elif by_reason:
        print_table(("count", "reason"), facts["dead_by_reason"])
    else:
        print_table(_COLUMNS, rows)
        if len(rows) == limit:
            say(f"there may be more: --limit shows others than these {limit}, {facts['dead']} are dead")


@dead.command()
@click.argument("number", type=_NUMBER)
@click.option("--body", is_flag=True, help="Show the message itself as well; it may hold what is nobody's business.")
@as_json_option
@click.pass_context
def show(context: click.Context, number: int, *, body: bool, as_json: bool) -> None:
    """
    Show all that is known of one dead delivery.

    Exit status 1 where no dead delivery has this number.
    """
    with reaching(context) as outbox:
        found = outbox.dead(Selection(numbers=(number,)), limit=1)
    if not found:
        click.echo(f"Error: no dead delivery has the number {number}", err=True)
        sys.exit(NOT_WELL)
    facts = dead_of(found[0], body=body)
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        say(f"{name:<12}{escaped(value, _BODY)}")


def _chosen(numbers: tuple[int, ...], reason: str | None, target: str | None, *, everything: bool) -> Selection:
    narrowed = bool(numbers) or reason is not None or target is not None
    if not narrowed and not everything:
        raise click.UsageError("say which: numbers, --reason, --target, or --all")
    if narrowed and everything:
        raise click.UsageError("--all is all of them: leave it out to choose some")
    return Selection(numbers=numbers or None, reason=reason, target=target)


_changes = changes(click.argument("numbers", type=_NUMBER, nargs=-1), _reason, _target)


@dead.command()
@_changes
@rate_option
def replay(
    context: click.Context,
    numbers: tuple[int, ...],
    reason: str | None,
    target: str | None,
    rate: float | None,
    *,
    everything: bool,
    **how: bool,
) -> None:
    """
    Let dead deliveries be tried again, with their attempts forgotten.

    Order is kept for each key. Choose by NUMBERS, --reason, --target, or --all.
    """
    selection = _chosen(numbers, reason, target, everything=everything)
    with reaching(context) as outbox:
        _change(outbox, selection, outbox.replay, ("replay", "replayed"), rate=rate, **how)


@dead.command("purge")
@_changes
def purge_dead(
    context: click.Context,
    numbers: tuple[int, ...],
    reason: str | None,
    target: str | None,
    *,
    everything: bool,
    **how: bool,
) -> None:
    """
    Delete dead deliveries for ever; what waits behind them goes on without them.

    Choose by NUMBERS, --reason, --target, or --all. Where there is no terminal to ask on, --yes is needed.
    """
    selection = _chosen(numbers, reason, target, everything=everything)
    check_that_it_is_meant(yes=how["yes"], dry_run=how["dry_run"])
    with reaching(context) as outbox:
        _change(outbox, selection, outbox.discard, ("delete", "deleted"), **how)


def _change(
    outbox: Outbox,
    selection: Selection,
    change: Callable[..., int],
    words: tuple[str, str],
    *,
    yes: bool,
    dry_run: bool,
    as_json: bool,
    rate: float | None = None,
) -> None:
    doing, done = words
    total = count_of(outbox, selection)
    if not total and selection.reason is not None and outbox.backlog().dead:
        tell_how_a_reason_is_written("dead_by_reason")
    if dry_run:
        tell({"selected": total, done: 0, "interrupted": False}, f"{total} would be {done}", as_json=as_json)
        return
    if total:
        confirm(f"{doing.capitalize()} {total} dead deliveries?", yes=yes)
    # A chunk a second, where it is to be slow.
    limit = CHUNK if rate is None else max(1, min(CHUNK, int(rate)))
    chunks = in_chunks(lambda chosen, most: change(chosen, limit=min(most, limit)), selection, total)
    work = Work(f"{doing} dead deliveries").through(chunks, total, rate)
    work.tell({"selected": total, done: work.done}, f"{work.done} {done}", as_json=as_json)
