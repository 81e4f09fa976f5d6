"""What fails for a while is tried ever more rarely, and told of now and then."""

from __future__ import annotations

import logging
import time
from typing import Any

from cqrs_sync.retries import grown

#: Seconds for which what was said is not said again.
_QUIET = 30.0


class Seldom:
    """Tells when something that happens again and again is to be said: at once, and half a minute after that."""

    def __init__(self) -> None:
        self._said: float | None = None
        self._unsaid = 0

    def due(self) -> int | None:
        """
        Return how often it was not said since it was; None where it is not to be said yet.

        Threads that ask at the same moment may both be told to.
        """
        now = time.monotonic()
        if self._said is not None and now - self._said < _QUIET:
            self._unsaid += 1
            return None
        unsaid, self._unsaid, self._said = self._unsaid, 0, now
        return unsaid


class Trouble:
    """
    Something that fails, until it succeeds again.

    Between attempts there are `first` seconds, twice as many after each further failure, `ceiling` at most; each
    pause is shortened at random, by up to a half.
    """

    def __init__(self, logger: logging.Logger, first: float, ceiling: float) -> None:
        self._logger = logger
        self._first, self._ceiling = first, ceiling
        self._seldom = Seldom()
        #: How often it has failed since it last succeeded.
        self.failures = 0

    def failed(self, level: int, words: str, *arguments: object, exc_info: Any = None) -> float:
        """Note a failure, and say so unless that was said a moment ago; returns the seconds until the next attempt."""
        self.failures += 1
        unsaid = self._seldom.due()
        if unsaid is not None:
            text = f"{words}{more_of(unsaid)}"
            self._logger.log(level, text, *arguments, exc_info=exc_info, stacklevel=2)
        return grown(self.failures, self._first, self._ceiling)

    def is_over(self) -> bool:
        """Note that it succeeds; True where it failed before. The next failure is said at once."""
        if not self.failures:
            return False
        self.failures = 0
        self._seldom = Seldom()
        return True


def more_of(unsaid: int) -> str:
    """Return what to add to a line that was held back so often."""
    return f" (and {unsaid} more like it)" if unsaid else ""
