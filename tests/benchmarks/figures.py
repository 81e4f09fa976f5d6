"""One figure of a benchmark: what was measured, and the bar it is held against."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import attrs


@attrs.frozen
class Figure:
    """A median over rounds; `at_most` tells which side of the bar is good."""

    name: str
    value: float
    bar: float | None
    unit: str = "x"
    at_most: bool = True

    @property
    def reached(self) -> bool:
        """Whether the bar is met; a figure without one always is."""
        return self.bar is None or (self.value <= self.bar if self.at_most else self.value >= self.bar)


def seconds(call: Callable[[], object], times: int) -> float:
    """Return the seconds one of `times` calls took."""
    begin = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - begin) / times


def rounds_of(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Let contenders take turns, so that a slow moment of the machine meets them all."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            figures[name].append(measure())
    return figures


def ratio(figures: Mapping[str, list[float]], one: str, other: str) -> float:
    """Return the median of `one` over `other`, round by round."""
    return statistics.median(a / b for a, b in zip(figures[one], figures[other], strict=True))


def table(figures: list[Figure]) -> str:
    """Return figures as a Markdown table."""
    lines = ["| what | measured | bar | |", "|---|---:|---:|---|"]
    for figure in figures:
        bar = "" if figure.bar is None else f"{'≤' if figure.at_most else '≥'} {figure.bar:g} {figure.unit}"
        verdict = "" if figure.bar is None else ("reached" if figure.reached else "**missed**")
        lines.append(f"| {figure.name} | {figure.value:.3g} {figure.unit} | {bar} | {verdict} |")
    return "\n".join(lines)
