"""Find work that no commit of this process has announced."""

from __future__ import annotations

from collections.abc import Callable

from cqrs_sync.outbox import Listener
from cqrs_sync.registry import EventMap
from cqrs_sync.relay.settlement import ClaimTracker
from cqrs_sync.relay.thread import RelayTask

#: Seconds a listener waits before it checks whether to end.
_LISTENING = 1.0


class Poller(RelayTask):
    """
    Asks the outbox whether something is due, and wakes the relay if it is.

    The delay between two polls doubles from `shortest` to `longest` seconds while nothing is delivered.
    """

    def __init__(
        self, claims: ClaimTracker, event_map: EventMap, wake: Callable[[], object], *, shortest: float, longest: float
    ) -> None:
        super().__init__(claims)
        self._event_map = event_map
        self._wake = wake
        self._shortest = shortest
        self._longest = longest
        self._delay = shortest
        self._delivered = 0

    def step(self) -> float | None:
        """Poll once."""
        if self.is_finishing:
            return None
        is_busy, self._delivered = self.claims.delivered != self._delivered, self.claims.delivered
        self._delay = self._shortest if is_busy else min(self._longest, self._delay * 2)
        due = self.claims.outbox.next_due(self._event_map.durable_names)
        if due is None:
            return self._delay
        if due <= 0:
            self._wake()
            return self._delay
        return min(self._delay, due)


class CommitListener(RelayTask):
    """Listens for commits of other processes, and wakes the relay sooner than the poller would."""

    def __init__(self, claims: ClaimTracker, wake: Callable[[], object]) -> None:
        super().__init__(claims)
        self._wake = wake
        self._listener: Listener | None = None

    def step(self) -> float | None:
        """Listen for a while."""
        if self.is_finishing:
            self.release_connection()
            return None
        if self._listener is None:
            self._listener = self.claims.outbox.listener()
            if self._listener is None:
                return None
            # Earlier commits have notified no listener.
            self._wake()
        try:
            if self._listener.wait(_LISTENING):
                self._wake()
        except BaseException:
            self.release_connection()
            raise
        return 0

    def release_connection(self) -> None:
        """Close the connection."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
