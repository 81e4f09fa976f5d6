"""A partition in hand: how far it is finished, and what of it has to wait here."""

from __future__ import annotations

from collections import deque
from typing import Any


class Progress:
    """
    Keeps the offset up to which everything in a partition is finished, whatever the order of finishing.

    Committing less than that delivers finished messages again, committing more loses
    unfinished ones.
    """

    def __init__(self) -> None:
        self._open: deque[int] = deque()
        self._finished: set[int] = set()
        #: The partition is somebody else's by now.
        self.lapsed = False

    def handed_out(self, offset: int) -> None:
        """Take note that this offset is being worked on."""
        self._open.append(offset)

    def finished(self, offset: int) -> int | None:
        """Take note that this offset is done; return the next one to read after a restart, None where it stays."""
        waiting, finished = self._open, self._finished
        if not waiting or waiting[0] != offset:
            finished.add(offset)
            return None
        waiting.popleft()
        while waiting and waiting[0] in finished:
            offset = waiting.popleft()
            finished.remove(offset)
        return offset + 1


class Holding(Progress):
    """
    A partition that is ours.

    Nothing is handed out that is `reach` offsets or more behind the place that the broker
    keeps for the group: a partition with one message that takes for ever stops there, and
    whoever has the partition next knows what may have been in somebody's hands.

    `place` is the client's name for it. `delay` is for how long its records wait, at
    most; None where they do not. `kept` are those that the group itself has written.
    """

    def __init__(self, place: Any, origin: str, *, reach: int, delay: float | None = None, kept: bool = False) -> None:
        super().__init__()
        self.place = place
        self.origin = origin
        self.delay = delay
        self.kept = kept
        #: Records that are not due yet, with the moment they are; and those beyond the limit.
        self.early: deque[tuple[float, Any]] = deque()
        self.beyond: deque[Any] = deque()
        #: The next one to read, as far as it is finished here, until the broker has confirmed it.
        self.uncommitted: int | None = None
        #: Nobody has had this offset or later ones before.
        self.untouched: int | None = None
        #: Up to here may be handed out, and from here on it is high time to commit.
        self.limit = self.commit_at = 0
        self._reach = reach

    @property
    def waits(self) -> bool:
        """Whether some of it is held back here: nothing more should be fetched."""
        return bool(self.early or self.beyond)

    def begin(self, offset: int) -> None:
        """Take note of the first offset that was read: the broker's place for the group is not behind it."""
        self.untouched = offset + self._reach
        self._limit_from(offset)

    def reaches(self, offset: int) -> bool:
        """Tell whether this offset may be handed out."""
        if offset < self.limit:
            return True
        if self._open or self.uncommitted is not None:
            return False
        # Everything is done and known to be: there is a gap in the offsets.
        self._limit_from(offset)
        return True

    def committed(self, offset: int) -> None:
        """Take note that the broker keeps this place."""
        if self.uncommitted == offset:
            self.uncommitted = None
        self._limit_from(offset)

    def committing(self, offset: int) -> None:
        """Take note that the broker was asked to keep this place: once more is not urgent."""
        self.commit_at = offset + self._reach // 4

    def _limit_from(self, offset: int) -> None:
        self.limit = max(self.limit, offset + self._reach)
        self.commit_at = max(self.commit_at, offset + self._reach // 4)
