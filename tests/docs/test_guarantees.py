"""The guarantees page names every promise, and the tests it names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
ROWS = dict(re.findall(r"^\| ([DTBX]\d) \| .* \| (.*) \|$", PAGE, re.MULTILINE))


def test_every_promise_has_a_row():
    """D1 to D7, T1 to T6, B1 to B7 and those of transactions each have one."""
    lasts = (("D", 7), ("T", 6), ("B", 7), ("X", 2))
    expected = [f"{kind}{number}" for kind, last in lasts for number in range(1, last + 1)]

    assert list(ROWS) == expected


@pytest.mark.parametrize("promise", ROWS)
def test_the_tests_of_a_promise_are_there(promise):
    """Each test file that a row names exists."""
    patterns = re.findall(r"`(.+?)`", ROWS[promise])
    lost = [pattern for pattern in patterns if not list(ROOT.glob(pattern))]

    assert patterns
    assert lost == []
