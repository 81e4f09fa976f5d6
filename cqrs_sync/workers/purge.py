"""Delete delivered messages and old receipts: without it, an outbox and an inbox would only grow."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence

from cqrs_sync.consumer.processor import PARKED
from cqrs_sync.errors import ConfigurationError, CqrsError
from cqrs_sync.inbox import Inbox
from cqrs_sync.mediator import Mediator
from cqrs_sync.outbox import Outbox

logger: logging.Logger = logging.getLogger(__name__)

#: Seconds between two purges, and between two chunks of one.
_EVERY, _CHUNK_PAUSE = 60.0, 0.05
#: Messages or receipts that are deleted in one transaction.
_CHUNK = 1000


class Purge:
    """Deletes delivered messages of an outbox, or receipts of an inbox, that are older than so many seconds."""

    def __init__(self, store: Outbox | Inbox, older_than: float, noun: str) -> None:
        """Purge `store`, and call its rows by this noun in the log."""
        self._store = store
        self._older_than = older_than
        self.noun = noun

    def chunks(self) -> Iterator[int]:
        """Delete everything that is old enough, in small transactions; yields how many each time."""
        while count := self._store.purge(self._older_than, limit=_CHUNK):
            yield count

    def run(self, pause: Callable[[float], bool]) -> float:
        """
        Delete with pauses in between, until there is no more; return the seconds until the next purge.

        `pause` waits for a number of seconds, and tells whether to stop.
        """
        total = 0
        try:
            for count in self.chunks():
                total += count
                if pause(_CHUNK_PAUSE):
                    break
        except CqrsError as error:
            logger.warning("%ss cannot be purged now, the next try is in about a minute: %s", self.noun, error)
        if total:
            logger.info("%d %s(s) purged", total, self.noun)
        # Processes that start together need not purge together.
        return _EVERY * random.uniform(0.5, 1.5)  # noqa: S311 -- no secret

    def release_connection(self) -> None:
        """Release the database connection of this thread."""
        self._store.release_connection()


def purge_of_receipts(mediator: Mediator, older_than: float, delays: Sequence[float] = ()) -> Purge:
    """
    Return a purge of the receipts of a mediator's inbox; `delays` are those of its group.

    Raises ConfigurationError without an inbox, and if a message could come again after its receipt is gone.
    """
    inbox = mediator.wiring.inbox
    if inbox is None:
        raise ConfigurationError("receipts cannot be purged: this mediator has no inbox")
    longest = max(sum(delays), PARKED) * 2
    if older_than < longest:
        raise ConfigurationError(
            f"receipts cannot be purged after {older_than:.0f} s: a message may be deferred for {longest / 2:.0f} s, "
            f"and its handlers would run again; keep receipts for {longest:.0f} s at least"
        )
    return Purge(inbox, older_than, "receipt")
