"""Notice that nothing comes although messages wait."""

from __future__ import annotations

import logging
import time

from cqrs_sync.consumer import Consumer

logger = logging.getLogger(__name__)

#: Looks at the backlog in the seconds after which silence is doubtful.
_LOOKS = 5
#: Seconds between two looks, at least and at most.
_OFTEN, _SELDOM = 0.05, 60.0
#: Where so many seconds and its patience have passed since the last look, nothing ran, be it to receive or to look.
_FROZEN = 1.0


class Silence:
    """
    Lets a consumer join its group anew where messages wait and it receives none: once in each silence.

    It does no more than that: for a consumer that stands by for another one silence is well, be it that the group keeps
    order on RabbitMQ, where one at a time receives, or that there are more consumers than partitions. Where fewer
    wait than before, others receive, and there is nothing to mend.
    """

    def __init__(self, consumer: Consumer, stall: float) -> None:
        """Take silence for doubtful after `stall` seconds."""
        self._consumer = consumer
        self._stall = stall
        self._received = -1
        self._since = self._looked_at = time.monotonic()
        self._waiting: int | None = None
        self._has_rejoined = False

    def look(self) -> float:
        """Look once; returns the seconds until the next look. Raises BrokerUnavailable."""
        consumer, now = self._consumer, time.monotonic()
        was_frozen, self._looked_at = now - self._looked_at > max(self._stall, _FROZEN), now
        if consumer.received != self._received:
            self._received, self._has_rejoined = consumer.received, False
            self._begin(now)
        elif was_frozen or consumer.in_flight_count or not consumer.is_connected:
            # It has enough to do, waits for the broker and says so, or had no time in which to receive.
            self._begin(now)
        else:
            self._listen(now)
        return min(max(self._stall / _LOOKS, _OFTEN), _SELDOM)

    def _begin(self, now: float) -> None:
        self._since, self._waiting = now, None

    def _listen(self, now: float) -> None:
        waiting = sum(self._consumer.broker.backlog(self._consumer.group).waiting.values())
        if waiting == 0 or (self._waiting is not None and waiting < self._waiting):
            self._since = now
        elif now - self._since >= self._stall and not self._has_rejoined:
            self._has_rejoined = True
            logger.warning(
                "%d message(s) wait and none came for %.0f s: joining the group anew, once",
                *(waiting, now - self._since),
            )
            self._consumer.rejoin()
        self._waiting = waiting
