"""The reference knows every public name."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

import cqrs_sync
from cqrs_sync import memory, testing
from cqrs_sync.__main__ import main

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"
LISTED = re.findall(r"^\| `(\w+)` \| \S", PAGE.read_text("utf-8"), re.MULTILINE)
PUBLIC = [*cqrs_sync.__all__, *testing.__all__]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_listed_once(name):
    """Each public name has one line of its own."""
    assert LISTED.count(name) == 1


def test_nothing_else_is_listed():
    """What the page lists is there."""
    commands = {"demo", "relay", "topology"}
    others = {"MemoryBroker", "MemoryInbox", "MemoryOutbox", "MemoryTransactions", "contracts", *commands}

    assert set(LISTED) == {*PUBLIC, *others}
    assert {name for name in others if hasattr(memory, name)} == others - {"contracts", *commands}


def test_every_option_is_listed():
    """The page knows the options of each command, and none that is not there."""
    shown = set(re.findall(r"--[a-z][a-z-]*", PAGE.read_text("utf-8").partition("## The command line")[2]))
    params = [param for command in _commands(main) for param in command.params]
    there = {option for param in params for option in (*param.opts, *param.secondary_opts)}
    there = {option for option in there if option.startswith("--")}

    assert there == shown


def _commands(command):
    below = command.commands.values() if isinstance(command, click.Group) else ()
    return [command, *(each for one in below for each in _commands(one))]
