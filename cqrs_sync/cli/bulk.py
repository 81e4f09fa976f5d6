"""Change many things in small steps: choose, confirm, show progress, stop at Ctrl-C, print the result."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cqrs_sync.cli.app import INTERRUPTED
from cqrs_sync.cli.options import Rate, add_options, json_option
from cqrs_sync.cli.output import print_json, print_line

bulk_options: Callable[[Any], Any] = add_options(
    click.option("--all", "everything", is_flag=True, help="All of them."),
    click.option("--dry-run", is_flag=True, help="Count them and change nothing."),
    click.option("--yes", "-y", is_flag=True, help="Do not ask."),
    click.option("--rate", type=Rate(), metavar="NUMBER", help="At most so many per second."),
    json_option,
)


def confirm(question: str, *, yes: bool) -> None:
    """Ask on a terminal unless `yes` is given. Raises click.Abort if the answer is no."""
    if not yes and _can_ask():
        click.confirm(question, abort=True, err=True)


def require_confirmation(*, yes: bool, dry_run: bool) -> None:
    """Raise click.UsageError before something is deleted without `--yes` and without a terminal to ask on."""
    if not (yes or dry_run or _can_ask()):
        raise click.UsageError("this deletes for good, and there is no terminal to ask on: add --yes, or --dry-run")


def _can_ask() -> bool:
    # It is None if the process was started with it closed.
    return sys.stdin is not None and sys.stdin.isatty()


class BulkJob:
    """
    Work that is done in small steps, each of which stands on its own.

    Ctrl-C ends it after the last step that was committed.
    """

    def __init__(self, title: str) -> None:
        """Show it as `title` in the progress bar."""
        self._title = title
        self.done: int = 0
        self.interrupted: bool = False

    def run(self, steps: Iterable[int], total: int | None) -> BulkJob:
        """Take all steps; each tells how many it did, of `total`. A terminal gets a progress bar."""
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task(self._title, total=total)
            try:
                for count in steps:
                    self.done += count
                    progress.advance(task, count)
            except KeyboardInterrupt:
                self.interrupted = True
        return self

    def finish(self, facts: Mapping[str, Any], text: str, *, as_json: bool) -> None:
        """Print the result; exit with the status of Ctrl-C if that has ended the job."""
        if as_json:
            print_json({**facts, "interrupted": self.interrupted})
        else:
            print_line(f"{text}, then interrupted" if self.interrupted else text)
        if self.interrupted:
            sys.exit(INTERRUPTED)
