"""What commands print: JSON for programs, tables for people, and nothing a terminal obeys."""

from __future__ import annotations

import errno
import io
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

#: Columns of a log, which has no edge.
_LOG_WIDTH = 160
_NUMBERS = {"number", "pending", "tried", "dead", "attempts", "age", "count", "waiting", "delayed"}

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


class CannotWrite(click.ClickException):
    """Said in one line: what was asked for cannot be written."""

    exit_code = 2


def say(text: str = "", *, color: bool | None = None) -> None:
    """Print a line. Raises CannotWrite where that cannot be, as on a full disk."""
    try:
        click.echo(text, color=color)
    except OSError as error:
        # Whoever reads no more has read enough: click leaves without a word.
        if error.errno == errno.EPIPE:
            raise
        raise CannotWrite(f"standard output cannot be written: {error.strerror}") from error


def print_json(facts: Mapping[str, Any]) -> None:
    """Print one JSON object in one line, in ASCII."""
    say(json.dumps(facts))


def tell(facts: Mapping[str, Any], words: str, *, as_json: bool) -> None:
    """Print facts as JSON, or in words."""
    if as_json:
        print_json(facts)
    else:
        say(words)


def print_table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print these columns of rows."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in _NUMBERS else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(escaped(row[column])) for column in columns))
    # There is none where it was closed.
    terminal = sys.stdout is not None and sys.stdout.isatty()
    width = None if terminal else _LOG_WIDTH
    drawn = io.StringIO()
    Console(file=drawn, force_terminal=terminal, highlight=False, width=width).print(table)
    for line in drawn.getvalue().splitlines():
        say(line.rstrip(), color=terminal or None)


def escaped(value: Any, limit: int | None = None) -> str:
    """Return a value as one line that no terminal obeys; of what is longer than `limit`, so many characters."""
    text = "" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)
    more = "" if limit is None or len(text) <= limit else f"… ({len(text)} characters)"
    return "".join(map(_escape, text if limit is None else text[:limit])) + more


def _escape(character: str) -> str:
    # What is not printable moves the cursor, turns the direction of reading, or is no character at all.
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def duration(seconds: float) -> str:
    """Return a duration for people."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.1f} min"
