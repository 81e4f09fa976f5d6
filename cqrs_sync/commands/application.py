"""Find the mediator a command works with, and say in one line what is wrong."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from cqrs_sync.errors import ConfigurationError, CqrsError, OutboxNotInstalled, OutboxUnavailable
from cqrs_sync.mediator import RequestMediator
from cqrs_sync.outbox import Outbox
from cqrs_sync.relay import Relay

#: Exit statuses: what was asked for is not well; the command was called wrongly; the outbox cannot be reached.
NOT_WELL, USAGE, NOT_REACHED = 1, 2, 3


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on
    """A number of seconds, or one with a unit."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it, or fail with what can be read."""
        from cqrs_sync.workers.desk import seconds  # noqa: PLC0415 -- help needs nothing of it

        if isinstance(value, (int, float)):
            return float(value)
        try:
            return seconds(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def load(path: str) -> RequestMediator:
    """
    Return the mediator that `module:name` names, or what a function of this name returns.

    Raises click.UsageError with what is wrong.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise click.UsageError(f"--app {path!r}: write module:name, of a mediator or a function that returns one")
    if os.getcwd() not in sys.path:  # noqa: PTH109 -- as the interpreter itself writes it there
        sys.path.insert(0, os.getcwd())  # noqa: PTH109 -- as above
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise click.UsageError(f"--app {path!r}: there is no module {error.name!r} here or on the path") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise click.UsageError(f"--app {path!r}: {module_name} has no {name!r}")
        found = getattr(found, part)
    mediator = found() if callable(found) and not isinstance(found, RequestMediator) else found
    if not isinstance(mediator, RequestMediator):
        raise click.UsageError(f"--app {path!r}: a RequestMediator is wanted, this is {mediator!r:.200}")
    return mediator


def relay_of(context: click.Context) -> Relay:
    """Return the relay of the application's mediator; `context.obj` is a function that returns that."""
    provide: Callable[[], RequestMediator] | None = context.obj
    if provide is None:
        raise click.UsageError("say which application: --app module:name, or CQRS_SYNC_APP in the environment")
    mediator = provide()
    if mediator.relay is None:
        raise click.UsageError("this mediator has no outbox: give bootstrap(outbox=...) one")
    return mediator.relay


@contextmanager
def reaching(context: click.Context) -> Iterator[Outbox]:
    """Give the outbox; end with a line and a status of its own where it cannot be reached."""
    outbox = relay_of(context).outbox
    try:
        yield outbox
    except (OutboxUnavailable, OutboxNotInstalled, ConfigurationError) as error:
        _fail(error)
    finally:
        outbox.let_go()


def _fail(error: CqrsError) -> NoReturn:
    click.echo(f"Error: {error}", err=True)
    sys.exit(NOT_REACHED)
