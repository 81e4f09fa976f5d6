"""
Measure everything, and write the figures where readers find them.

    python -m tests.benchmarks [--rounds 15] [--write]

`--write` puts a table and a plot into docs/. RabbitMQ is taken from
CQRS_TEST_RABBITMQ_URL or its default port; the Kafka-compatible broker is started.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

from tests.benchmarks import (
    confluent_publish,
    consume,
    dispatch,
    imports,
    kafka_publish,
    rabbitmq_publish,
    relay,
    resolve,
    thread_pool,
)
from tests.benchmarks.figures import Figure, table

_DOCS = Path(__file__).parents[2] / "docs"

_PAGE = """\
# Benchmarks

`python -m tests.benchmarks --write` measures and writes this page. Each limit and
each candidate run in one process and take turns; a figure is the median over
{rounds} rounds of their ratio, so that a slow moment of the machine meets both.
These figures are from Python {python}, two cores shared with the broker and with whatever
else ran; the ratios with RabbitMQ in them move most. What misses its bar is shown as missed.

{tables}

![Every figure beside its bar](benchmarks.svg)
"""


def main() -> None:
    """Run every benchmark."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md and docs/benchmarks.svg")
    options = parser.parse_args()
    groups: dict[str, list[Figure]] = {}
    for title, run in (
        ("Dispatch", dispatch.run),
        ("Thread pool", thread_pool.run),
        ("Import", imports.run),
        ("Container", _resolve),
        ("RabbitMQ", _rabbitmq),
        ("Kafka", _kafka),
        ("Kafka through librdkafka", _confluent),
        ("Relay", relay.run),
        ("Consumer", consume.run),
    ):
        groups[title] = run(options.rounds)
        print(f"\n## {title}\n\n{table(groups[title])}", flush=True)
    if options.write:
        tables = "\n\n".join(f"## {title}\n\n{table(figures)}" for title, figures in groups.items())
        page = _PAGE.format(rounds=options.rounds, python=platform.python_version(), tables=tables)
        (_DOCS / "benchmarks.md").write_text(page)
        _plot([figure for figures in groups.values() for figure in figures if figure.bar is not None])


def _resolve(rounds: int) -> list[Figure]:
    figures = []
    for name, ours, bar, theirs in resolve.run(rounds):
        figures += [
            Figure(f"resolve, {name}", ours, bar, "µs"),
            Figure(f"the same by punq, {name}", theirs, None, "µs"),
        ]
    return figures


def _rabbitmq(rounds: int) -> list[Figure]:
    return [Figure(name, value, bar, at_most=False) for name, value, bar in rabbitmq_publish.run(rounds)]


def _kafka(rounds: int) -> list[Figure]:
    return [Figure(name, value, bar, at_most=False) for name, value, bar in kafka_publish.run(rounds)]


def _confluent(rounds: int) -> list[Figure]:
    return [Figure(name, value, bar, at_most=False) for name, value, bar in confluent_publish.run(rounds)]


def _plot(figures: list[Figure]) -> None:
    """Draw how far each figure is on the good side of its bar: 1 is the bar, right of it is better."""
    import matplotlib.pyplot as plt  # noqa: PLC0415 -- only who writes the page needs it

    margins = [
        (figure.bar or 1) / figure.value if figure.at_most else figure.value / (figure.bar or 1) for figure in figures
    ]
    plot, axes = plt.subplots(figsize=(9, 0.3 * len(figures) + 1))
    colours = ["#2a9d8f" if figure.reached else "#e76f51" for figure in figures]
    axes.barh([figure.name for figure in figures], margins, color=colours)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("times as good as its bar (right of the line: reached)")
    axes.invert_yaxis()
    plot.tight_layout()
    plot.savefig(_DOCS / "benchmarks.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
