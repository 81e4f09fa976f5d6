"""What a page shows of an example is in the example."""

from __future__ import annotations

import re

import pytest

from tests.docs.test_pages import PAGES, blocks_of, name_of
from tests.source import ROOT

EXCERPTS = [
    (block, example[0])
    for page in PAGES
    for block in blocks_of(page, {"python"})
    if block.reason and (example := re.match(r"docs/examples/\S+\.py", block.reason))
]


@pytest.mark.parametrize(
    ("block", "example"), EXCERPTS, ids=[f"{name_of(block.page)}:{block.line}" for block, _ in EXCERPTS]
)
def test_an_excerpt_is_in_its_example(block, example):
    """A block that is said to be part of an example is found there, word for word."""
    text = (ROOT / example).read_text("utf-8")
    shown = [line.strip() for line in block.body.splitlines()]
    lines = [line.strip() for line in text.splitlines()]

    assert any(lines[at : at + len(shown)] == shown for at in range(len(lines)))
