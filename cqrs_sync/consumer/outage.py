"""Tell that something all handlers need is down from messages that are bad, and spare the messages."""

from __future__ import annotations

import logging
import threading

from cqrs_sync.consumer.inflight import InFlightMessage
from cqrs_sync.errors import LONGEST_ERROR, ConfigurationError, CqrsError, Retryable, describe_error, printable
from cqrs_sync.retry import exponential_delay

logger = logging.getLogger(__name__)

#: Seconds between two looks at whether it is over, at first and at most.
_FIRST, _CEILING = 0.25, 5.0
#: What drivers of databases raise where the database is at fault, or away: PEP 249.
_PASSING = {"OperationalError", "InterfaceError"}


class Outage:
    """
    Counts failures in a row, of whatever messages.

    After `threshold` of them one message at a time finds out whether it is over, each time another one; no attempt
    is counted for what may pass by itself meanwhile. The first success ends it, so those come first that are likely
    to succeed if any does: where one handler is broken, messages of other types do not wait for its.
    """

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._failures = 0
        self._looks = 0
        #: Types of the messages that have failed.
        self._types: set[str] = set()
        self._lock = threading.Lock()

    @property
    def is_on(self) -> bool:
        """Whether so many have failed that it may be nobody's own fault."""
        return self._failures >= self._threshold

    @property
    def trouble(self) -> str:
        """What goes on, empty where nothing does."""
        return f"{self._failures} attempts in a row have failed: one message at a time is tried" if self.is_on else ""

    def note_success(self) -> bool:
        """Note that something succeeded; True where that ends an outage."""
        if not self._failures:
            return False
        with self._lock:
            was_on, self._failures, self._looks = self.is_on, 0, 0
            self._types.clear()
        if was_on:
            logger.warning("handlers succeed again: the outage is over")
        return was_on

    def note_failure(self, item: InFlightMessage, error: BaseException) -> None:
        """Note that a message failed."""
        with self._lock:
            self._failures += 1
            self._types.add(item.type)
            begins = self._failures == self._threshold
        if begins:
            logger.error(
                "%d attempts in a row have failed, what they need may be down: one at a time is tried until one "
                "succeeds, and no attempts are counted for what may pass; the last one: %s",
                *(self._failures, printable(describe_error(error))[:LONGEST_ERROR]),
            )

    def doubts(self, item: InFlightMessage) -> tuple[bool, bool]:
        """Rank a message that waits: lower is more likely to succeed."""
        return item.type in self._types, item.attempts > 0

    def pause(self) -> float:
        """Return the seconds until the next look."""
        with self._lock:
            self._looks += 1
            return exponential_delay(self._looks, _FIRST, _CEILING)


def may_pass(error: BaseException) -> bool:
    """Tell whether an error is of a kind that passes by itself: something is away, too slow, or wired wrongly."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(may_pass, error.exceptions))
    if isinstance(error, CqrsError):
        # An application that is wired wrongly is no fault of the message, and is mended by the next deploy.
        return isinstance(error, (Retryable, ConfigurationError)) or error.retryable
    return isinstance(error, OSError) or any(base.__name__ in _PASSING for base in type(error).__mro__)
