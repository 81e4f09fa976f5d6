"""Find work that no commit of this process has announced."""

from __future__ import annotations

from collections.abc import Callable

from cqrs_sync.outbox import Listener
from cqrs_sync.registry import EventMap
from cqrs_sync.relay.settlement import Claims

#: Seconds a listener waits before it checks whether to end.
_LISTENING = 1.0


class Poller:
    """
    Asks the outbox whether something is due, and wakes the workers if it is.

    The delay between two polls doubles from `shortest` to `longest` seconds while nothing is delivered.
    """

    def __init__(
        self, claims: Claims, event_map: EventMap, wake: Callable[[], object], *, shortest: float, longest: float
    ) -> None:
        self._claims = claims
        self._event_map = event_map
        self._wake = wake
        self._shortest = shortest
        self._longest = longest
        self._delay = shortest
        self._delivered = 0
        self._is_ending = False

    def step(self) -> float | None:
        """Poll once."""
        if self._is_ending:
            return None
        is_busy, self._delivered = self._claims.delivered != self._delivered, self._claims.delivered
        self._delay = self._shortest if is_busy else min(self._longest, self._delay * 2)
        due = self._claims.outbox.next_due(self._event_map.durable_names)
        if due is None:
            return self._delay
        if due <= 0:
            self._wake()
            return self._delay
        return min(self._delay, due)

    def finish(self, *, drain: bool) -> None:
        """Poll no more."""
        del drain
        self._is_ending = True

    def release_connection(self) -> None:
        """Release the database connection of the calling thread."""
        self._claims.outbox.release_connection()


class NotificationListener:
    """Listens for commits of other processes, and wakes the workers sooner than the poller would."""

    def __init__(self, claims: Claims, wake: Callable[[], object]) -> None:
        self._claims = claims
        self._wake = wake
        self._listener: Listener | None = None
        self._is_ending = False

    def step(self) -> float | None:
        """Listen for a while."""
        if self._is_ending:
            self._close()
            return None
        if self._listener is None:
            self._listener = self._claims.outbox.listener()
            if self._listener is None:
                return None
            # Earlier commits have notified no listener.
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
        self._is_ending = True

    def release_connection(self) -> None:
        """Close the connection."""
        self._close()

    def _close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
