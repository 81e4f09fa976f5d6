"""Durations as operators write them."""

from __future__ import annotations

from typing import Any

import click

from cqrs_sync.workers.desk import seconds


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
