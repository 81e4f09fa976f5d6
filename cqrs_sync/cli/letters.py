"""`dlq list`, `show`, `replay` and `purge`."""

from __future__ import annotations

import itertools
import sys
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NoReturn

import click

from cqrs_sync.broker import Group, GroupBroker, IncomingMessage
from cqrs_sync.cli.app import NOT_WELL, group_options, reaching_group, tell_if_unknown
from cqrs_sync.cli.bulk import (
    Work,
    changes,
    check_that_it_is_meant,
    confirm,
    rate_option,
    tell_how_a_reason_is_written,
)
from cqrs_sync.cli.dead_letter_scan import Choice, Sifting, id_of, letter_of, look, replayed
from cqrs_sync.cli.output import as_json as as_json_option
from cqrs_sync.cli.output import escaped, print_json, print_table, say, tell
from cqrs_sync.workers.signals import Signals

#: Characters of a text that are shown.
_SHOWN = 2000
_COLUMNS = ("id", "type", "key", "attempts", "at", "reason")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def dlq() -> None:
    """Look at the dead letters of a group, try them again, or delete them."""


_reason = click.option("--reason", metavar="TEXT", help="Only those that failed for this reason, as `list` shows it.")


@dlq.command("list")
@group_options
@_reason
@click.option("--by-reason", is_flag=True, help="Count them for each reason.")
@click.option("--newest", is_flag=True, help="Show the newest ones instead of the oldest.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Show so many.")
@as_json_option
@click.pass_context
def list_letters(
    context: click.Context,
    /,
    reason: str | None,
    limit: int,
    *,
    by_reason: bool,
    newest: bool,
    as_json: bool,
    **of_group: Any,
) -> None:
    """List dead letters, oldest first; they stay where they are."""
    if by_reason and (reason is not None or newest):
        raise click.UsageError("--by-reason counts them all: leave out --reason and --newest")
    choice = Choice(reason=reason)
    with reaching_group(context, **of_group) as (broker, group):
        total = _total(broker, group)
        found = (message for message in look(broker, group) if choice.has(message))
        if by_reason:
            rows = _counted(found)
        else:
            letters = map(letter_of, found)
            rows = list(deque(letters, limit) if newest else itertools.islice(letters, limit))
    if as_json:
        print_json({"by_reason" if by_reason else "letters": rows, "total": total})
        return
    print_table(("count", "reason") if by_reason else _COLUMNS, rows)
    if len(rows) == limit and not by_reason:
        say(f"there may be more: --limit shows others than these {limit}, {total} are dead")


def _counted(found: Iterable[IncomingMessage]) -> list[dict[str, Any]]:
    counts = Counter(message.notes.get("reason", "") for message in found)
    return [{"count": count, "reason": reason} for reason, count in counts.most_common()]


@dlq.command()
@click.argument("identity", metavar="ID")
@group_options
@click.option("--body", is_flag=True, help="Show the message itself as well; it may hold what is nobody's business.")
@as_json_option
@click.pass_context
def show(context: click.Context, /, identity: str, *, body: bool, as_json: bool, **of_group: Any) -> None:
    """
    Show all that is known of one dead letter, its headers as well.

    Exit status 1 where none has this id.
    """
    with reaching_group(context, **of_group) as (broker, group):
        _total(broker, group)
        found = next((each for each in look(broker, group) if id_of(each) == identity), None)
    if found is None:
        _leave_without({identity})
    facts = letter_of(found, body=body)
    attributes, notes = dict(found.attributes), dict(found.notes)
    if as_json:
        print_json({**facts, "content_type": found.content_type, "attributes": attributes, "notes": notes})
        return
    facts["content type"] = found.content_type
    facts |= {f"attribute {name}": text for name, text in attributes.items()}
    facts |= {f"note {name}": text for name, text in notes.items()}
    for name, value in facts.items():
        say(f"{escaped(name, 40):<26}{escaped(value, _SHOWN)}")


_changes = changes(
    group_options,
    _reason,
    click.option("--id", "ids", multiple=True, metavar="ID", help="This one, and others that are named."),
    click.option("--limit", type=click.IntRange(1), metavar="NUMBER", help="So many, at most: the oldest."),
)


@dlq.command()
@_changes
@rate_option
def replay(context: click.Context, /, **options: Any) -> None:
    """
    Give dead letters back to their group, and to no other, with their attempts forgotten.

    Choose by --id, --reason, or --all. One reader at a time: others wait, or get a part. Exit status 1 where ids
    are named, and none is of a dead letter.
    """
    _change(context, ("replay", "replayed"), _replay, **options)


@dlq.command()
@_changes
def purge(context: click.Context, /, **options: Any) -> None:
    """
    Delete dead letters for ever.

    Choose by --id, --reason, or --all. Where there is no terminal to ask on, --yes is needed. One reader at a time:
    others wait, or get a part. Exit status 1 where ids are named, and none is of a dead letter.
    """
    check_that_it_is_meant(yes=options["yes"], dry_run=options["dry_run"])
    _change(context, ("delete", "deleted"), lambda *_: None, **options)


def _replay(broker: GroupBroker, group: Group, messages: Sequence[IncomingMessage]) -> None:
    broker.set_aside([replayed(message) for message in messages], group, after=0)


def _change(
    context: click.Context,
    words: tuple[str, str],
    change: Callable[[GroupBroker, Group, Sequence[IncomingMessage]], object],
    *,
    limit: int | None,
    rate: float | None = None,
    **options: Any,
) -> None:
    choice = _chosen(options.pop("ids"), options.pop("reason"), everything=options.pop("everything"))
    yes, dry_run, as_json = (options.pop(name) for name in ("yes", "dry_run", "as_json"))
    doing, done = words
    with reaching_group(context, **options) as (broker, group):
        total = _total(broker, group)
        if dry_run:
            selected = sum(1 for _ in itertools.islice(filter(choice.has, look(broker, group)), limit))
            tell({"selected": selected, done: 0}, f"{selected} would be {done}", as_json=as_json)
            _check_found(choice, selected, total)
            return
        if total:
            which = "all" if choice == Choice() else "those that are chosen"
            confirm(f"{doing.capitalize()} {which} of {total} dead letters?", yes=yes)
        # Ctrl-C ends it between two letters.
        with Signals() as signals:
            sifting = Sifting(
                *(broker, group, choice, lambda messages: change(broker, group, messages)),
                limit=limit,
                rate=rate,
                is_to_end=lambda seconds: signals.wait(seconds) is not None,
            )
            work = Work(f"{doing} dead letters").through(sifting, sifting.total)
    facts = {"dead": sifting.total, done: sifting.done, "put_back": sifting.put_back}
    work.tell(facts, f"{sifting.done} {done}", as_json=as_json)
    _check_found(choice, sifting.done, total)


def _check_found(choice: Choice, count: int, total: int) -> None:
    """Say why nothing was chosen of what is dead; where ids were named, leave with a status that says so."""
    if choice.ids and not count:
        _leave_without(choice.ids)
    if choice.reason is not None and total and not count:
        tell_how_a_reason_is_written("by_reason")


def _leave_without(ids: Collection[str]) -> NoReturn:
    click.echo(f"Error: no dead letter has the id {', '.join(map(escaped, sorted(ids)))}", err=True)
    sys.exit(NOT_WELL)


def _total(broker: GroupBroker, group: Group) -> int:
    """Count the dead letters of a group, and say so where there is no such group."""
    total = broker.backlog(group).dead
    if not total:
        tell_if_unknown(broker, group)
    return total


def _chosen(ids: tuple[str, ...], reason: str | None, *, everything: bool) -> Choice:
    narrowed = bool(ids) or reason is not None
    if not narrowed and not everything:
        raise click.UsageError("say which: --id, --reason, or --all")
    if narrowed and everything:
        raise click.UsageError("--all is all of them: leave it out to choose some")
    return Choice(frozenset(ids) if ids else None, reason)
