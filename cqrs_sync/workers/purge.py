"""Delete what was done long ago: an outbox and an inbox would grow for ever."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence

from cqrs_sync.consumer.processor import PARKED
from cqrs_sync.errors import ConfigurationError, CqrsError
from cqrs_sync.inbox import Inbox
from cqrs_sync.mediator import RequestMediator
from cqrs_sync.outbox import Outbox

logger = logging.getLogger(__name__)

#: Seconds between two rounds, and between the chunks of one.
_EVERY, _BREATH = 60.0, 0.05
#: Messages or receipts that are deleted in one transaction.
_CHUNK = 1000


class Purging:
    """Deletes what is older than so many seconds: messages of an outbox that were delivered, or an inbox's receipts."""

    def __init__(self, store: Outbox | Inbox, older_than: float, what: str) -> None:
        """Delete it from `store`, and call it `what` in the log."""
        self._store = store
        self._older_than = older_than
        self._what = what

    def chunks(self) -> Iterator[int]:
        """Delete all of it in small transactions; yields how many each time."""
        while count := self._store.purge(self._older_than, limit=_CHUNK):
            yield count

    def do(self, pause: Callable[[float], bool]) -> float:
        """Delete it, with time for others in between; returns the seconds until it is to be done again."""
        total = 0
        try:
            for count in self.chunks():
                total += count
                if pause(_BREATH):
                    break
        except CqrsError as error:
            logger.warning("%ss cannot be purged, it is tried again: %s", self._what, error)
        if total:
            logger.info("%d %s(s) purged", total, self._what)
        # Processes that were started together need not purge together.
        return _EVERY * random.uniform(0.5, 1.5)  # noqa: S311 -- no secret

    def release_connection(self) -> None:
        """Give up the database connection of this thread."""
        self._store.release_connection()


def purging_receipts(mediator: RequestMediator, older_than: float, delays: Sequence[float] = ()) -> Purging:
    """
    Purge receipts of a mediator's inbox; `delays` are those of its group.

    Raises ConfigurationError without an inbox, and where a message could still come again when its receipt is gone.
    """
    inbox = mediator.wiring.inbox
    if inbox is None:
        raise ConfigurationError("receipts are to be purged, and this mediator has no inbox")
    longest = max(sum(delays), PARKED) * 2
    if older_than < longest:
        raise ConfigurationError(
            f"receipts are to be purged after {older_than:.0f} s, and a message may be set aside for "
            f"{longest / 2:.0f} s: keep them for {longest:.0f} s at least, or what comes again is done again"
        )
    return Purging(inbox, older_than, "receipt")
