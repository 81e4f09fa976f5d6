"""Find the mediator, or the consumer, that a command works with, and say in one line what is wrong."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import click
from click.core import ParameterSource

from cqrs_sync.broker import Group, GroupBroker
from cqrs_sync.cli.options import Duration, Durations
from cqrs_sync.consumer import Consumer, broker_of, group_of
from cqrs_sync.errors import (
    BrokerUnavailable,
    ConfigurationError,
    InboxNotInstalled,
    InboxUnavailable,
    OutboxNotInstalled,
    OutboxUnavailable,
    PublishFailed,
    describe_with_location,
)
from cqrs_sync.mediator import RequestMediator
from cqrs_sync.outbox import Outbox
from cqrs_sync.relay import Relay
from cqrs_sync.retry import RetryPolicy

#: Where the application is, if no option says.
APP_VARIABLE = "CQRS_SYNC_APP"
#: Exit statuses: what was asked for is not well; the command was called wrongly; outbox or broker cannot be reached;
#: Ctrl-C has ended it.
NOT_WELL, USAGE, NOT_REACHED, INTERRUPTED = 1, 2, 3, 130


class CannotBegin(click.ClickException):
    """Said in one line: the command was called wrongly, or the application is wired wrongly."""

    exit_code = USAGE


class NotReached(click.ClickException):
    """Said in one line: the database of outbox or inbox, or the broker, cannot be reached, or lacks something."""

    exit_code = NOT_REACHED


class Interrupted(click.ClickException):
    """Said in one line: Ctrl-C has ended it, with nothing to tell of what was done."""

    exit_code = INTERRUPTED

    def __init__(self) -> None:
        super().__init__("interrupted")


#: What an application may name.
Application: TypeAlias = "RequestMediator | Consumer"


def load(path: str) -> Application:
    """
    Return the mediator or consumer that `module:name` names, or what a function of this name returns.

    Modules are looked for in the current directory first. Raises CannotBegin with what is wrong.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise CannotBegin(f"--app {path!r}: write module:name, of a mediator or a function that returns one")
    here = os.getcwd()  # noqa: PTH109 -- as the interpreter itself writes it there
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    found = _imported(path, module_name)
    for part in name.split("."):
        found = _attribute(path, found, part)
    if callable(found) and not isinstance(found, (RequestMediator, Consumer)):
        found = _called(path, found)
    if not isinstance(found, (RequestMediator, Consumer)):
        raise CannotBegin(f"--app {path!r}: a RequestMediator or a Consumer is wanted, this is {_shown(found)}")
    return found


def _imported(path: str, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{name}.".startswith(f"{missing}."):
            raise CannotBegin(f"--app {path!r}: there is no module {missing!r} here or on the path") from error
        raise CannotBegin(f"--app {path!r}: {name} cannot be imported: {describe_with_location(error)}") from error


def _attribute(path: str, owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError as error:
        near = difflib.get_close_matches(name, dir(owner), 1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        owned = getattr(owner, "__name__", type(owner).__name__)
        raise CannotBegin(f"--app {path!r}: {owned} has no {name!r}{hint}") from error


def _called(path: str, factory: Callable[[], Any]) -> Any:
    try:
        return factory()
    except Exception as error:
        raise CannotBegin(
            f"--app {path!r}: calling it without arguments failed: {describe_with_location(error)}"
        ) from error


def _shown(value: Any) -> str:
    # Its repr may hold anything, and secrets as well.
    return f"the class {value.__qualname__}" if isinstance(value, type) else f"of the type {type(value).__qualname__}"


def application_of(context: click.Context) -> Application:
    """
    Return the application's mediator or consumer; `context.obj` is a function that returns that.

    Raises CannotBegin where there is none.
    """
    provide: Callable[[], Application] | None = context.obj
    if provide is not None:
        return provide()
    path = os.environ.get(APP_VARIABLE)
    if not path:
        raise CannotBegin(f"say which application: --app module:name, or {APP_VARIABLE} in the environment")
    return load(path)


def mediator_of(application: Application) -> RequestMediator:
    """Return the mediator of an application, which may be a consumer."""
    return application.mediator if isinstance(application, Consumer) else application


def relay_of(application: Application) -> Relay:
    """Return the relay of an application. Raises CannotBegin where it has none."""
    mediator = mediator_of(application)
    if mediator.relay is None:
        raise CannotBegin("this mediator has no outbox: give bootstrap(outbox=...) one")
    return mediator.relay


@contextmanager
def reaching(context: click.Context) -> Iterator[Outbox]:
    """Give the outbox to a block; what keeps it from being reached is said in one line."""
    outbox = relay_of(application_of(context)).outbox
    with told_in_a_line():
        try:
            yield outbox
        finally:
            outbox.release_connection()


@contextmanager
def told_in_a_line() -> Iterator[None]:
    """Say in one line what keeps an outbox or an inbox from being reached, with a status of its own."""
    try:
        yield
    except (OutboxUnavailable, InboxUnavailable) as error:
        store = "outbox" if isinstance(error, OutboxUnavailable) else "inbox"
        raise NotReached(
            f"the database of the {store} cannot be reached, see that it runs and that its address is right: {error}"
        ) from error
    except (OutboxNotInstalled, InboxNotInstalled) as error:
        raise NotReached(str(error)) from error
    except ConfigurationError as error:
        raise CannotBegin(str(error)) from error
    except KeyboardInterrupt as error:
        raise Interrupted from error


#: Which group it is, if no option says.
GROUP_VARIABLE = "CQRS_SYNC_GROUP"

_OPTIONS = (
    click.option(
        "--group", metavar="NAME", help=f"Who receives: all consumers of a service.  [env var: {GROUP_VARIABLE}]"
    ),
    click.option(
        "--topic", "topics", multiple=True, metavar="NAME", help="Receive from this one; otherwise all that are bound."
    ),
    click.option(
        "--retry-delays",
        type=Durations(),
        metavar="DURATIONS",
        help="Delays between the attempts at a message. Default: 0.1,1,10s,1m,10m.",
    ),
    click.option(
        "--inline-limit",
        type=Duration(),
        metavar="DURATION",
        help="Up to this long the consumer keeps a message and its key waits; longer delays pass in the broker. "
        "Default: 5s.",
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
        raise CannotBegin(
            f"say which group: --group NAME, or {GROUP_VARIABLE} in the environment{also and f', or {also}'}"
        )
    return found


def _named_elsewhere(context: click.Context) -> tuple[str, str]:
    """Return the group that the environment or the settings name, and who says so; empty where none is named."""
    if name := os.environ.get(GROUP_VARIABLE):
        return name, f"{GROUP_VARIABLE} in the environment says"
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


def retry_options(retry_delays: tuple[float, ...] | None, inline_limit: float | None) -> dict[str, Any]:
    """Return the arguments of a Consumer that these options name."""
    options: dict[str, Any] = {} if retry_delays is None else {"retry": RetryPolicy(delays=retry_delays)}
    return options if inline_limit is None else {**options, "inline_limit": inline_limit}


@contextmanager
def reaching_group(
    context: click.Context,
    group: str | None,
    topics: tuple[str, ...],
    retry_delays: tuple[float, ...] | None,
    inline_limit: float | None,
    ordered: bool | None,
) -> Iterator[tuple[GroupBroker, Group]]:
    """Give the broker and the group to a block; what keeps it from being reached is said in one line."""
    found = application_of(context)
    try:
        if isinstance(found, Consumer):
            check_that_nothing_contradicts(
                context, found, {"group", "topics", "retry_delays", "inline_limit", "ordered"}
            )
            yield found.broker, found.group
            return
        name, retry = name_of_group(context, group), retry_options(retry_delays, inline_limit)
        yield broker_of(found), group_of(found, name, topics=topics, ordered=ordered, **retry)
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
