"""Tell a broker that cannot be reached from a topic that cannot be, and wait for either."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

import attrs

from cqrs_sync.retry import Backoff, exponential_delay

logger = logging.getLogger(__name__)

#: Seconds between attempts to reach a broker, at first and at most.
_FIRST, _CEILING = 0.25, 3.0
#: The same for a topic of a broker that takes others.
_TOPIC_FIRST, _TOPIC_CEILING = 1.0, 30.0


@attrs.define
class _Suspect:
    failures: int
    until: float


class Outages:
    """
    What cannot be reached at the moment, and when to try again.

    Nothing is charged for it to the messages that wait. While the broker is away, one
    message at a time finds out whether it is back.
    """

    def __init__(self) -> None:
        self._broker = Backoff(logger, _FIRST, _CEILING)
        self._until = 0.0
        self._topics: dict[str, _Suspect] = {}

    @property
    def probing(self) -> bool:
        """Whether the broker could not be reached the last time."""
        return self._broker.failures > 0

    def pause(self) -> float:
        """Return the seconds in which nothing is to be tried."""
        return max(0.0, self._until - time.monotonic())

    def unreachable_topics(self) -> list[str]:
        """Return the topics that are not to be tried now."""
        now = time.monotonic()
        return [topic for topic, suspect in self._topics.items() if suspect.until > now]

    def next_topic(self) -> float | None:
        """Return the seconds until another topic is to be tried again, None where all are."""
        waits = [suspect.until - time.monotonic() for suspect in self._topics.values()]
        return min((wait for wait in waits if wait > 0), default=None)

    def note(self, reached: Collection[str], unreached: Collection[str], error: BaseException | None) -> None:
        """Note for which topics messages were confirmed or refused, and for which the broker could not be reached."""
        if reached:
            self._note_reached(reached)
            for topic in set(unreached) - set(reached):
                known = self._topics.setdefault(topic, _Suspect(0, 0.0))
                known.failures += 1
                known.until = time.monotonic() + exponential_delay(known.failures, _TOPIC_FIRST, _TOPIC_CEILING)
                logger.warning("the topic %r cannot be reached, others can: %s", topic, error)
        elif unreached:
            words = "the broker cannot be reached, messages wait in the outbox: %s"
            pause = self._broker.failed(logging.WARNING, words, error)
            self._until = time.monotonic() + pause
            for topic in unreached:
                # It may be the topic alone: the next one to be tried is another, where there is one.
                self._topics[topic] = _Suspect(0, self._until + pause / 2)

    def _note_reached(self, reached: Collection[str]) -> None:
        if self._broker.is_over():
            logger.warning("the broker is back")
            self._until = 0.0
            # What failed only because the broker was away need not wait any longer.
            self._topics.clear()
        for topic in reached:
            self._topics.pop(topic, None)
