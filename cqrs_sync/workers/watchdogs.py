"""Watchdogs of a consumer: one for messages that wait and do not come, one for handlers that run for too long."""

from __future__ import annotations

import logging
import time

import attrs

from cqrs_sync.consumer import Consumer, InFlightMessage, StallDetector
from cqrs_sync.threads.executor import running_calls
from cqrs_sync.threads.watchdog import stacks_of

logger: logging.Logger = logging.getLogger(__name__)

#: Checks of the backlog within the seconds after which a consumer counts as idle.
_CHECKS = 5
#: Seconds between two checks of the backlog, at least and at most.
_OFTEN, _SELDOM = 0.05, 60.0
#: If so many seconds and `stall` have passed since the last check, the process was frozen and received nothing.
_FROZEN = 1.0
#: Seconds between two checks of running handlers.
_EVERY = 0.5
#: Characters of a type or an id that are shown: senders choose them.
_SHOWN = 100


class IdleWatchdog:
    """
    Lets a consumer join its group again if messages wait and it receives none: once in each idle period.

    It does no more, for a standby consumer is idle and well: an ordered group on RabbitMQ has one active consumer, and
    a group on Kafka may have more consumers than partitions. If the backlog shrinks, other consumers receive.
    """

    def __init__(self, consumer: Consumer, stall: float) -> None:
        """Act after `stall` idle seconds."""
        self._consumer = consumer
        self._stall = stall
        self._received = -1
        self._idle_since = self._checked_at = time.monotonic()
        self._waiting: int | None = None
        self._has_rejoined = False

    def check(self) -> float:
        """Check once; return the seconds until the next check. Raises BrokerUnavailable."""
        consumer, now = self._consumer, time.monotonic()
        was_frozen, self._checked_at = now - self._checked_at > max(self._stall, _FROZEN), now
        if consumer.received != self._received:
            self._received, self._has_rejoined = consumer.received, False
            self._reset(now)
        elif was_frozen or consumer.in_flight_count or not consumer.is_connected:
            # It is busy, it waits for the broker and says so, or it had no time to receive.
            self._reset(now)
        else:
            self._check_backlog(now)
        return min(max(self._stall / _CHECKS, _OFTEN), _SELDOM)

    def _reset(self, now: float) -> None:
        self._idle_since, self._waiting = now, None

    def _check_backlog(self, now: float) -> None:
        waiting = sum(self._consumer.broker.backlog(self._consumer.group).waiting.values())
        if waiting == 0 or (self._waiting is not None and waiting < self._waiting):
            self._idle_since = now
        elif now - self._idle_since >= self._stall and not self._has_rejoined:
            self._has_rejoined = True
            idle = now - self._idle_since
            logger.warning("%d message(s) wait, but none came for %.0f s: joining the group again, once", waiting, idle)
            self._consumer.rejoin()
        self._waiting = waiting


@attrs.frozen
class RunningMessage:
    """A message whose handlers run."""

    type: str
    id: str
    #: Those that are bound to its type.
    handlers: tuple[str, ...]
    #: For so long.
    seconds: float

    @property
    def handler_names(self) -> str:
        """The handlers, for the log."""
        return ", ".join(self.handlers) or "none"


def running_message(consumer: Consumer, item: InFlightMessage) -> RunningMessage:
    """Describe a message in flight."""
    attributes, events = item.delivery.message.attributes, consumer.mediator.wiring.event_map
    name = attributes.get("type", "?")
    event_type = events.types.get(name)
    handlers = () if event_type is None else tuple(binding.name for binding in events.find(event_type))
    return RunningMessage(name[:_SHOWN], attributes.get("id", "?")[:_SHOWN], handlers, time.monotonic() - item.begun)


class SlowHandlerWatchdog:
    """
    Logs messages that are handled for more than `stall` seconds, with the stacks of their threads.

    It logs each once, and again each time its age has doubled. If no message at all is finished, the consumer is
    stuck, and its worker logs the stacks instead.
    """

    def __init__(self, consumer: Consumer, stall: float) -> None:
        self._consumer = consumer
        self._stall = stall
        self._watches: dict[InFlightMessage, _Watch] = {}
        #: What was wrong at the last check; empty if nothing was.
        self.trouble: str = ""

    def check(self) -> float:
        """Check once; return the seconds until the next check."""
        running = self._consumer.running()
        # Before the watches look: if none of them is ever finished, the consumer has to be stuck first.
        is_alive = self._consumer.health(self._stall).is_alive
        watches = self._watches = {item: self._watches.get(item) or _Watch(self._stall) for item in running}
        slow = [item for item, watch in watches.items() if watch.is_slow(item.begun)]
        self.trouble = f"{len(slow)} handler(s) running for more than {self._stall:g} s" if slow else ""
        if is_alive:
            for item in slow:
                if watches[item].is_due:
                    watches[item].note_logged()
                    self._log(item)
        return _EVERY

    def _log(self, item: InFlightMessage) -> None:
        thread, begun = item.thread, item.begun
        if thread is None:
            return
        # Its own thread first, then the threads in which the handlers of its events run.
        stacks = stacks_of([thread, *running_calls.helpers_of(thread)])
        if (item.thread, item.begun) != (thread, begun):
            # It was finished a moment ago: its thread does something else.
            return
        message = running_message(self._consumer, item)
        logger.warning(
            "message %r %r has been in handling for %.0f s (bound handlers: %s); messages with its key wait; "
            "stack:\n%s",
            message.type,
            message.id,
            message.seconds,
            message.handler_names,
            "stack of a handler that it waits for:\n".join(stacks.values()),
        )


class _Watch:
    """How long a message has been handled, and when that is logged next."""

    def __init__(self, stall: float) -> None:
        self._stall = self._log_after = stall
        self._detector = StallDetector()
        self._seconds = 0.0

    @property
    def is_due(self) -> bool:
        """Whether it should be logged now."""
        return self._seconds > self._log_after

    def is_slow(self, begun: float) -> bool:
        """Look once; True if this attempt takes too long."""
        self._seconds = self._detector.seconds_unchanged(begun, self._stall)
        if self._seconds <= self._stall:
            # It is another attempt.
            self._log_after = self._stall
        return self._seconds > self._stall

    def note_logged(self) -> None:
        """Log it again when it has taken twice as long."""
        self._log_after = 2 * self._seconds
