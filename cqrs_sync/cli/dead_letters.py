"""
`dead list`, `show`, `replay` and `purge`: the same commands for the dead letters of an outbox and of a group.

`dead_letter_commands` makes the commands for one of two kinds of store. `OutboxDeadLetters`: the outbox chooses and
changes its dead letters by itself. `GroupDeadLetters`: a broker can only hand them out one after the other, which
`DeadLetterScan` does.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NoReturn, TypeAlias

import attrs
import click

from cqrs_sync.broker import Group, IncomingMessage, ReceivingBroker
from cqrs_sync.cli.app import CHECK_FAILED, open_group, open_outbox, warn_if_unknown
from cqrs_sync.cli.bulk import BulkJob, bulk_options, confirm, require_confirmation
from cqrs_sync.cli.dead_letter_scan import DeadLetterFilter, DeadLetterScan, browse, id_of
from cqrs_sync.cli.options import (
    HELP,
    CommandGroup,
    CommandWithHints,
    add_options,
    group_options,
    json_option,
    number_option,
)
from cqrs_sync.cli.output import counted, print_json, print_line, print_table, printable
from cqrs_sync.outbox import DeadLetter, DeadLetterSelection, Outbox
from cqrs_sync.workers.worker import Signals

#: Characters of one value that are shown.
_SHOWN = 2000
#: Dead deliveries of an outbox that are changed in one transaction.
_CHUNK = 500
#: Dead deliveries that are fetched to be counted, if the outbox cannot count them: they come with their bodies.
_FETCHED = 2000
#: Digits of a number that programs which read JSON keep exactly.
_DIGITS = 15
#: Notes about attempts, which a replayed dead letter loses.
_CLEARED = {"attempts", "parked"}

Action: TypeAlias = Literal["replay", "purge"]
StoreType: TypeAlias = "type[OutboxDeadLetters | GroupDeadLetters]"


def dead_letter_commands(store_type: StoreType) -> click.Group:
    """Return the group `dead` with its commands for one kind of store."""

    @click.group(cls=CommandGroup, context_settings=HELP)
    def dead() -> None:
        """List, show, replay or purge dead letters."""

    reason = click.option("--reason", metavar="TEXT", help="Only those with this reason, exactly as `list` shows it.")
    filter_options = add_options(reason, store_type.filter_options)
    dead.add_command(_list_command(store_type, filter_options))
    dead.add_command(_show_command(store_type))
    for action, help_text in _CHANGES.items():
        dead.add_command(_change_command(store_type, filter_options, action, help_text))
    return dead


_CHANGES: Mapping[Action, str] = {
    "replay": """
    Let dead letters be delivered again, with their attempts forgotten.

    A delivery of an outbox keeps the order of its key. A dead letter of a group goes back to this group and to no
    other. Choose by argument, --reason or --all. Exit status 1 if none of the arguments is dead.
    """,
    "purge": """
    Delete dead letters for good. Messages that waited behind them are delivered.

    Choose by argument, --reason or --all. Without a terminal to ask on, --yes is required. Exit status 1 if none of the
    arguments is dead.
    """,
}
_PAST: Mapping[Action, str] = {"replay": "replayed", "purge": "purged"}


def _list_command(store_type: StoreType, filter_options: Callable[[Any], Any]) -> click.Command:
    @click.command("list", cls=CommandWithHints, context_settings=HELP)
    @store_type.location_options
    @filter_options
    @click.option("--by-reason", is_flag=True, help="Count them for each reason instead.")
    @store_type.list_options
    @click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Show so many.")
    @json_option
    @click.pass_context
    def list_dead(
        context: click.Context,
        /,
        reason: str | None,
        limit: int,
        target: str | None = None,
        *,
        by_reason: bool,
        newest: bool = False,
        as_json: bool,
        **location: Any,
    ) -> None:
        """List dead letters, oldest first. They stay where they are."""
        chosen = DeadLetterFilter(reason=reason, target=target, limit=limit, newest=newest)
        if by_reason and (newest or not chosen.is_everything):
            raise click.UsageError("--by-reason counts all of them: leave out --reason, --target and --newest")
        with store_type.open(context, **location) as store:
            total = store.total()
            rows = store.by_reason() if by_reason else store.rows(chosen)
        if as_json:
            print_json({"dead_by_reason" if by_reason else "dead": rows, "total": total})
            return
        print_table(("count", "reason") if by_reason else store_type.columns, rows)
        if len(rows) == limit < total and not by_reason:
            print_line(f"{limit} shown, {total} dead: --limit shows more")

    return list_dead


def _show_command(store_type: StoreType) -> click.Command:
    @click.command("show", cls=CommandWithHints, context_settings=HELP)
    @click.argument("identity", metavar=store_type.id_name.upper(), type=store_type.id_type)
    @store_type.location_options
    @click.option("--body", is_flag=True, help="Show the body as well; it may contain personal data.")
    @json_option
    @click.pass_context
    def show(context: click.Context, /, identity: object, *, body: bool, as_json: bool, **location: Any) -> None:
        """
        Show everything about one dead letter.

        Exit status 1 if there is none with this identity.
        """
        with store_type.open(context, **location) as store:
            store.total()
            facts = store.find(str(identity), body=body)
        if facts is None:
            _exit_without(store_type.id_name, [str(identity)])
        if as_json:
            print_json(facts)
            return
        lines = dict(_flattened(facts))
        width = min(max(map(len, lines)), 40) + 2
        for name, value in lines.items():
            print_line(f"{printable(name, 40):<{width}}{printable(value, _SHOWN)}")

    return show


def _change_command(
    store_type: StoreType, filter_options: Callable[[Any], Any], action: Action, help_text: str
) -> click.Command:
    @click.command(action, cls=CommandWithHints, help=help_text, context_settings=HELP)
    @click.argument("ids", type=store_type.id_type, metavar=f"[{store_type.id_name.upper()}]...", nargs=-1)
    @store_type.location_options
    @filter_options
    @number_option("--limit", help="At most so many: the oldest.")
    @bulk_options
    @click.pass_context
    def change(
        context: click.Context,
        /,
        ids: Sequence[object],
        reason: str | None,
        target: str | None = None,
        *,
        limit: int | None,
        everything: bool,
        rate: float | None,
        yes: bool,
        dry_run: bool,
        as_json: bool,
        **location: Any,
    ) -> None:
        chosen = DeadLetterFilter(frozenset(map(str, ids)), reason, target, limit)
        if chosen.is_everything and not everything:
            raise click.UsageError(f"choose what to {action}: {store_type.id_name}s, --reason or --all")
        if everything and not chosen.is_everything:
            raise click.UsageError("--all cannot be combined with arguments or filters")
        if action == "purge":
            require_confirmation(yes=yes, dry_run=dry_run)
        past = _PAST[action]
        with store_type.open(context, **location) as store:
            total = store.total()
            if dry_run:
                job, found = BulkJob(""), store.count(chosen)
                counts, text = {"selected": found, past: 0}, f"{found} would be {past}"
            else:
                job, counts = store.change(action, chosen, rate=rate, yes=yes)
                found = counts[past]
                text = f"{found} {past}"
        job.finish(counts, text, as_json=as_json)
        if not found and chosen.ids:
            _exit_without(store_type.id_name, chosen.ids)
        if not found and total and chosen.reason is not None:
            _explain_reasons(context)

    return change


def rows_by_reason(counts: Iterable[tuple[str, int]]) -> list[dict[str, Any]]:
    """Return counts of dead letters by reason as rows."""
    return [{"reason": reason, "count": count} for reason, count in counts]


def _explain_reasons(context: click.Context) -> None:
    """Say on standard error why a reason matched nothing."""
    # A table breaks long reasons into lines, and JSON escapes what is not ASCII.
    path = "" if context.parent is None else f"{context.parent.command_path} "
    click.echo(
        "no dead letter has exactly this reason: copy it from "
        f"`{path}list --by-reason --json | jq -r '.dead_by_reason[].reason'`",
        err=True,
    )


def _exit_without(id_name: str, ids: Collection[str]) -> NoReturn:
    click.echo(f"Error: no dead letter has the {id_name} {', '.join(map(printable, sorted(ids)))}", err=True)
    sys.exit(CHECK_FAILED)


def _flattened(facts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{key}", each) for key, each in value.items())
        else:
            yield name, value


class OutboxDeadLetters:
    """The dead deliveries of an outbox: of one message some may be dead, and others not."""

    #: Options that say where the dead letters are, more options that choose some, and options of `list`.
    location_options: Callable[[Any], Any] = add_options()
    list_options: Callable[[Any], Any] = add_options()
    filter_options: Callable[[Any], Any] = add_options(
        click.option("--target", metavar="NAME", help="Only those for this topic or durable handler.")
    )
    #: What identifies a dead letter: its name, and the type of the argument.
    id_name: str = "number"
    id_type: click.IntRange = click.IntRange(1, 2**63 - 1)
    #: Columns of `list`.
    columns: tuple[str, ...] = ("number", "target", "type", "key", "attempts", "age", "reason")

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    @classmethod
    @contextmanager
    def open(cls, context: click.Context, **_: Any) -> Iterator[OutboxDeadLetters]:
        """Give the store to a block, and turn its errors into one line."""
        with open_outbox(context) as outbox:
            yield cls(outbox)

    def total(self) -> int:
        """Count all dead deliveries."""
        return self._outbox.backlog().dead

    def by_reason(self) -> list[dict[str, Any]]:
        """Count the dead deliveries of each reason."""
        return rows_by_reason(self._outbox.backlog().dead_by_reason)

    def rows(self, chosen: DeadLetterFilter) -> list[dict[str, Any]]:
        """Return what is known of dead deliveries, oldest first."""
        return [
            _facts_of_delivery(each)
            for each in self._outbox.dead_letters(_selection(chosen), limit=chosen.limit or 100)
        ]

    def find(self, identity: str, *, body: bool) -> dict[str, Any] | None:
        """Return all that is known of one dead delivery, with its body if asked for; None if there is none."""
        found = self._outbox.dead_letters(DeadLetterSelection(numbers=(int(identity),)), limit=1)
        return _facts_of_delivery(found[0], body=body) if found else None

    def count(self, chosen: DeadLetterFilter) -> int:
        """Count dead deliveries that match; with a reason *and* a target up to 2000."""
        found = self._count(_selection(chosen))
        return found if chosen.limit is None else min(found, chosen.limit)

    def _count(self, selection: DeadLetterSelection) -> int:
        if selection.numbers is not None:
            return len(self._outbox.dead_letters(selection, limit=len(selection.numbers)))
        backlog = self._outbox.backlog()
        of_target = sum(each.dead for each in backlog.targets if selection.target in {None, each.target})
        of_reason = dict(backlog.dead_by_reason).get(selection.reason or "", 0)
        if selection.reason is None:
            return of_target
        if selection.target is None or of_target == backlog.dead:
            return of_reason
        return len(self._outbox.dead_letters(selection, limit=_FETCHED))

    def change(
        self, action: Action, chosen: DeadLetterFilter, *, rate: float | None, yes: bool
    ) -> tuple[BulkJob, dict[str, int]]:
        """Replay or purge dead deliveries that match, in small transactions, after a question; return the counts."""
        change = self._outbox.replay if action == "replay" else self._outbox.discard
        selected = self.count(chosen)
        if selected:
            confirm(f"{action.capitalize()} {counted(selected, 'dead letter')}?", yes=yes)
        steps = change_in_chunks(change, _selection(chosen), selected, rate)
        job = BulkJob(f"{action} dead letters").run(steps, selected)
        return job, {"selected": selected, _PAST[action]: job.done}


def change_in_chunks(
    change: Callable[..., int], selection: DeadLetterSelection, most: int, rate: float | None = None
) -> Iterator[int]:
    """
    Replay or purge `most` dead deliveries, in chunks; yields how many each time.

    A delivery may be dead again before the end: without `most` this might never end.
    """
    # With a rate, a chunk per second.
    chunk = _CHUNK if rate is None else max(1, min(_CHUNK, int(rate)))
    never = threading.Event()
    while most > 0 and (changed := change(selection, limit=min(chunk, most))):
        yield changed
        most -= changed
        if rate is not None and most > 0:
            never.wait(changed / rate)


def _selection(chosen: DeadLetterFilter) -> DeadLetterSelection:
    numbers = tuple(sorted(map(int, chosen.ids))) or None
    return DeadLetterSelection(numbers=numbers, reason=chosen.reason, target=chosen.target)


def _facts_of_delivery(delivery: DeadLetter, *, body: bool = False) -> dict[str, Any]:
    message = delivery.message
    facts: dict[str, Any] = {
        "number": delivery.number,
        "kind": "topic" if delivery.handler is None else "handler",
        "target": delivery.target,
        "attempts": delivery.attempts,
        "age": round(delivery.age, 3),
        "reason": delivery.reason,
        "error": delivery.error,
        "blocks": delivery.blocks,
        "id": message.id,
        "type": message.type,
        "key": message.key,
        "bytes": len(message.body),
    }
    if body:
        facts["attributes"] = dict(message.attributes)
        facts["body"] = message.body.decode("utf-8", "backslashreplace")
    return facts


class GroupDeadLetters:
    """The dead letters that a group keeps on its broker."""

    location_options: Callable[[Any], Any] = group_options
    filter_options: Callable[[Any], Any] = add_options()
    list_options: Callable[[Any], Any] = add_options(
        click.option("--newest", is_flag=True, help="Show the newest instead of the oldest.")
    )
    id_name: str = "id"
    id_type: Any = click.STRING
    columns: tuple[str, ...] = ("id", "type", "key", "attempts", "at", "reason")

    def __init__(self, broker: ReceivingBroker, group: Group) -> None:
        self._broker = broker
        self._group = group

    @classmethod
    @contextmanager
    def open(cls, context: click.Context, **location: Any) -> Iterator[GroupDeadLetters]:
        """Give the store to a block, and turn its errors into one line."""
        with open_group(context, **location) as (broker, group):
            yield cls(broker, group)

    def total(self) -> int:
        """Count all dead letters; warns if the broker does not know the group."""
        total = self._broker.backlog(self._group).dead
        if not total:
            warn_if_unknown(self._broker, self._group)
        return total

    def by_reason(self) -> list[dict[str, Any]]:
        """Count the dead letters of each reason, the most frequent first."""
        counts = Counter(message.notes.get("reason", "") for message in browse(self._broker, self._group))
        return rows_by_reason(counts.most_common())

    def rows(self, chosen: DeadLetterFilter) -> list[dict[str, Any]]:
        """Return what is known of dead letters, oldest first: the first ones that match, or the last ones."""
        found = map(_facts_of_message, filter(chosen.matches, browse(self._broker, self._group)))
        return list(deque(found, chosen.limit) if chosen.newest else itertools.islice(found, chosen.limit))

    def find(self, identity: str, *, body: bool) -> dict[str, Any] | None:
        """Return all that is known of one dead letter, its headers as well; None if there is none."""
        found = next((each for each in browse(self._broker, self._group) if id_of(each) == identity), None)
        if found is None:
            return None
        headers = {"attributes": dict(found.attributes), "notes": dict(found.notes)}
        return {**_facts_of_message(found, body=body), "content_type": found.content_type, **headers}

    def count(self, chosen: DeadLetterFilter) -> int:
        """Count dead letters that match."""
        found = filter(chosen.matches, browse(self._broker, self._group))
        return sum(1 for _ in itertools.islice(found, chosen.limit))

    def change(
        self, action: Action, chosen: DeadLetterFilter, *, rate: float | None, yes: bool
    ) -> tuple[BulkJob, dict[str, int]]:
        """Replay or purge dead letters that match, after a question, until Ctrl-C; return the counts."""
        handle = self._replay if action == "replay" else lambda _: None
        signals = Signals()
        scan = DeadLetterScan(
            self._broker,
            self._group,
            chosen,
            handle,
            rate=rate,
            is_cancelled=lambda timeout: signals.wait(timeout) is not None,
        )
        if scan.total:
            which = "all" if chosen.is_everything else "the chosen ones"
            confirm(f"{action.capitalize()} {which} of {counted(scan.total, 'dead letter')}?", yes=yes)
        with signals:
            job = BulkJob(f"{action} dead letters").run(scan, scan.total)
        return job, {"dead": scan.total, _PAST[action]: scan.handled, "put_back": scan.put_back}

    def _replay(self, messages: Sequence[IncomingMessage]) -> None:
        self._broker.defer([_cleared(message) for message in messages], self._group, after=0)


def _facts_of_message(message: IncomingMessage, *, body: bool = False) -> dict[str, Any]:
    notes = message.notes
    facts: dict[str, Any] = {
        "id": id_of(message),
        "type": message.attributes.get("type"),
        "topic": message.topic,
        "key": message.key,
        "attempts": _number(notes.get("attempts")),
        **{name: notes.get(name) for name in ("at", "reason", "error", "handlers", "origin")},
        "replays": _number(notes.get("replays")),
        "bytes": len(message.body),
    }
    if body:
        facts["body"] = message.body.decode("utf-8", "backslashreplace")
    return facts


def _number(text: str | None) -> int | str | None:
    """Return a note as a number; another program may have written something else, which is returned as it is."""
    if text is None or len(text) > _DIGITS or not (text.isascii() and text.isdigit()):
        return text
    return int(text)


def _cleared(message: IncomingMessage) -> IncomingMessage:
    """Return a dead letter as it goes back to its group: its attempts are forgotten, its replays counted."""
    notes = {name: text for name, text in message.notes.items() if name not in _CLEARED}
    replays = _number(notes.get("replays"))
    notes["replays"] = str(replays + 1 if isinstance(replays, int) else 1)
    return attrs.evolve(message, notes=notes)
