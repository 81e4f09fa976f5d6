"""The relay: threads that deliver what the outbox keeps."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from cqrs_sync.dispatch.dispatcher import EventDispatcher
from cqrs_sync.errors import ConfigurationError, check_above_zero
from cqrs_sync.lifecycle import close_at_exit, reset_in_child
from cqrs_sync.outbox import Outbox
from cqrs_sync.relay.durable import DurableHandlerTask
from cqrs_sync.relay.publisher import OutboxPublisher
from cqrs_sync.relay.settlement import ClaimTracker, InFlightDelivery
from cqrs_sync.relay.thread import CommitListener, Poller, RelayThread
from cqrs_sync.wiring import Wiring

logger: logging.Logger = logging.getLogger(__name__)

#: Seconds after which the fast path looks for work that no commit has announced, such as that of a dead process.
_SWEEP = 20.0
#: Seconds that the relay may take at the exit of the interpreter.
_AT_EXIT = 3.0


class Relay:
    """
    Delivers what an outbox keeps: to the broker, and to durable handlers on the mediator's pool.

    As the *fast path* it starts with the first commit of its process and delivers within milliseconds. `start` makes
    it look for work of all processes.

    The first commit or `start` starts its threads, anew in a forked child. The mediator closes it. At exit it
    closes itself within seconds.
    """

    def __init__(self, wiring: Wiring) -> None:
        if wiring.outbox is None:
            raise ConfigurationError("a relay needs an outbox: give bootstrap one")
        self.outbox: Outbox = wiring.outbox
        self._wiring = wiring
        #: Runs durable handlers. Each of its commits to the outbox, and of the requests it serves, wakes the relay.
        self.dispatcher: EventDispatcher = EventDispatcher(wiring, self.wake)
        self._lease, self._batch = 30.0, 500
        self._is_closed = False
        self.reset_in_child()

    def reset_in_child(self) -> None:
        """Start over: a forked child has none of the parent's threads."""
        self._claims = ClaimTracker(self.outbox)
        self._threads: Sequence[RelayThread] = ()
        self._starting = threading.Lock()

    @property
    def delivered(self) -> int:
        """How many deliveries this process has made."""
        return self._claims.delivered

    @property
    def running(self) -> int:
        """How many durable handlers of this relay run or wait for a thread."""
        return self._claims.running

    def wake(self) -> None:
        """Look for work now; starts the fast path. It never raises: a relay delivers later what waits."""
        if not self._threads and self._wiring.fast_path and not self._is_closed:
            try:
                self._start(self._delivery_threads(publishers=1, longest=_SWEEP))
            except Exception:
                logger.exception(
                    "cannot start the fast path; a relay process (`cqrs-sync relay`) has to deliver what was committed"
                )
        self._wake_all()

    def start(
        self, *, publishers: int = 2, poll: tuple[float, float] = (0.05, 4.0), lease: float = 30.0, batch: int = 500
    ) -> None:
        """
        Look for work of all processes until `close`.

        `publishers` publish side by side: while one waits for the broker, another one talks to the database. Without
        a notification the relay polls the outbox after `poll` seconds: the first while there is work, growing to the
        second while there is none. A claim lasts `lease` seconds; after that other processes deliver what a dead
        process had claimed. It takes `batch` messages at most. Raises ConfigurationError for numbers out of range.
        """
        if not 1 <= lease <= threading.TIMEOUT_MAX:
            raise ConfigurationError(f"a lease must be a number of seconds, at least 1, not {lease!r}")
        check_above_zero(batch=batch)
        self._lease, self._batch = lease, batch
        longest = max(60.0, poll[1])
        poller = Poller(self._claims, self._wiring.event_map, self._wake_all, shortest=poll[0], longest=poll[1])
        listener = CommitListener(self._claims, self._wake_all)
        threads = [
            *self._delivery_threads(publishers, longest),
            RelayThread("poller", poller, longest),
            RelayThread("listener", listener, longest),
        ]
        self.close(0)
        self._is_closed = False
        self._start(threads)

    def close(self, timeout: float = 5.0, *, drain: bool = False) -> bool:
        """
        Finish what is in flight, with `drain` also what is due, and end the threads within `timeout` seconds.

        The rest stays in the outbox. Returns False if a handler still runs. `start` begins anew.
        """
        self._is_closed = True
        return self._end(timeout, drain=drain)

    def quiesce(self, timeout: float = 5.0) -> bool:
        """
        Deliver what is due and end the threads within `timeout` seconds; the next commit starts them again.

        For a process that is about to fork: no child then inherits a connection in the middle of something, which
        SQLite takes for a lock that is never released. Returns False if a handler still runs.
        """
        return self._end(timeout, drain=True)

    def next_due(self) -> float | None:
        """Return the seconds until something may be delivered here; None if nothing waits."""
        return self.outbox.next_due(self._wiring.event_map.durable_names)

    def in_flight(self) -> Sequence[InFlightDelivery]:
        """Return what this relay has claimed and not settled, as long as the leases last."""
        return self._claims.in_flight()

    def is_drained(self) -> bool:
        """
        Ask the outbox whether anything may be delivered now; True if not, and nothing is in flight either.

        A message that did not reach the broker counts as in flight until shortly after it is due again.
        """
        before = self._claims.idle_mark()
        due = self.next_due()
        return before is not None and due != 0 and before == self._claims.idle_mark()

    def close_at_exit(self) -> None:
        """Deliver what is due in the time that an exiting process can spare."""
        self.close(_AT_EXIT, drain=True)

    def _delivery_threads(self, publishers: int, longest: float) -> list[RelayThread]:
        """Make the threads that deliver; none is started."""
        wiring, claims = self._wiring, self._claims
        threads = []
        if wiring.broker is not None:
            for number in range(1, publishers + 1):
                publisher = OutboxPublisher(claims, wiring.emitter, wiring.retry, lease=self._lease, batch=self._batch)
                threads.append(RelayThread(f"publisher-{number}", publisher, longest))
        # Also if no durable handler is bound yet: it then asks the outbox for nothing.
        durable = DurableHandlerTask(claims, wiring, self.dispatcher, lease=self._lease)
        return [*threads, RelayThread("durable", durable, longest)]

    def _start(self, threads: Sequence[RelayThread]) -> None:
        with self._starting:
            if self._threads or self._is_closed:
                return
            for thread in threads:
                thread.start()
            self._threads = threads
        reset_in_child(self)
        # Before the pool and the broker: it needs both to deliver.
        close_at_exit(self, first=True)

    def _end(self, timeout: float, *, drain: bool) -> bool:
        with self._starting:
            threads, self._threads = self._threads, ()
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.request_stop(timeout, drain=drain)
        # A thread that ends needs no time, unless its database hangs.
        ended = [thread.join(deadline + 0.5 - time.monotonic()) for thread in threads]
        return all(ended) and self.running == 0

    def _wake_all(self) -> None:
        for thread in self._threads:
            thread.wake()
