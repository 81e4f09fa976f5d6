"""How far a group has come in one partition."""

from __future__ import annotations

from collections import deque


class Progress:
    """
    Keeps the offset up to which everything is finished, whatever the order of finishing.

    Committing less than that delivers finished messages again, committing more loses
    unfinished ones.
    """

    def __init__(self) -> None:
        self._open: deque[int] = deque()
        self._finished: set[int] = set()

    def handed_out(self, offset: int) -> None:
        """Take note that this offset is being worked on."""
        self._open.append(offset)

    def finished(self, offset: int) -> int | None:
        """Take note that this offset is done; return the next one to read after a restart, None where it stays."""
        self._finished.add(offset)
        last = None
        while self._open and self._open[0] in self._finished:
            last = self._open.popleft()
            self._finished.remove(last)
        return None if last is None else last + 1
