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

from cqrs_sync.consumer import Consumer
from cqrs_sync.errors import (
    ConfigurationError,
    InboxNotInstalled,
    InboxUnavailable,
    OutboxNotInstalled,
    OutboxUnavailable,
    describe_with_location,
)
from cqrs_sync.mediator import RequestMediator
from cqrs_sync.outbox import Outbox
from cqrs_sync.relay import Relay

#: Where the application is, if no option says.
VARIABLE = "CQRS_SYNC_APP"
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
    path = os.environ.get(VARIABLE)
    if not path:
        raise CannotBegin(f"say which application: --app module:name, or {VARIABLE} in the environment")
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
