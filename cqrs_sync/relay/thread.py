"""The threads of the relay, what all their tasks share, and those that find work of other processes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from cqrs_sync.errors import ConfigurationError, OutboxUnavailable
from cqrs_sync.outbox import Listener
from cqrs_sync.registry import EventMap
from cqrs_sync.relay.settlement import ClaimTracker
from cqrs_sync.retry import Backoff

logger: logging.Logger = logging.getLogger(__name__)

#: Seconds between attempts to reach a database, at first and at most.
_RECONNECT_FIRST, _RECONNECT_MOST = 0.2, 5.0
#: A thread that sleeps for longer than these seconds releases its database connection.
_NAP = 10.0


class RelayTask:
    """What a thread of the relay does, one step at a time."""

    def __init__(self, claims: ClaimTracker) -> None:
        self.claims = claims
        #: Set it to make the next step now.
        self.woken: threading.Event = threading.Event()
        #: Whether it ends as soon as nothing is due, and whether it claims nothing more.
        self.is_finishing: bool = False
        self.is_ending: bool = False

    def step(self) -> float | None:
        """
        Do what there is to do; called by one thread.

        Returns the seconds until the next step: 0 if there may be more to do, None if there is nothing to do until
        the thread is woken.
        """
        raise NotImplementedError

    def request_stop(self, *, drain: bool) -> None:
        """Deliver what is due and end; without `drain` claim nothing more. Called by any thread."""
        self.is_finishing = True
        self.is_ending = not drain

    def release_connection(self) -> None:
        """Release the database connection of the calling thread."""
        self.claims.outbox.release_connection()


class RelayThread:
    """
    Makes the steps of a task in a thread of its own. After an error it makes the next step all the same.

    It sleeps for `longest` seconds at most between two steps.
    """

    def __init__(self, name: str, task: RelayTask, longest: float) -> None:
        self._task = task
        self._longest = longest
        self._woken = task.woken
        self._deadline: float | None = None
        self._backoff = Backoff(logger, _RECONNECT_FIRST, _RECONNECT_MOST)
        self._thread = threading.Thread(target=self._run, name=f"cqrs-relay-{name}", daemon=True)

    def start(self) -> None:
        """Start the thread. Raises RuntimeError if the system has no thread left."""
        self._thread.start()

    def wake(self) -> None:
        """Make the next step now."""
        self._woken.set()

    def request_stop(self, timeout: float, *, drain: bool) -> None:
        """End when the task has nothing left to do, after `timeout` seconds at the latest. Does not wait."""
        self._task.request_stop(drain=drain)
        self._deadline = time.monotonic() + timeout
        self._woken.set()

    def join(self, timeout: float) -> bool:
        """Wait `timeout` seconds for the end of the thread; returns whether it has ended."""
        if self._thread is not threading.current_thread():
            self._thread.join(max(0.0, timeout))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            self._woken.clear()
            pause = self._step()
            longest = self._longest
            if self._deadline is not None:
                longest = self._deadline - time.monotonic()
                if pause is None or longest <= 0:
                    break
            if pause != 0:
                self._sleep(longest if pause is None else min(pause, longest))
        self._task.release_connection()

    def _step(self) -> float | None:
        try:
            pause = self._task.step()
        except OutboxUnavailable as error:
            pause = self._record_failure(f"the outbox cannot be reached, trying again: {error}", None)
        except ConfigurationError as error:
            pause = self._record_failure(str(error), None)
        except BaseException as error:  # noqa: BLE001 -- without this thread nothing would be delivered
            pause = self._record_failure("unexpected error, retrying", error)
        else:
            # A step that only ends the task may not have reached the database.
            if self._backoff.record_success() and not self._task.is_finishing:
                logger.warning("%s: recovered", self._thread.name)
        return pause

    def _record_failure(self, words: str, error: BaseException | None) -> float:
        return self._backoff.record_failure(logging.ERROR, "%s: %s", self._thread.name, words, exc_info=error)

    def _sleep(self, seconds: float) -> None:
        if self._woken.wait(min(seconds, _NAP)):
            return
        if seconds > _NAP:
            self._task.release_connection()
            self._woken.wait(seconds - _NAP)


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
