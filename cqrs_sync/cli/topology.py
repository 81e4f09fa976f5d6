"""`lag` and `topology`: what waits for a group, and what it has on its broker."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import attrs
import click

from cqrs_sync.broker import Group, Piece
from cqrs_sync.cli.app import NOT_WELL, group_options, reaching_group, tell_if_unknown
from cqrs_sync.cli.output import as_json as as_json_option
from cqrs_sync.cli.output import escaped, print_json, print_table, say


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@group_options
@click.option("--over", type=click.IntRange(0), metavar="NUMBER", help="Exit with 1 where more messages wait.")
@as_json_option
@click.pass_context
def lag(context: click.Context, /, over: int | None, *, as_json: bool, **of_group: Any) -> None:
    """
    Show what waits for a group, what is set aside for a while, and what is dead.

    Exit status: 0; 1 where more wait than --over; 2 where the command was called wrongly; 3 where the broker cannot be
    reached.
    """
    with reaching_group(context, **of_group) as (broker, group):
        backlog = broker.backlog(group)
        waiting = sum(backlog.waiting.values())
        if not (waiting or backlog.delayed or backlog.dead):
            tell_if_unknown(broker, group)
    is_over = over is not None and waiting > over
    facts = {"group": group.name, "waiting": waiting, "delayed": backlog.delayed, "dead": backlog.dead}
    if as_json:
        print_json({**facts, "places": dict(backlog.waiting), "over": is_over})
    else:
        print_table(("group", "waiting", "delayed", "dead"), [facts])
        say()
        print_table(("waiting", "place"), [{"waiting": n, "place": place} for place, n in backlog.waiting.items()])
        if is_over:
            say(f"more than {over} wait")
    sys.exit(NOT_WELL if is_over else 0)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def topology() -> None:
    """Look at what a group needs on its broker, or make it."""


@topology.command()
@group_options
@as_json_option
@click.pass_context
def plan(context: click.Context, /, *, as_json: bool, **of_group: Any) -> None:
    """
    Show what a group needs, and change nothing.

    Exit status: 0; 1 where something is missing, or there and different; 2 where the command was called wrongly;
    3 where the broker cannot be reached.
    """
    with reaching_group(context, **of_group) as (broker, group):
        pieces = broker.topology(group)
    _tell(group, pieces, as_json=as_json)
    sys.exit(NOT_WELL if any(piece.state in {"missing", "different"} for piece in pieces) else 0)


@topology.command()
@group_options
@as_json_option
@click.pass_context
def apply(context: click.Context, /, *, as_json: bool, **of_group: Any) -> None:
    """
    Make what is missing of what a group needs; what is there stays as it is.

    Consumers do that themselves when they start, unless their broker was told to declare nothing. Exit status: that of
    `plan`, afterwards.
    """
    with reaching_group(context, **of_group) as (broker, group):
        pieces = broker.build(group)
    _tell(group, pieces, as_json=as_json)
    sys.exit(NOT_WELL if any(piece.state in {"missing", "different"} for piece in pieces) else 0)


def _tell(group: Group, pieces: Sequence[Piece], *, as_json: bool) -> None:
    if as_json:
        print_json({"group": group.name, "pieces": [attrs.asdict(piece) for piece in pieces]})
        return
    print_table(("state", "kind", "name", "details"), [attrs.asdict(piece) for piece in pieces])
    for piece in pieces:
        if piece.trouble:
            say(f"{piece.kind} {escaped(piece.name)}: {escaped(piece.trouble)}")
