"""Where a process shows how far it is: a line that changes on a terminal, a line a minute anywhere else."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import attrs
from rich.console import Console
from rich.live import Live
from rich.text import Text

from cqrs_sync.workers.progress import Screen

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
