"""Where a relay process shows how far it is: a line that changes on a terminal, a line a minute anywhere else."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from datetime import UTC, datetime

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cqrs_sync.commands.text import duration
from cqrs_sync.workers.progress import Progress, Screen

logger = logging.getLogger(__name__)

#: Seconds between two pictures.
_FRAME = 0.5


class StatusLine:
    """One line at the foot of a terminal."""

    every = _FRAME

    def __init__(self, console: Console) -> None:
        self._live = Live(Text("relaying"), console=console, auto_refresh=False, transient=True)
        self._closing = threading.Lock()
        self._live.start()

    def show(self, progress: Progress, /) -> None:
        """Draw it again."""
        if self._live.is_started:
            self._live.update(_line(progress), refresh=True)

    def close(self) -> None:
        """Wipe it, and show the cursor again."""
        with self._closing:
            if self._live.is_started:
                self._live.stop()


class LogLines:
    """A line in the log, now and then."""

    def __init__(self, every: float) -> None:
        self.every = every
        self._is_first = True

    def show(self, progress: Progress, /) -> None:
        """Log it."""
        if self._is_first and not progress.has_ended:
            # There is nothing to be told of yet.
            self._is_first = False
            return
        logger.info("%s", _line(progress))

    def close(self) -> None:
        """Leave everything as it is."""


class JsonLines:
    """A JSON object on standard output, now and then."""

    def __init__(self, every: float) -> None:
        self.every = every

    def show(self, progress: Progress, /) -> None:
        """Print it."""
        backlog = progress.backlog
        facts = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "state": "ended" if progress.has_ended else "ending" if progress.is_ending else "relaying",
            "delivered": progress.delivered,
            "per_second": round(progress.per_second, 1),
            "seconds": round(progress.seconds, 3),
            "waiting": None if backlog is None else backlog.waiting,
            "lag": None if backlog is None or backlog.oldest is None else round(backlog.oldest, 3),
            "dead": None if backlog is None else backlog.dead,
        }
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


def screen_for(*, as_json: bool, every: float) -> Screen:
    """Return what fits to where standard error goes."""
    if as_json:
        return JsonLines(every)
    console = Console(stderr=True, highlight=False)
    return StatusLine(console) if console.is_terminal and not console.is_dumb_terminal else LogLines(every)


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


def _line(progress: Progress) -> Text:
    backlog = progress.backlog
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append("ending" if progress.is_ending else "relaying", "bold")
    line.append(f": {progress.delivered:,} delivered, {progress.per_second:,.0f}/s")
    if backlog is None:
        return line.append(", the outbox cannot be counted", "red")
    lag = "" if backlog.oldest is None else f", lag {duration(backlog.oldest)}"
    line.append(f"; {backlog.waiting:,} wait{lag}; ")
    return line.append(f"{backlog.dead:,} dead", "red" if backlog.dead else "")
