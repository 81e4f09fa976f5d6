"""What the demo shows: a picture while it runs, a summary at the end."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from cqrs_sync.demo.run import Check, DemoRun


def picture(run: DemoRun, title: str) -> RenderableType:
    """Draw the counts of this moment."""
    bars = Table.grid("", Column(ratio=1), Column(justify="right"), padding=(0, 1), expand=True)
    for label, count in (("answered", run.answered), ("confirmed", len(run.confirmed)), ("consumed", run.consumed)):
        bars.add_row(label, ProgressBar(total=run.events, completed=count), f"{count}/{run.events}")
    failure = f"text_the_user fails on purpose: {run.last_failure}" if run.last_failure else ""
    return Group("", _heading(run, title), "", bars, "", _handlers(run), "", Text(failure, "yellow"))


def summary(run: DemoRun, checks: Sequence[Check], title: str) -> RenderableType:
    """Draw the end: what each handler did, and whether it adds up."""
    sums = Table.grid(padding=(0, 2, 0, 0))
    for check in checks:
        sums.add_row(Text("no", "bold red") if check.wrong else Text("ok", "green"), check.title, check.sum)
        for wrong in check.wrong[:3]:
            sums.add_row("", "", Text(wrong, "red"))
    verdict = Text("It adds up: nothing lost, nothing doubled.", "bold green")
    if any(check.wrong for check in checks):
        verdict = Text("It does not add up.", "bold red")
    heading = Text(f"{title}, {run.ended - run.began:.1f} s", "bold")
    return Group(
        "", heading, "", _handlers(run), "", sums, "", verdict, "The code that ran: cqrs_sync/demo/meetings.py"
    )


def _heading(run: DemoRun, title: str) -> RenderableType:
    return Text(f"{title}, {run.ended - run.began:.1f} s", "bold")


def _handlers(run: DemoRun) -> RenderableType:
    table = Table("handler", "runs", "failed", "mean", "longest", "threads", box=None, pad_edge=False)
    for name, handler in run.handlers.items():
        times = [f"{1000 * time:.1f} ms" for time in (handler.seconds / max(handler.runs, 1), handler.longest)]
        table.add_row(name, str(handler.runs), str(handler.failed), *times, str(len(handler.threads)))
    return table
