"""Find the mediator, the consumer or the group that a command works with, and say in one line what is wrong."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import click
from click.core import ParameterSource

from cqrs_sync.broker import Group, ReceivingBroker
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
from cqrs_sync.mediator import Mediator
from cqrs_sync.outbox import Outbox
from cqrs_sync.relay import Relay
from cqrs_sync.retry import RetryPolicy

#: The environment variables that name the application and the group if no option does.
APP_VARIABLE, GROUP_VARIABLE = "CQRS_SYNC_APP", "CQRS_SYNC_GROUP"
#: Options that say what a group is like.
GROUP_OPTIONS = {"group", "topics", "retry_delays", "inline_limit", "ordered"}
#: Exit statuses: a check failed; the command was called wrongly; a server cannot be reached; Ctrl-C.
CHECK_FAILED, USAGE, UNAVAILABLE, INTERRUPTED = 1, 2, 3, 130


#: Errors of Django that has not been set up.
_NOT_SET_UP = {"AppRegistryNotReady", "ImproperlyConfigured"}


class InvalidCall(click.ClickException):
    """The command was called wrongly, or the application is wired wrongly."""

    exit_code = USAGE


class Unavailable(click.ClickException):
    """The database or the broker cannot be reached, or its tables are missing."""

    exit_code = UNAVAILABLE


class Interrupted(click.ClickException):
    """Ctrl-C ended the command before it changed anything."""

    exit_code = INTERRUPTED

    def __init__(self) -> None:
        super().__init__("interrupted")


class Application:
    """What a command works with: a mediator, perhaps a consumer of it, and the name of a group."""

    #: How the group is named in the application's settings, if they can name it.
    group_setting = ""

    def __init__(self, find: Callable[[], Mediator | Consumer]) -> None:
        """Call `find` once, when a command needs its result."""
        self._find = find

    @cached_property
    def _found(self) -> Mediator | Consumer:
        return self._find()

    def mediator(self) -> Mediator:
        """Return the mediator. Raises InvalidCall if there is none."""
        return self._found.mediator if isinstance(self._found, Consumer) else self._found

    def consumer(self) -> Consumer | None:
        """Return the consumer, None if the application names only a mediator. Raises InvalidCall."""
        return self._found if isinstance(self._found, Consumer) else None

    def group(self) -> str | None:
        """Return the group that the settings name, None if they name none."""
        return None


def load(path: str) -> Mediator | Consumer:
    """
    Return the mediator or consumer that `module:name` names, or that a function of this name returns.

    The current directory comes first on the path. Raises InvalidCall, which says what is wrong.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise InvalidCall(f"--app {path!r}: write module:name, of a mediator or a function that returns one")
    here = os.getcwd()  # noqa: PTH109 -- as the interpreter itself writes it there
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    found = _import(path, module_name)
    for part in name.split("."):
        found = _attribute(path, found, part)
    if callable(found) and not isinstance(found, (Mediator, Consumer)):
        found = _call(path, found)
    if not isinstance(found, (Mediator, Consumer)):
        raise InvalidCall(f"--app {path!r}: expected a Mediator or a Consumer, not {_describe(found)}")
    return found


def _import(path: str, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{name}.".startswith(f"{missing}."):
            raise InvalidCall(f"--app {path!r}: there is no module {missing!r} here or on the path") from error
        words = f"{name} cannot be imported: {describe_with_location(error)}"
        raise InvalidCall(f"--app {path!r}: {words}{_django_hint(error)}") from error


def _attribute(path: str, owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError as error:
        near = difflib.get_close_matches(name, dir(owner), 1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        owner_name = getattr(owner, "__name__", type(owner).__name__)
        raise InvalidCall(f"--app {path!r}: {owner_name} has no {name!r}{hint}") from error


def _call(path: str, factory: Callable[[], Any]) -> Any:
    try:
        return factory()
    except Exception as error:
        words = f"calling it without arguments failed: {describe_with_location(error)}"
        raise InvalidCall(f"--app {path!r}: {words}{_django_hint(error)}") from error


def _django_hint(error: BaseException | None) -> str:
    """Name the command that sets Django up, if the application needs that: this program knows no framework."""
    while error is not None:
        if type(error).__module__ == "django.core.exceptions" and type(error).__name__ in _NOT_SET_UP:
            names: list[str] = []
            context = click.get_current_context(silent=True)
            while context is not None and context.parent is not None:
                names.insert(0, str(context.info_name))
                context = context.parent
            return f"; in a Django project run `manage.py cqrs_{' '.join(names)}`, which sets Django up"
        error = error.__cause__ or error.__context__
    return ""


def _describe(value: Any) -> str:
    # The repr may contain anything, secrets as well.
    if isinstance(value, type):
        return f"the class {value.__qualname__}"
    return f"an object of the type {type(value).__qualname__}"


def application_of(context: click.Context) -> Application:
    """Return the application of a command. Raises InvalidCall if none is named."""
    application = context.obj
    if isinstance(application, Application):
        return application
    path = os.environ.get(APP_VARIABLE)
    if not path:
        raise InvalidCall(f"name the application: --app module:name, or {APP_VARIABLE} in the environment")
    return Application(partial(load, path))


def relay_of(application: Application) -> Relay:
    """Return the relay of an application. Raises InvalidCall if it has none."""
    relay = application.mediator().relay
    if relay is None:
        raise InvalidCall("this mediator has no outbox: give bootstrap(outbox=...) one")
    return relay


@contextmanager
def open_outbox(context: click.Context) -> Iterator[Outbox]:
    """Give the outbox to a block, and turn its errors into one line."""
    outbox = relay_of(application_of(context)).outbox
    with errors_in_one_line():
        try:
            yield outbox
        finally:
            outbox.release_connection()


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Turn errors of an outbox, an inbox or a broker into one line and an exit status."""
    try:
        yield
    except (OutboxUnavailable, InboxUnavailable) as error:
        store = "outbox" if isinstance(error, OutboxUnavailable) else "inbox"
        raise Unavailable(
            f"cannot reach the database of the {store}, check that it runs and that its address is right: {error}"
        ) from error
    except (OutboxNotInstalled, InboxNotInstalled) as error:
        raise Unavailable(str(error)) from error
    except ConfigurationError as error:
        raise InvalidCall(str(error)) from error
    except (BrokerUnavailable, PublishFailed) as error:
        raise Unavailable(f"the broker cannot be reached, or refused: {error}") from error
    except KeyboardInterrupt as error:
        raise Interrupted from error


def group_name(application: Application, name: str | None) -> str:
    """Return the group's name: from the option, the environment or the settings. Raises InvalidCall without one."""
    found = name or _group_named_elsewhere(application)[0]
    if not found:
        setting = application.group_setting and f", or {application.group_setting}"
        raise InvalidCall(f"name the group: --group NAME, or {GROUP_VARIABLE} in the environment{setting}")
    return found


def _group_named_elsewhere(application: Application) -> tuple[str, str]:
    """Return the group that the environment or the settings name, and which of them; empty if neither does."""
    if name := os.environ.get(GROUP_VARIABLE):
        return name, f"{GROUP_VARIABLE} in the environment says"
    return application.group() or "", "the settings say"


def check_consumer_options(
    context: click.Context, application: Application, consumer: Consumer, names: set[str]
) -> None:
    """Raise InvalidCall for options that only apply when the command makes the group or the consumer itself."""
    given = {
        param.opts[0]: context.params.get(param.name or "")
        for param in context.command.params
        if param.name in names and context.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
    }
    own = consumer.group.name
    if given.get("--group") == own:
        del given["--group"]
    elif "--group" not in given:
        name, source = _group_named_elsewhere(application)
        if name and name != own:
            raise InvalidCall(
                f"{source} that the group is {name!r}, but the application names a Consumer of the group {own!r}: "
                "remove one of the two, or make them the same"
            )
    if given:
        raise InvalidCall(
            f"the application names a Consumer, which has its own settings: leave out {', '.join(sorted(given))}, "
            "or name a mediator"
        )


def retry_arguments(retry_delays: tuple[float, ...] | None, inline_limit: float | None) -> dict[str, Any]:
    """Return the arguments of a Consumer that these options stand for."""
    arguments: dict[str, Any] = {} if retry_delays is None else {"retry": RetryPolicy(delays=retry_delays)}
    return arguments if inline_limit is None else {**arguments, "inline_limit": inline_limit}


@contextmanager
def open_group(
    context: click.Context,
    *,
    group: str | None,
    topics: tuple[str, ...],
    retry_delays: tuple[float, ...] | None,
    inline_limit: float | None,
    ordered: bool | None,
) -> Iterator[tuple[ReceivingBroker, Group]]:
    """Give the broker and the group to a block, and turn their errors into one line."""
    application = application_of(context)
    consumer = application.consumer()
    with errors_in_one_line():
        if consumer is not None:
            check_consumer_options(context, application, consumer, GROUP_OPTIONS)
            yield consumer.broker, consumer.group
            return
        mediator = application.mediator()
        name, retry = group_name(application, group), retry_arguments(retry_delays, inline_limit)
        yield broker_of(mediator), group_of(mediator, name, topics=topics, ordered=ordered, **retry)


def warn_if_unknown(broker: ReceivingBroker, group: Group) -> None:
    """Warn on standard error if the broker has no queue or topic of this group: its name may be wrong."""
    own = [item for item in broker.inspect_topology(group) if group.name in item.name]
    if own and all(item.state == "missing" for item in own):
        click.echo(
            f"the broker has no queue or topic of the group {group.name!r}: no consumer of it has run yet, or its name "
            "is different",
            err=True,
        )
