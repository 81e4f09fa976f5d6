"""Forget what was done long ago: the inbox would grow for ever."""

from __future__ import annotations

import logging
import random

from cqrs_sync.consumer import Consumer
from cqrs_sync.consumer.tiers import PARKED
from cqrs_sync.errors import ConfigurationError
from cqrs_sync.workers.desk import purged

logger = logging.getLogger(__name__)

#: Seconds between two rounds.
_EVERY = 300.0


class Receipts:
    """
    The receipts of a consumer's inbox that are older than so many seconds.

    Raises ConfigurationError without an inbox, and where a message could still come again when its receipt is gone.
    """

    def __init__(self, consumer: Consumer, older_than: float) -> None:
        inbox = consumer.mediator.events.inbox
        if inbox is None:
            raise ConfigurationError("receipts are to be purged, and this mediator has no inbox")
        longest = max(sum(consumer.group.delays), PARKED) * 2
        if older_than < longest:
            raise ConfigurationError(
                f"receipts are to be purged after {older_than:g} s, and a message may be set aside for "
                f"{longest / 2:g} s: keep them for {longest:g} s at least, or what comes again is done again"
            )
        self._inbox = inbox
        self._older_than = older_than

    def purge(self) -> float:
        """Purge, in small transactions; returns the seconds until it is to be done again."""
        count = sum(purged(self._inbox, self._older_than))
        if count:
            logger.info("%d receipt(s) purged", count)
        # Consumers that were started together need not purge together.
        return _EVERY * random.uniform(0.5, 1.5)  # noqa: S311 -- no secret

    def let_go(self) -> None:
        """Give up the database connection of this thread."""
        self._inbox.let_go()
