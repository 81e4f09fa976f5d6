"""Look for work that nobody has told of."""

from __future__ import annotations

from collections.abc import Callable

from cqrs_sync.outbox import Listener, Outbox
from cqrs_sync.registry import EventMap
from cqrs_sync.relay.settlement import Claims

#: Seconds a scout listens before it sees whether it is to end.
_LISTENING = 1.0


class Poller:
    """
    Asks the outbox whether something is due, often while there is work, seldom when there is none.

    The pause doubles from `shortest` to `longest` seconds with each look at which nothing was
    delivered since the last one.
    """

    def __init__(
        self,
        outbox: Outbox,
        event_map: EventMap,
        wake: Callable[[], object],
        claims: Claims,
        *,
        shortest: float,
        longest: float,
    ) -> None:
        self._outbox = outbox
        self._event_map = event_map
        self._wake = wake
        self._claims = claims
        self._shortest = shortest
        self._longest = longest
        self._pause = shortest
        self._seen = 0
        self._ending = False

    def deliver(self) -> float | None:
        """Look once."""
        if self._ending:
            return None
        busy, self._seen = self._claims.delivered != self._seen, self._claims.delivered
        self._pause = self._shortest if busy else min(self._longest, self._pause * 2)
        due = self._outbox.next_due(self._event_map.durable_names)
        if due is None:
            return self._pause
        if due <= 0:
            self._wake()
            return self._pause
        return min(self._pause, due)

    def finish(self, *, drain: bool) -> None:
        """Look no more."""
        del drain
        self._ending = True

    def release_connection(self) -> None:
        """Give up the database connection of this thread."""
        self._outbox.release_connection()


class NotificationListener:
    """Listens for commits in other processes: a hint that comes sooner than the scout would look."""

    def __init__(self, outbox: Outbox, wake: Callable[[], object]) -> None:
        self._outbox = outbox
        self._wake = wake
        self._listener: Listener | None = None
        self._ending = False

    def deliver(self) -> float | None:
        """Listen for a while."""
        if self._ending:
            self._close()
            return None
        if self._listener is None:
            self._listener = self._outbox.listener()
            if self._listener is None:
                return None
            # What was committed before this was heard by nobody.
            self._wake()
        try:
            if self._listener.wait(_LISTENING):
                self._wake()
        except BaseException:
            self._close()
            raise
        return 0

    def finish(self, *, drain: bool) -> None:
        """Listen no more."""
        del drain
        self._ending = True

    def release_connection(self) -> None:
        """Close the connection."""
        self._close()

    def _close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
