"""Work through much, chunk by chunk, and show how far it is."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


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
