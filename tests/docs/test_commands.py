"""Commands that pages name within a sentence or a table exist, with their options."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from cqrs_sync.__main__ import main
from tests.docs.test_pages import PAGES, name_of

_BLOCK = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`cqrs-sync ([^`\n]+)`")
_SHOWN = [
    (page, found) for page in PAGES for found in sorted(set(_INLINE.findall(_BLOCK.sub("", page.read_text("utf-8")))))
]


@pytest.mark.parametrize(("page", "line"), _SHOWN, ids=[f"{name_of(page)}:{line}" for page, line in _SHOWN])
def test_a_command_within_a_sentence_is_there(page, line):
    """Its command, its subcommands and its options; arguments may be left out there."""
    command, words = main, shlex.split(line)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        assert words[0] in command.commands
        command = command.commands[words.pop(0)]
    options = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}

    assert {word for word in words if word.startswith("--")} <= options
