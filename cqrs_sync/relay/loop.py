"""A thread that works as long as there is work, and sleeps until it is woken."""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

from cqrs_sync.errors import ConfigurationError, OutboxUnavailable
from cqrs_sync.retry import Backoff

logger = logging.getLogger(__name__)

#: Seconds between attempts to reach a database, at first and at most.
_FIRST, _CEILING = 0.2, 5.0
#: Who sleeps for longer than these seconds gives up his database connection.
_NAP = 10.0


class Courier(Protocol):
    """Delivers, one step at a time; `deliver` is called by one thread."""

    def deliver(self) -> float | None:
        """
        Deliver what there is.

        Returns the seconds after which to call it again: 0 where there may be more, None where
        it has nothing to do until it is woken.
        """

    def finish(self, *, drain: bool) -> None:
        """Claim only what can be delivered at once, or, without `drain`, nothing more; called by any thread."""

    def release_connection(self) -> None:
        """Give up the database connection of this thread, until it needs one again."""


class Loop:
    """
    Calls a courier in a thread of its own, and whatever goes wrong there, calls it again.

    `longest` is the number of seconds it sleeps at most: it looks then without being woken.
    """

    def __init__(self, name: str, courier: Courier, longest: float) -> None:
        self._courier = courier
        self._longest = longest
        self._woken = threading.Event()
        self._until: float | None = None
        self._trouble = Backoff(logger, _FIRST, _CEILING)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread. Raises RuntimeError where the system gives none."""
        self._thread.start()

    def wake(self) -> None:
        """Let it look for work now."""
        self._woken.set()

    def stop(self, until: float, *, drain: bool) -> None:
        """Let it end when it has nothing left to do, at the latest at a moment by `time.monotonic`."""
        self._courier.finish(drain=drain)
        self._until = until
        self._woken.set()

    def join(self, until: float) -> bool:
        """Wait for its end until a moment by `time.monotonic`."""
        if self._thread is not threading.current_thread():
            self._thread.join(max(0.0, until - time.monotonic()))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            self._woken.clear()
            pause = self._step()
            longest = self._longest
            if self._until is not None:
                longest = self._until - time.monotonic()
                if pause is None or longest <= 0:
                    break
            if pause != 0:
                self._sleep(longest if pause is None else min(pause, longest))
        self._courier.release_connection()

    def _step(self) -> float | None:
        try:
            pause = self._courier.deliver()
        except OutboxUnavailable as error:
            pause = self._failed(f"the outbox cannot be reached: {error}", None)
        except ConfigurationError as error:
            pause = self._failed(str(error), None)
        except BaseException as error:  # noqa: BLE001 -- a loop that ends would be noticed by nobody
            pause = self._failed("a relay failed, and goes on", error)
        else:
            if self._trouble.is_over():
                logger.warning("%s goes on", self._thread.name)
        return pause

    def _failed(self, words: str, error: BaseException | None) -> float:
        return self._trouble.failed(logging.ERROR, "%s: %s", self._thread.name, words, exc_info=error)

    def _sleep(self, seconds: float) -> None:
        if self._woken.wait(min(seconds, _NAP)):
            return
        if seconds > _NAP:
            self._courier.release_connection()
            self._woken.wait(seconds - _NAP)
