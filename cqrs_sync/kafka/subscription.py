"""When a consumer of Kafka fetches, whichever client it has."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence

from cqrs_sync.broker import Delivery, Subscription
from cqrs_sync.kafka.partitions import FetchBuffer

#: Seconds between two looks at whether the connection lives and finished messages are committed.
_LOOK = 0.5
#: Seconds for which the client may be left alone while there is enough to hand out, and while nobody wants any.
_ALONE, _RESTING = 1.0, 0.2


class BaseKafkaSubscription(Subscription):
    """
    Hands out what was fetched, fetches more when there is none, and lets the client work now and then.

    A class that inherits from it has an `_intake`, fetches and closes.
    """

    _intake: FetchBuffer
    _tend_at = 0.0

    @property
    def has_joined(self) -> bool:
        """Whether the group has told it its partitions, be they none; that they are shared out anew changes nothing."""
        return self._intake.was_told

    def receive(self, timeout: float) -> Delivery | None:
        """Wait at most `timeout` seconds for the next message; None where none came."""
        came = self.receive_many(1, timeout)
        return came[0] if came else None

    def receive_many(self, most: int, timeout: float) -> Sequence[Delivery]:
        """Wait at most `timeout` seconds for the next message; return it with those that are there by then."""
        now = time.monotonic()
        if now >= self._tend_at:
            self._tend(now, _ALONE)
        until = now + timeout
        while not (came := self._intake.hand_out(most)):
            self._fetch(self._intake.idle_for(max(0.0, min(until - now, _LOOK))))
            now = time.monotonic()
            self._tend_at = now + _ALONE
            self._intake.commit(now)
            if came := self._intake.hand_out(most):
                break
            self._check_connection(now)
            if now >= until:
                break
        return came

    def keep_alive(self) -> None:
        """Do what keeps the subscription alive, and receive nothing."""
        self._tend(time.monotonic(), _RESTING)

    @abstractmethod
    def close(self) -> None:
        """Give back what was not settled."""

    @abstractmethod
    def _fetch(self, timeout: float, most: int | None = None) -> None:
        """Let the client work for at most `timeout` seconds, until something comes; take in `most` records."""

    @abstractmethod
    def _check_connection(self, now: float) -> None:
        """Raise BrokerUnavailable where all connections are lost, and have been for a while."""

    def _tend(self, now: float, interval: float) -> None:
        """Let the client work for a moment, unless it has not been long; what comes is taken in, up to a limit."""
        self._tend_at = min(self._tend_at, now + interval)
        if now >= self._tend_at:
            self._tend_at = now + interval
            self._fetch(0.0, 1)
            self._intake.commit(now)
            self._check_connection(now)
