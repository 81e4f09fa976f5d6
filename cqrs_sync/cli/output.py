"""What commands print: JSON for programs, text for people that is safe on terminals, the progress of a worker."""

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

from cqrs_sync.cli.app import USAGE
from cqrs_sync.workers.worker import Display

logger: logging.Logger = logging.getLogger(__name__)

P = TypeVar("P")

#: Columns of a table that is not printed on a terminal.
_LOG_WIDTH = 160
_NUMBERS = {"number", "pending", "tried", "dead", "attempts", "age", "count", "waiting", "delayed"}
#: Seconds between two frames on a terminal.
_FRAME = 0.5


class CannotWrite(click.ClickException):
    """Standard output cannot be written."""

    exit_code = USAGE


def print_line(text: str = "", *, color: bool | None = None) -> None:
    """Print a line. Raises CannotWrite if that fails, for example on a full disk."""
    try:
        click.echo(text, color=color)
    except OSError as error:
        # The reader has closed the pipe: it has read enough, and click exits without a word.
        if error.errno == errno.EPIPE:
            raise
        raise CannotWrite(f"standard output cannot be written: {error.strerror}") from error


def print_json(facts: Mapping[str, Any]) -> None:
    """Print one JSON object in one line, in ASCII."""
    print_line(json.dumps(facts))


def print_table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print these columns of the rows."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in _NUMBERS else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(row[column])) for column in columns))
    # It is None if the process was started with it closed.
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    drawn = io.StringIO()
    width = None if is_terminal else _LOG_WIDTH
    Console(file=drawn, force_terminal=is_terminal, highlight=False, width=width).print(table)
    for line in drawn.getvalue().splitlines():
        print_line(line.rstrip(), color=is_terminal or None)


def printable(value: Any, limit: int | None = None) -> str:
    """Return a value as one line without control characters; text longer than `limit` is cut."""
    text = "" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)
    more = "" if limit is None or len(text) <= limit else f"… ({len(text)} characters)"
    return "".join(map(_escape, text if limit is None else text[:limit])) + more


def _escape(character: str) -> str:
    # The others move the cursor, turn the direction of reading, or are no characters at all.
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def format_duration(seconds: float) -> str:
    """Return a duration for people."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.1f} min"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as `1 message` or `2,000 messages`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@attrs.frozen
class ReportFormat(Generic[P]):
    """How the progress of a worker is shown."""

    #: For people, in one line.
    line: Callable[[P], Text]
    #: For programs.
    facts: Callable[[P], Mapping[str, Any]]
    #: Whether it is the last report.
    is_last: Callable[[P], bool]


class StatusLine(Generic[P]):
    """One line at the bottom of a terminal."""

    every = _FRAME

    def __init__(self, report_format: ReportFormat[P], console: Console) -> None:
        self._format = report_format
        self._live = Live(Text("starting"), console=console, auto_refresh=False, transient=True)
        self._closing = threading.Lock()
        self._live.start()

    def show(self, progress: P, /) -> None:
        """Draw the line."""
        if self._live.is_started:
            self._live.update(self._format.line(progress), refresh=True)

    def close(self) -> None:
        """Wipe the line, and show the cursor again."""
        with self._closing:
            if self._live.is_started:
                self._live.stop()


class _Lines(Generic[P]):
    def __init__(self, report_format: ReportFormat[P], every: float) -> None:
        self._format = report_format
        self.every = every
        self._is_first = True

    def close(self) -> None:
        """Do nothing."""


class LogLines(_Lines[P]):
    """A line in the log every few seconds."""

    def show(self, progress: P, /) -> None:
        """Log the line; the first report is skipped, for nothing has happened yet."""
        if self._is_first and not self._format.is_last(progress):
            self._is_first = False
            return
        logger.info("%s", self._format.line(progress))


class JsonLines(_Lines[P]):
    """A JSON object on standard output every few seconds."""

    def show(self, progress: P, /) -> None:
        """Print the object."""
        if sys.stdout is None:
            return
        facts = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), **self._format.facts(progress)}
        try:
            sys.stdout.write(json.dumps(facts) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            # The interpreter would flush the rest of the buffer at its exit, fail, and change its exit status.
            with open(os.devnull, "w") as nowhere:  # noqa: PTH123 -- not a path of the user
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
            raise


def display_for(report_format: ReportFormat[P], *, as_json: bool, every: float) -> Display[P]:
    """Return a display that fits standard error, or JSON lines."""
    every = max(every, 0.1)
    if as_json:
        return JsonLines(report_format, every)
    console = Console(stderr=True, highlight=False)
    is_terminal = console.is_terminal and not console.is_dumb_terminal
    return StatusLine(report_format, console) if is_terminal else LogLines(report_format, every)


def configure_logging() -> None:
    """Log to standard error, unless the application has configured logging."""
    if not logging.getLogger().handlers:
        handler = _StandardErrorHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        logging.getLogger().addHandler(handler)
        if logging.getLogger("cqrs_sync").level == logging.NOTSET:
            logging.getLogger("cqrs_sync").setLevel(logging.INFO)
    # kafka-python logs an outage many times a second; the workers log it once.
    if logging.getLogger("kafka").level == logging.NOTSET:
        logging.getLogger("kafka").setLevel(logging.CRITICAL)


class _StandardErrorHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to the current standard error: a status line replaces it while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)
