"""The relay worker: delivers what an outbox keeps, until it is told to stop or until nothing is due."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress

import attrs

from cqrs_sync.errors import CqrsError
from cqrs_sync.outbox import Backlog, Outbox
from cqrs_sync.relay import Relay
from cqrs_sync.workers.purge import Purge
from cqrs_sync.workers.worker import MARGIN, Display, PeriodicTask, StopReason, Worker, WorkerOptions, log_stacks

logger: logging.Logger = logging.getLogger(__name__)

#: Seconds between two polls of the outbox, and between two looks at whether it is drained, if it stops then.
_DRAIN_POLL, _DRAIN_LOOK = 0.2, 0.1
#: Seconds between two counts of the backlog, at least and at most.
_COUNT_OFTEN, _COUNT_SELDOM = 5.0, 20.0
#: Counting takes this share of the time at most: it reads the whole table of deliveries.
_COUNT_SHARE = 0.05


@attrs.frozen
class RelayOptions(WorkerOptions):
    """How a relay worker runs; durations are seconds."""

    publishers: int = 2
    #: Between two polls of the outbox: while there is work, and while there is none.
    poll: tuple[float, float] = (0.05, 4.0)
    lease: float = 30.0
    batch: int = 500
    #: Deliver what is due, then stop.
    drain: bool = False


@attrs.frozen
class RelayProgress:
    """How far a relay worker is."""

    #: `relaying`, `stopping` or `stopped`.
    state: str
    delivered: int
    #: Over the last seconds, or since the last report if that is longer ago.
    per_second: float
    #: Since the worker started.
    seconds: float
    #: None if it could not be counted.
    backlog: Backlog | None


class RelayWorker(Worker[RelayProgress]):
    """
    Relays until it is told to stop, or with `drain` until nothing is due.

    It waits for a database or a broker that cannot be reached. Exit status: 0; 1 if something was not finished within
    the grace, or if it should drain the outbox and its time was over before.
    """

    _options: RelayOptions
    after_exit = "other processes deliver them when their lease is over"

    def __init__(self, relay: Relay, options: RelayOptions, display: Display[RelayProgress]) -> None:
        super().__init__(options, display)
        self._relay = relay
        self._gauge = BacklogGauge(relay.outbox, display.every)
        self._drained = threading.Event()

    def _start(self, resources: ExitStack) -> list[PeriodicTask]:  # noqa: ARG002 -- its tasks are all it has
        options = self._options
        shortest, longest = options.poll
        self._relay.start(
            publishers=options.publishers,
            poll=(shortest, _DRAIN_POLL if options.drain else longest),
            lease=options.lease,
            batch=options.batch,
        )
        logger.info("relaying with %d publisher(s)", options.publishers)
        release_connection = self._relay.outbox.release_connection
        tasks = [PeriodicTask("cqrs-backlog-count", self._gauge.count, release_connection)]
        purge = self._purge()
        if options.drain:
            tasks.append(drain := PeriodicTask("cqrs-drain", lambda: self._drain(drain.pause), release_connection))
        elif purge is not None:
            tasks.append(purging := PeriodicTask("cqrs-purge", lambda: purge.run(purging.pause), release_connection))
        return tasks

    def _reason_to_stop(self) -> StopReason | None:
        return StopReason("nothing is due") if self._drained.is_set() else None

    def _close(self, timeout: float) -> None:
        self._relay.close(timeout - min(MARGIN, timeout / 2))

    def _is_settled(self) -> bool:
        # A thread that waits for a database that does not answer has nothing in flight, and may be left.
        return not self._relay.in_flight()

    def _in_flight(self) -> str:
        return f"{len(self._relay.in_flight())} deliveries in flight"

    def _finish(self, reason: StopReason, *, is_closed: bool, timeout: float) -> int:  # noqa: ARG002 -- see _is_settled
        self._gauge.count_within(timeout)
        if self._options.drain and not reason.is_signal and not self._drained.is_set():
            logger.error("%g s are over, but the outbox is not drained", self._options.max_runtime)
            return 1
        return 0

    def _progress(self) -> RelayProgress:
        delivered = self._relay.delivered
        state = "stopped" if self._has_stopped else "stopping" if self._is_stopping else "relaying"
        return RelayProgress(state, delivered, self._meter.rate(delivered), self._meter.seconds, self._gauge.backlog)

    def _done(self) -> str:
        return f"{self._relay.delivered} delivered"

    def _log_unfinished(self) -> None:
        topics: Counter[str] = Counter()
        in_flight = self._relay.in_flight()
        for each in in_flight:
            claimed = each.claimed
            if claimed.handler is None:
                topics[claimed.target] += 1
            else:
                logger.error(
                    "handler %s was not finished within the grace: %s %s, attempt %d; another process runs it again",
                    claimed.handler,
                    claimed.message.type,
                    claimed.message.id,
                    claimed.attempts,
                )
        for topic, count in topics.items():
            logger.error(
                "%d message(s) for the topic %s were not settled within the grace; "
                "another process publishes them again",
                count,
                topic,
            )
        log_stacks([each.thread for each in in_flight], ("cqrs-relay-",))

    def _drain(self, pause: Callable[[float], bool]) -> float | None:
        if not self._relay.is_drained():
            return _DRAIN_LOOK
        if (purge := self._purge()) is not None:
            purge.run(pause)
        self._drained.set()
        return None

    def _purge(self) -> Purge | None:
        after = self._options.purge_after
        return None if after is None else Purge(self._relay.outbox, after, "delivered message")


class BacklogGauge:
    """Counts what is not delivered, as often as that is cheap."""

    def __init__(self, outbox: Outbox, every: float) -> None:
        self._outbox = outbox
        self._every = min(max(every, _COUNT_OFTEN), _COUNT_SELDOM)
        #: The last count; None if that failed.
        self.backlog: Backlog | None = None

    def count(self) -> float:
        """Count; return the seconds until the next count."""
        begun = time.monotonic()
        try:
            self.backlog = self._outbox.backlog()
        except BaseException:
            self.backlog = None
            raise
        return max(self._every, (time.monotonic() - begun) / _COUNT_SHARE)

    def count_within(self, timeout: float) -> None:
        """Count in `timeout` seconds, at most one; the backlog is unknown if that takes longer."""
        thread = threading.Thread(target=self._try_to_count, name="cqrs-count", daemon=True)
        thread.start()
        thread.join(max(0.0, min(MARGIN, timeout)))
        if thread.is_alive():
            self.backlog = None

    def _try_to_count(self) -> None:
        with suppress(CqrsError):
            self.count()
        self._outbox.release_connection()
