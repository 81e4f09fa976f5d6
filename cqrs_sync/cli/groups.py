"""Find the group a command is about, and its broker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from click.core import ParameterSource

from cqrs_sync.broker import Group, GroupBroker
from cqrs_sync.cli.application import CannotBegin, Interrupted, NotReached, application_of
from cqrs_sync.cli.durations import Pauses
from cqrs_sync.consumer import Consumer, Tiers, broker_of, group_of
from cqrs_sync.errors import BrokerUnavailable, ConfigurationError, PublishFailed

#: Which group it is, if no option says.
VARIABLE = "CQRS_SYNC_GROUP"

_OPTIONS = (
    click.option("--group", metavar="NAME", help=f"Who receives: all consumers of a service.  [env var: {VARIABLE}]"),
    click.option(
        "--topic", "topics", multiple=True, metavar="NAME", help="Receive from this one; otherwise all that are bound."
    ),
    click.option(
        "--delayed",
        type=Pauses(),
        metavar="DURATIONS",
        help="Later pauses between attempts, which the broker keeps: 10s,1m,10m unless told otherwise.",
    ),
    click.option("--ordered/--unordered", default=None, help="Keep the order of keys; it does where events have keys."),
)


def group_options(command: Any) -> Any:
    """Add what tells which group it is, and what it is like."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def name_of_group(context: click.Context, name: str | None) -> str:
    """Return the group's name, from the option, the environment or the settings. Raises CannotBegin without one."""
    found = name or _named_elsewhere(context)[0]
    if not found:
        also = getattr(context.obj, "group_is_in", "")
        raise CannotBegin(f"say which group: --group NAME, or {VARIABLE} in the environment{also and f', or {also}'}")
    return found


def _named_elsewhere(context: click.Context) -> tuple[str, str]:
    """Return the group that the environment or the settings name, and who says so; empty where none is named."""
    if name := os.environ.get(VARIABLE):
        return name, f"{VARIABLE} in the environment says"
    # Whoever provides the application may know its group, as the settings of Django do.
    return str(getattr(context.obj, "group", None) or ""), "the settings say"


def check_that_nothing_contradicts(context: click.Context, consumer: Consumer, names: set[str]) -> None:
    """Raise CannotBegin for options of a group or a consumer where the application has made that itself."""
    given = {
        param.opts[0]: context.params.get(param.name or "")
        for param in context.command.params
        if param.name in names and context.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
    }
    own = consumer.group.name
    if given.get("--group") == own:
        del given["--group"]
    elif "--group" not in given:
        _check_that_nobody_names_another(context, own)
    if given:
        raise CannotBegin(
            f"the application names a Consumer, which says that itself: leave out {', '.join(sorted(given))}, "
            "or name a mediator"
        )


def _check_that_nobody_names_another(context: click.Context, own: str) -> None:
    name, source = _named_elsewhere(context)
    if name and name != own:
        raise CannotBegin(
            f"{source} that the group is {name!r}, and the application names a Consumer, whose group is {own!r}: "
            "let one of them say so, or both the same"
        )


@contextmanager
def reaching_group(
    context: click.Context,
    group: str | None,
    topics: tuple[str, ...],
    delayed: tuple[float, ...] | None,
    ordered: bool | None,
) -> Iterator[tuple[GroupBroker, Group]]:
    """Give the broker and the group to a block; what keeps it from being reached is said in one line."""
    found = application_of(context)
    try:
        if isinstance(found, Consumer):
            check_that_nothing_contradicts(context, found, {"group", "topics", "delayed", "ordered"})
            yield found.broker, found.group
            return
        tiers = Tiers() if delayed is None else Tiers(delayed=delayed)
        name = name_of_group(context, group)
        yield broker_of(found), group_of(found, name, topics=topics, ordered=ordered, delays=tiers.delays)
    except ConfigurationError as error:
        raise CannotBegin(str(error)) from error
    except KeyboardInterrupt as error:
        raise Interrupted from error
    except (BrokerUnavailable, PublishFailed) as error:
        raise NotReached(f"the broker cannot be reached, or refuses: {error}") from error


def tell_if_unknown(broker: GroupBroker, group: Group) -> None:
    """Say on standard error that nothing on the broker is this group's, where that is so: its name may be wrong."""
    own = [piece for piece in broker.topology(group) if group.name in piece.name]
    if own and all(piece.state == "missing" for piece in own):
        click.echo(
            f"nothing on the broker is of the group {group.name!r}: no consumer of it has run yet, or it is called "
            "differently",
            err=True,
        )
