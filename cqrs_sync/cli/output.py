"""What commands print: JSON for programs, tables for people, and nothing a terminal obeys."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import attrs
import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cqrs_sync.workers.worker import Screen

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


logger = logging.getLogger(__name__)

P = TypeVar("P")

#: Seconds between two pictures.
_FRAME = 0.5


@attrs.frozen
class View(Generic[P]):
    """What is shown of the progress of a process."""

    #: For people, in one line.
    line: Callable[[P], Text]
    #: For programs.
    facts: Callable[[P], Mapping[str, Any]]
    #: Whether nothing comes after it.
    is_last: Callable[[P], bool]


class StatusLine(Generic[P]):
    """One line at the foot of a terminal."""

    every = _FRAME

    def __init__(self, view: View[P], console: Console) -> None:
        self._view = view
        self._live = Live(Text("starting"), console=console, auto_refresh=False, transient=True)
        self._closing = threading.Lock()
        self._live.start()

    def show(self, progress: P, /) -> None:
        """Draw it again."""
        if self._live.is_started:
            self._live.update(self._view.line(progress), refresh=True)

    def close(self) -> None:
        """Wipe it, and show the cursor again."""
        with self._closing:
            if self._live.is_started:
                self._live.stop()


class LogLines(Generic[P]):
    """A line in the log, now and then."""

    def __init__(self, view: View[P], every: float) -> None:
        self._view = view
        self.every = every
        self._is_first = True

    def show(self, progress: P, /) -> None:
        """Log it."""
        if self._is_first and not self._view.is_last(progress):
            # There is nothing to be told of yet.
            self._is_first = False
            return
        logger.info("%s", self._view.line(progress))

    def close(self) -> None:
        """Leave everything as it is."""


class JsonLines(Generic[P]):
    """A JSON object on standard output, now and then."""

    def __init__(self, view: View[P], every: float) -> None:
        self._view = view
        self.every = every

    def show(self, progress: P, /) -> None:
        """Print it."""
        if sys.stdout is None:
            # It was closed: nobody is to be told.
            return
        facts = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), **self._view.facts(progress)}
        try:
            sys.stdout.write(json.dumps(facts) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            # What is left in the buffer would fail once more when the interpreter leaves, and change its status.
            with open(os.devnull, "w") as nowhere:  # noqa: PTH123 -- it is no path of anybody's
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
            raise

    def close(self) -> None:
        """Leave everything as it is."""


def screen_for(view: View[P], *, as_json: bool, every: float) -> Screen[P]:
    """Return what fits to where standard error goes."""
    if as_json:
        return JsonLines(view, every)
    console = Console(stderr=True, highlight=False)
    is_terminal = console.is_terminal and not console.is_dumb_terminal
    return StatusLine(view, console) if is_terminal else LogLines(view, every)


def set_up_logs() -> None:
    """Log to standard error, unless the application has set up logs of its own."""
    if not logging.getLogger().handlers:
        handler = _ToStandardError()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        logging.getLogger().addHandler(handler)
        if logging.getLogger("cqrs_sync").level == logging.NOTSET:
            logging.getLogger("cqrs_sync").setLevel(logging.INFO)
    # What clients of brokers say of an outage, many times a second, a relay says once.
    for vendor in ("pika", "kafka"):
        if logging.getLogger(vendor).level == logging.NOTSET:
            logging.getLogger(vendor).setLevel(logging.CRITICAL)


class _ToStandardError(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to whatever standard error is at the moment: a line on a terminal makes way for it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)
