"""The reference knows every public name, every option with its default, and every command."""

from __future__ import annotations

import configparser
import enum
import inspect
import re
import typing
from pathlib import Path

import attrs
import click
import pytest

import cqrs_sync
from cqrs_sync import broker, consumer, memory, testing
from cqrs_sync.__main__ import main
from cqrs_sync.cli.app import APP_VARIABLE, GROUP_VARIABLE
from cqrs_sync.integrations import confluent, django, kafka, rabbitmq, sqlalchemy
from cqrs_sync.sql import OutboxOptions, SqlOutbox

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs/reference"
NAMES = (ROOT / "docs/reference.md").read_text("utf-8")
SETTINGS = (REFERENCE / "settings.md").read_text("utf-8")
COMMANDS = (REFERENCE / "command-line.md").read_text("utf-8")

LISTED = re.findall(r"^\| `(\w+)` \| \S", NAMES, re.MULTILINE)
PUBLIC = [*cqrs_sync.__all__, *testing.__all__]

#: What the tables of `settings.md` are about.
OPTIONS = {
    "bootstrap": cqrs_sync.bootstrap,
    "Mediator.send": cqrs_sync.Mediator.send,
    "Mediator.close": cqrs_sync.Mediator.close,
    "ThreadPool": cqrs_sync.ThreadPool,
    "RetryPolicy": cqrs_sync.RetryPolicy,
    "JsonSerializer": cqrs_sync.JsonSerializer,
    "DjangoOutbox": django.DjangoOutbox,
    "SQLAlchemyOutbox": sqlalchemy.SQLAlchemyOutbox,
    "SQLAlchemyInbox": sqlalchemy.SQLAlchemyInbox,
    "RabbitMQBroker": rabbitmq.RabbitMQBroker,
    "KafkaBroker": kafka.KafkaBroker,
    "ConfluentKafkaBroker": confluent.ConfluentKafkaBroker,
    "Group": broker.Group,
    "Consumer": consumer.Consumer,
    "Consumer.close": consumer.Consumer.close,
}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_listed_once(name):
    """Each public name has one line of its own."""
    assert LISTED.count(name) == 1


def test_nothing_else_is_listed():
    """What the page lists is there."""
    others = {"MemoryBroker", "MemoryInbox", "MemoryOutbox", "MemoryTransactions", "contracts"}

    assert set(LISTED) == {*PUBLIC, *others}
    assert {name for name in others if hasattr(memory, name)} == others - {"contracts"}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_its_signature_on_one_page(name):
    """The pages of `reference/api` have each public name once, with its docstring."""
    shown = [
        path.rpartition(".")[2]
        for page in (REFERENCE / "api").glob("*.md")
        for path in re.findall(r"^::: cqrs_sync\.([\w.]+)$", page.read_text("utf-8"), re.MULTILINE)
        if not path.startswith("integrations.")
    ]

    assert shown.count(name) == 1


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_listed_with_its_default(name):
    """A table of the settings page has the options of its callable, and the defaults that are plain values."""
    listed = _rows(name)
    there = _options(OPTIONS[name])

    assert set(listed) == set(there)
    assert {option: listed[option] for option, default in there.items() if default} == {
        option: default for option, default in there.items() if default
    }


@pytest.mark.parametrize("integration", [django, sqlalchemy], ids=["django", "sqlalchemy"])
def test_what_the_bootstrap_of_an_integration_adds_is_listed(integration):
    """The page has what it takes beside the options of the core's, or with other defaults."""
    core = _options(cqrs_sync.bootstrap)
    added = {
        option: default
        for option, default in _options(integration.bootstrap).items()
        if option not in core or default != core[option]
    }

    assert added.keys() == _rows(f"{integration.__name__}.bootstrap").keys()


def test_every_extra_is_listed():
    """The extras of the package, but those for its developers."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    rows = SETTINGS.partition("## Extras")[2].partition("\n## ")[0]
    listed = {
        name for row in rows.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1] if "|" in row else "")
    }

    assert set(setup["options.extras_require"]) - {"bench", "dev", "docs", "release"} == listed


def test_every_variable_is_listed():
    """The environment variables that the package reads."""
    assert {APP_VARIABLE, GROUP_VARIABLE} == set(re.findall(r"^\| `(CQRS_\w+)` \|", SETTINGS, re.MULTILINE))


def test_every_option_of_a_command_is_listed():
    """The page of the command line knows the options of each command, and none that is not there."""
    shown = set(re.findall(r"--[a-z][a-z-]*", COMMANDS))
    params = [param for command in _commands(main) for param in command.params]
    there = {option for param in params for option in (*param.opts, *param.secondary_opts)}
    there = {option for option in there if option.startswith("--")}

    assert there == shown


def _rows(name):
    """Return the first table after the name, as defaults by option."""
    start = re.search(rf"^(?:## )?`{re.escape(name)}`", SETTINGS, re.MULTILINE)
    table = re.search(r"(?:^\|.*\n)+", SETTINGS[start.end() :], re.MULTILINE)[0]
    return {row[1]: row[2].strip("`") for row in re.finditer(r"^\| `(\w+)` \| (.*?) \|", table, re.MULTILINE)}


def _options(callable_):
    """Return the options of a callable: what a default looks like, empty where it is no plain value."""
    found = {
        name: _shown(each.default)
        for name, each in inspect.signature(callable_).parameters.items()
        if name not in {"self", "unknown"} and each.kind is not each.POSITIONAL_ONLY
    }
    if found.pop("options", None) is not None and issubclass(callable_, SqlOutbox):
        store = inspect.signature(SqlOutbox).parameters
        found |= {name: _shown(store[name].default) for name in typing.get_type_hints(OutboxOptions)}
    return found


def _shown(default):
    if isinstance(default, enum.Enum) and default is not attrs.NOTHING:
        return f"{type(default).__name__}.{default.name}"
    plain = isinstance(default, bool | int | float | str | tuple) and default is not inspect.Parameter.empty
    return repr(default) if plain else ""


def _commands(command):
    below = command.commands.values() if isinstance(command, click.Group) else ()
    return [command, *(each for one in below for each in _commands(one))]
