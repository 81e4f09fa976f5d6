"""`topology plan` and `topology apply`: what a group needs on its broker."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import attrs
import click

from cqrs_sync.broker import Group, TopologyItem
from cqrs_sync.cli.app import CHECK_FAILED, open_group
from cqrs_sync.cli.options import HELP, CommandGroup, group_options, json_option
from cqrs_sync.cli.output import print_json, print_line, print_table, printable


@click.group(cls=CommandGroup, context_settings=HELP)
def topology() -> None:
    """Show or make the queues, exchanges and topics that a group of consumers needs."""


@topology.command()
@group_options
@json_option
@click.pass_context
def plan(context: click.Context, /, *, as_json: bool, **location: Any) -> None:
    """
    Show what a group needs, and change nothing.

    Exit status: 0; 1 if something is missing or different; 2 if the command was called wrongly; 3 if the broker cannot
    be reached.
    """
    with open_group(context, **location) as (broker, group):
        items = broker.inspect_topology(group)
    _print_and_exit(group, items, as_json=as_json)


@topology.command()
@group_options
@json_option
@click.pass_context
def apply(context: click.Context, /, *, as_json: bool, **location: Any) -> None:
    """
    Make what is missing of what a group needs; what exists stays as it is.

    Consumers do the same when they start, unless their broker is told to declare nothing. The exit status is that of
    `plan` afterwards.
    """
    with open_group(context, **location) as (broker, group):
        items = broker.apply_topology(group)
    _print_and_exit(group, items, as_json=as_json)


def _print_and_exit(group: Group, items: Sequence[TopologyItem], *, as_json: bool) -> None:
    rows = [attrs.asdict(item) for item in items]
    if as_json:
        print_json({"group": group.name, "items": rows})
    else:
        print_table(("state", "kind", "name", "details"), rows)
        for item in items:
            if item.trouble:
                print_line(f"{item.kind} {printable(item.name)}: {printable(item.trouble)}")
    sys.exit(CHECK_FAILED if any(item.state in {"missing", "different"} for item in items) else 0)
