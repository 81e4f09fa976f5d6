"""Where the demo is shown: a live picture in a terminal, a log anywhere else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from cqrs_sync.demo import picture
from cqrs_sync.demo.ledger import Snapshot
from cqrs_sync.demo.playing import Outcome, Plan
from cqrs_sync.demo.summary import Check

#: Seconds between two pictures: often enough to be alive, seldom enough to be calm.
_FRAME = 0.25
#: Seconds between two lines of progress.
_LINE = 1.0


class LivePicture:
    """A picture that is drawn again and again in the same place, and makes way for the summary."""

    def __init__(self, console: Console, plan: Plan, address: str) -> None:
        self._console = console
        self._plan = plan
        self._address = address
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._next = 0.0

    def show(self, snapshot: Snapshot) -> None:
        """Draw, unless it has just been done."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _FRAME
            drawn = picture.live_picture(snapshot, self._plan, self._address, self._console.size)
            self._live.update(drawn, refresh=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self._live.stop()


class PlainLog:
    """One line for each first time, and one each second."""

    def __init__(self, console: Console, plan: Plan, address: str) -> None:
        self._console = console
        self._plan = plan
        self._print(f"demo of {plan.events} events, broker {address}, {plan.senders} senders, pool of {plan.pool}")
        self._known: set[str] = set()
        self._failure = False
        self._next = time.monotonic() + _LINE

    def show(self, snapshot: Snapshot) -> None:
        """Log what is new."""
        for name in picture.HANDLERS:
            if name in snapshot.handlers and name not in self._known:
                self._known.add(name)
                runs = snapshot.handlers[name]
                self._print(f"{name} runs in {picture.threads(runs.threads)}, {picture.duration(runs.median)} each")
        if snapshot.last_failure is not None and not self._failure:
            self._failure = True
            self._print(f"TextTheUser fails on purpose: {snapshot.last_failure}")
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LINE
            self._print(self._progress(snapshot))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        pass

    def _progress(self, snapshot: Snapshot) -> str:
        if not snapshot.sent:
            return "waiting for the broker"
        counts = f"{snapshot.answered} of {self._plan.events} commands answered, {snapshot.confirmed} confirmed"
        return f"{counts}, {snapshot.consumed} consumed; {picture.rate(snapshot.consumed, snapshot.elapsed)}"

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)


def summary_of(outcome: Outcome, checks: Sequence[Check], address: str, width: int) -> RenderableType:
    """Draw the end of it."""
    snapshot, inside = outcome.snapshot, picture.width_in(width)
    parts: list[RenderableType] = [
        Text(),
        picture.heading(outcome.plan, address, f"{snapshot.busy:.1f} s"),
        Text(),
        picture.handlers(snapshot, inside),
        Text(),
        _sums(checks),
        Text(),
        *_verdict(snapshot, holds=not any(check.wrong for check in checks)),
    ]
    return picture.framed(parts, width)


def _sums(checks: Sequence[Check]) -> RenderableType:
    grid = Table.grid(Column(no_wrap=True), Column(no_wrap=True), Column(), padding=(0, 1, 0, 0))
    for check in checks:
        grid.add_row(Text("no", "bold red") if check.wrong else Text("ok", "green"), f"{check.title} ", check.sum)
        for line in check.wrong:
            grid.add_row("", "", Text(line, "red"))
    return grid


def _verdict(snapshot: Snapshot, *, holds: bool) -> Sequence[RenderableType]:
    if not holds:
        return [Text("It does not add up.", "bold red")]
    total = sum(runs.total for runs in snapshot.handlers.values())
    return [
        Text("It adds up: nothing lost, nothing doubled.", "bold green"),
        Text(f"{total:.1f} s of handlers in {snapshot.busy:.1f} s: {total / snapshot.busy:.1f} at a time.", "dim"),
        Text("The code that ran: cqrs_sync/demo/meetings.py and directory.py", "dim"),
    ]
