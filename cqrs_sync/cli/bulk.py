"""Work through much, chunk by chunk, and show how far it is."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cqrs_sync.cli.app import INTERRUPTED
from cqrs_sync.cli.options import Rate
from cqrs_sync.cli.output import as_json, tell

rate_option = click.option("--rate", type=Rate(), metavar="NUMBER", help="Not more than so many a second.")
_HOW = (
    click.pass_context,
    as_json,
    click.option("--dry-run", is_flag=True, help="Count them and change nothing."),
    click.option("--yes", "-y", is_flag=True, help="Do not ask."),
    click.option("--all", "everything", is_flag=True, help="All of them."),
)


def changes(*choosing: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a decorator for a command that changes many things: the options `choosing` say which."""

    def decorated(command: Any) -> Any:
        for decorate in (*_HOW, *reversed(choosing)):
            command = decorate(command)
        return command

    return decorated


def confirm(question: str, *, yes: bool) -> None:
    """Ask on a terminal, unless that was answered with `yes`. Raises click.Abort where the answer is no."""
    if not yes and _can_ask():
        click.confirm(question, abort=True, err=True)


def check_that_it_is_meant(*, yes: bool, dry_run: bool) -> None:
    """Raise click.UsageError where something is to be deleted for ever, and nobody is there to be asked."""
    if not (yes or dry_run or _can_ask()):
        raise click.UsageError("what is deleted is gone, and there is no terminal to ask on: add --yes, or --dry-run")


def tell_how_a_reason_is_written(where: str) -> None:
    """Say on standard error why a reason has chosen nothing; `where` are the reasons in the JSON of `list`."""
    group = click.get_current_context().parent
    path = "" if group is None else f"{group.command_path} "
    # A table cuts what is long into lines, and JSON escapes what is not ASCII.
    click.echo(
        "none that is dead has this reason, which is compared as a whole: copy it from "
        f"`{path}list --by-reason --json | jq -r '.{where}[].reason'`",
        err=True,
    )


def _can_ask() -> bool:
    # There is none where it was closed.
    return sys.stdin is not None and sys.stdin.isatty()


class Work:
    """
    What is done in small transactions, of which each stands by itself.

    Ctrl-C ends it after the last one that has committed; `interrupted` tells so.
    """

    def __init__(self, doing: str) -> None:
        """Show it as `doing`."""
        self._doing = doing
        self.done = 0
        self.interrupted = False

    def through(self, chunks: Iterable[int], total: int | None, rate: float | None = None) -> Work:
        """Take all chunks, not more than `rate` a second; on a terminal with a bar."""
        never = threading.Event()
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task(self._doing, total=total)
            try:
                for count in chunks:
                    self.done += count
                    progress.advance(task, count)
                    if rate is not None and self.done != total:
                        never.wait(count / rate)
            except KeyboardInterrupt:
                self.interrupted = True
        return self

    def tell(self, facts: Mapping[str, Any], words: str, *, as_json: bool) -> None:
        """Tell what was done; where Ctrl-C has ended it, leave with the status for that."""
        more = ", then interrupted" if self.interrupted else ""
        tell({**facts, "interrupted": self.interrupted}, f"{words}{more}", as_json=as_json)
        if self.interrupted:
            sys.exit(INTERRUPTED)
