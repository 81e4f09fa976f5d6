"""`status`, `dead` and `purge`."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from cqrs_sync.commands.application import NOT_WELL, Duration, reaching
from cqrs_sync.outbox import Outbox, Selection
from cqrs_sync.workers.desk import dead_of, in_chunks, purged, status_of

_SETTINGS = {"help_option_names": ["-h", "--help"]}
_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.command(context_settings=_SETTINGS)
@_as_json
@click.option("--max-lag", type=Duration(), help="Exit with 1 where the oldest message has waited longer, such as 60s.")
@click.option("--max-dead", type=click.IntRange(0), help="Exit with 1 where more deliveries are dead.")
@click.pass_context
def status(context: click.Context, max_lag: float | None, max_dead: int | None, *, as_json: bool) -> None:
    """
    Show what waits, for how long, and what is dead.

    Exit status: 0; 1 where a limit is passed; 3 where the outbox cannot be reached.
    """
    with reaching(context) as outbox:
        backlog = outbox.backlog()
    facts = status_of(backlog)
    if as_json:
        click.echo(json.dumps(facts))
    else:
        _show_status(facts)
    late = max_lag is not None and (backlog.oldest or 0) > max_lag
    passed = late or (max_dead is not None and backlog.dead > max_dead)
    sys.exit(NOT_WELL if passed else 0)


@click.group(context_settings=_SETTINGS)
def dead() -> None:
    """Look at what was given up, try it again, or delete it."""


_reason = click.option("--reason", help="Only those that failed for this reason, as `list` shows it.")
_target = click.option("--target", help="Only those for this topic or durable handler.")


@dead.command("list")
@_reason
@_target
@click.option("--by-reason", is_flag=True, help="Count them for each reason.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
@_as_json
@click.pass_context
def list_dead(
    context: click.Context, reason: str | None, target: str | None, limit: int, *, by_reason: bool, as_json: bool
) -> None:
    """List dead deliveries, oldest first."""
    with reaching(context) as outbox:
        if by_reason:
            rows = status_of(outbox.backlog())["dead_by_reason"]
        else:
            rows = [dead_of(each) for each in outbox.dead(Selection(reason=reason, target=target), limit=limit)]
    if as_json:
        click.echo(json.dumps({"dead": rows}))
    elif by_reason:
        _print(_table(("count", "reason"), [(row["count"], row["reason"]) for row in rows]))
    else:
        columns = ("number", "target", "type", "key", "attempts", "age", "reason")
        _print(_table(columns, [[row[column] for column in columns] for row in rows]))


@dead.command()
@click.argument("number", type=int)
@click.option("--body", is_flag=True, help="Show the message itself as well; it may hold what is nobody's business.")
@_as_json
@click.pass_context
def show(context: click.Context, number: int, *, body: bool, as_json: bool) -> None:
    """Show all that is known of one dead delivery."""
    with reaching(context) as outbox:
        found = outbox.dead(Selection(numbers=(number,)))
    if not found:
        raise click.ClickException(f"no dead delivery has the number {number}")
    facts = dead_of(found[0], body=body)
    if as_json:
        click.echo(json.dumps(facts))
        return
    for name, value in facts.items():
        click.echo(f"{name:<12}{_escaped(value)}")


def _chosen(numbers: tuple[int, ...], reason: str | None, target: str | None, *, everything: bool) -> Selection:
    if not (numbers or reason or target or everything):
        raise click.UsageError("say which: numbers, --reason, --target, or --all")
    return Selection(numbers=numbers or None, reason=reason, target=target)


def _changes(command: Any) -> Any:
    """Add what `replay` and `purge` have in common."""
    for decorate in (
        click.pass_context,
        click.option("--dry-run", is_flag=True, help="Count them and change nothing."),
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--all", "everything", is_flag=True, help="All of them."),
        _target,
        _reason,
        click.argument("numbers", type=int, nargs=-1),
    ):
        command = decorate(command)
    return command


@dead.command()
@_changes
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="At most so many a second.")
def replay(
    context: click.Context,
    numbers: tuple[int, ...],
    reason: str | None,
    target: str | None,
    rate: float | None,
    *,
    everything: bool,
    yes: bool,
    dry_run: bool,
) -> None:
    """Let dead deliveries be tried again, with their attempts forgotten; order is kept for each key."""
    selection = _chosen(numbers, reason, target, everything=everything)
    with reaching(context) as outbox:
        total = _count(outbox, selection)
        if dry_run or not _confirmed(f"Replay {total} dead deliveries?", total, yes=yes):
            click.echo(f"{total} would be replayed")
            return
        steps = in_chunks(lambda chosen, limit: outbox.replay(chosen, limit=limit), selection, total)
        click.echo(f"{_progress('replaying', steps, total, rate)} replayed")


@dead.command("purge")
@_changes
def purge_dead(
    context: click.Context,
    numbers: tuple[int, ...],
    reason: str | None,
    target: str | None,
    *,
    everything: bool,
    yes: bool,
    dry_run: bool,
) -> None:
    """Delete dead deliveries; what waits behind them goes on without them."""
    selection = _chosen(numbers, reason, target, everything=everything)
    with reaching(context) as outbox:
        total = _count(outbox, selection)
        if dry_run or not _confirmed(f"Delete {total} dead deliveries for ever?", total, yes=yes):
            click.echo(f"{total} would be deleted")
            return
        steps = in_chunks(lambda chosen, limit: outbox.discard(chosen, limit=limit), selection, total)
        click.echo(f"{_progress('deleting', steps, total)} deleted")


@click.command(context_settings=_SETTINGS)
@click.option("--older-than", type=Duration(), required=True, help="Such as 7d: the others stay.")
@click.pass_context
def purge(context: click.Context, older_than: float) -> None:
    """Delete messages that were delivered, in small transactions."""
    with reaching(context) as outbox:
        click.echo(f"{_progress('purging', purged(outbox, older_than), None)} purged")


def _count(outbox: Outbox, selection: Selection) -> int:
    if selection.numbers is None and selection.reason is None:
        targets = outbox.backlog().targets
        return sum(each.dead for each in targets if selection.target in {None, each.target})
    if selection.numbers is None and selection.target is None:
        return dict(outbox.backlog().dead_by_reason).get(selection.reason or "", 0)
    return len(outbox.dead(selection, limit=100_000))


def _confirmed(question: str, total: int, *, yes: bool) -> bool:
    return yes or total == 0 or not sys.stdin.isatty() or click.confirm(question)


def _progress(doing: str, steps: Iterator[int], total: int | None, rate: float | None = None) -> int:
    """Show how far it is, on a terminal; return how many there were."""
    done = 0
    never = threading.Event()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(doing, total=total)
        for count in steps:
            done += count
            progress.advance(task, count)
            if rate is not None:
                never.wait(count / rate)
    return done


def _show_status(facts: dict[str, Any]) -> None:
    lag = "nothing waits" if facts["lag"] is None else f"the oldest for {facts['lag']:.1f} s"
    click.echo(f"{facts['waiting']} wait, {lag}; {facts['dead']} are dead")
    if facts["targets"]:
        columns = ("kind", "target", "pending", "tried", "dead")
        _print(_table(columns, [[row[column] for column in columns] for row in facts["targets"]]))
    if facts["dead_by_reason"]:
        _print(_table(("dead", "reason"), [(row["count"], row["reason"]) for row in facts["dead_by_reason"]]))


def _table(columns: tuple[str, ...], rows: list[Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        number = column in {"number", "pending", "tried", "dead", "attempts", "age", "count"}
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_escaped(value)) for value in row))
    return table


def _print(table: Table) -> None:
    terminal = sys.stdout.isatty()
    Console(highlight=False, width=None if terminal else 160, force_terminal=terminal or None).print(table)


def _escaped(value: Any) -> str:
    """Return a value as one line that no terminal obeys."""
    text = "" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)
    return "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in text)
