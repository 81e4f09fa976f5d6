"""Durations and sizes as operators write them."""

from __future__ import annotations

import math
import re
from typing import Any

import click

from cqrs_sync.workers.desk import seconds

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on
    """A number of seconds, or one with a unit."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it, or fail with what can be read."""
        if isinstance(value, (int, float)):
            return float(value)
        try:
            return seconds(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Rate(click.FloatRange):
    """So many a second; one in a quarter of an hour at least."""

    def __init__(self) -> None:
        super().__init__(0.001, 1_000_000)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it, or fail with what can be read."""
        rate: float = super().convert(value, param, ctx)
        if math.isnan(rate):
            self.fail(f"{value!r} is no number", param, ctx)
        return rate


class Durations(click.ParamType):  # type: ignore[type-arg]  # as above
    """Durations, separated by commas. Empty text is an empty list."""

    name = "durations"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Read them, or fail with what can be read."""
        if isinstance(value, tuple):
            return value
        parts = [part for part in str(value).split(",") if part.strip()]
        return tuple(Duration().convert(part, param, ctx) for part in parts)


class Size(click.ParamType):  # type: ignore[type-arg]  # as above
    """A number of bytes, or one with a unit."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it, or fail with what can be read."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]{1,15})([KMG]?)(?:i?B)?", value.strip(), re.IGNORECASE)
        if found is None:
            self.fail(f"{value!r} is no size: write 512M or 2G", param, ctx)
        return int(found[1]) * _UNITS[found[2].upper()]
