"""The first pages promise what the others hold: figures are those that were measured, pictures are shown."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOME = (ROOT / "docs/index.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")
STORMS = (ROOT / "docs/storms.md").read_text("utf-8")
BENCHMARKS = (ROOT / "docs/benchmarks.md").read_text("utf-8")


def test_the_readme_and_the_home_page_promise_the_same():
    """Their tables of guarantees and speed, and their examples, are the same."""
    promised = HOME.partition("## What is guaranteed\n")[2].partition("\n## ")[0]
    example = re.search(r"^```python\n.*?^```", HOME, re.DOTALL | re.MULTILINE)[0]
    readme = README.replace("](docs/", "](")

    assert [row for row in promised.splitlines() if row.startswith("|") and row not in readme] == []
    assert example in README


def test_figures_of_storms_are_those_of_the_last_ones():
    """How many orders and messages there were, in how many storms, and what became of them."""
    outbox, consumers = (_rows(part) for part in STORMS.split("\n## Storms over consumers\n"))
    killed = [row for row in outbox if row[0].startswith("kills")]
    workers = sum(int(row[-1].partition(" ")[0]) for row in consumers if row[0].startswith("kills"))

    assert f"{_sum(outbox, 1):,} orders in {len(outbox)} [storms]" in HOME
    assert f"{_sum(killed, 5)} of {_sum(killed, 1):,} orders" in HOME
    assert f"{_sum(consumers, 1):,} messages in {len(consumers)} storms, {workers} workers killed" in HOME
    assert [0, 0, 0] == [_sum(outbox, column) for column in (2, 3, 4)]
    assert [0, 0, 0] == [_sum(consumers, column) for column in (3, 4, 5)]


def test_figures_of_speed_are_those_of_the_last_benchmarks():
    """Milliseconds are rounded, messages a second as the benchmarks give them."""
    figures = {row[0]: float(row[1].split()[0]) for row in _rows(BENCHMARKS) if re.match(r"[\d.e+]+ ", row[1])}
    lags = [f"{figures[f'commit to broker, {which}']:.0f} ms" for which in ("median", "p95")]
    relays = [f"{figures[f'relay to {broker}, no keys']:,.0f}" for broker in ("rabbitmq", "kafka")]
    consumers = [f"{figures[f'consuming from {broker}']:,.0f}" for broker in ("rabbitmq", "kafka")]

    assert f"| {', '.join(lags)} |" in HOME
    assert f"| {', '.join(relays)} messages/s |" in HOME
    assert f"| {', '.join(consumers)} messages/s |" in HOME


def test_every_picture_is_shown():
    """Each file of `docs/images` is on a page, and none is large."""
    pages = "".join(page.read_text("utf-8") for page in (ROOT / "docs").rglob("*.md"))
    pictures = list((ROOT / "docs/images").iterdir())

    assert [picture.name for picture in pictures if f"images/{picture.name})" not in pages] == []
    assert sum(picture.stat().st_size for picture in pictures) < 1_000_000


def test_every_decision_is_listed():
    """The list of decision records has each of them, with its title."""
    records = sorted((ROOT / "docs/adr").glob("0*.md"))
    listed = re.findall(r"^- \[(\d{4}) .*\]\((.+)\)$", (ROOT / "docs/adr/README.md").read_text("utf-8"), re.MULTILINE)

    assert [(record.name[:4], record.name) for record in records] == listed


def _rows(page: str) -> list[list[str]]:
    """Return the rows of its tables whose second column is a number."""
    lines = re.findall(r"^\|(.*)\|$", page, re.MULTILINE)
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    return [row for row in rows if len(row) > 2 and re.match(r"\d", row[1])]


def _sum(rows: list[list[str]], column: int) -> int:
    return sum(int(row[column]) for row in rows)
