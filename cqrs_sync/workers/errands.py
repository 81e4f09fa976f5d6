"""What a process does beside its work, now and then."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from cqrs_sync.errors import CqrsError
from cqrs_sync.retry import LogThrottle, suppressed_suffix

logger = logging.getLogger(__name__)

#: Seconds until something is tried again that failed.
_AGAIN = 2.0


class Errand:
    """
    Does something again and again in a thread of its own, whatever goes wrong.

    `do` returns the seconds until it is to be done again, None where it is done for good. It may wait for a
    database as long as it likes: nobody waits for it. A database that cannot be reached is left to others to tell of.
    """

    def __init__(self, name: str, do: Callable[[], float | None], release_connection: Callable[[], object]) -> None:
        """Do it, with `release_connection` called in the same thread before long pauses and at the end."""
        self._do = do
        self._let_go = release_connection
        self._seldom = LogThrottle()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread. Raises RuntimeError where the system gives none."""
        self._thread.start()

    def end(self) -> None:
        """Do it no more; what is being done is left alone."""
        self._ended.set()

    def pause(self, seconds: float) -> bool:
        """Wait in between, called by `do`; True where it is to end."""
        return self._ended.wait(seconds)

    def _run(self) -> None:
        pause: float | None = 0.0
        while pause is not None and not self._ended.wait(pause):
            pause = self._once()
        self._let_go()

    def _once(self) -> float | None:
        try:
            pause = self._do()
            if pause is not None and pause > _AGAIN:
                self._let_go()
        except CqrsError as error:
            logger.debug("%s: %s", self._thread.name, error)
        except Exception:
            unsaid = self._seldom.due()
            if unsaid is not None:
                logger.exception("%s failed, and is tried again%s", self._thread.name, suppressed_suffix(unsaid))
        else:
            return pause
        return _AGAIN
