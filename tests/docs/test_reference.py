"""The reference knows every public name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import cqrs_sync
from cqrs_sync import memory, testing

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"
LISTED = re.findall(r"^\| `(\w+)` \| \S", PAGE.read_text("utf-8"), re.MULTILINE)
PUBLIC = [*cqrs_sync.__all__, *testing.__all__]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_listed_once(name):
    """
    Each public name has one line of its own.
    """
    assert LISTED.count(name) == 1


def test_nothing_else_is_listed():
    """
    What the page lists is there.
    """
    others = {
        "MemoryBroker",
        "MemoryOutbox",
        "MemoryTransactions",
        "contracts",
        "demo",
        "relay",
        "status",
        "dead",
        "purge",
    }

    assert set(LISTED) == {*PUBLIC, *others}
    assert {name for name in others if hasattr(memory, name)} == {"MemoryBroker", "MemoryOutbox", "MemoryTransactions"}
