"""Write down what became of deliveries, and decide what becomes of those that failed."""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Sequence

import attrs

from cqrs_sync.errors import OutboxUnavailable
from cqrs_sync.outbox import Claimed, Outbox, Outcome, Verdict
from cqrs_sync.retry import RetryPolicy

logger = logging.getLogger(__name__)

#: Seconds between attempts to reach a database that was there a moment ago.
_PAUSE = 0.25
#: Seconds by which the database's clock may differ from this one over a pause.
_LATER = 0.02


@attrs.define
class Progress:
    """How many deliveries were made, for those who watch."""

    delivered: int = 0
    #: Durable handlers that run at the moment.
    running: int = 0


class Settling:
    """Settles deliveries; what cannot be written down while the claim holds, another claims again."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._never = threading.Event()
        # When what is to be tried again is due, by `time.monotonic`.
        self._due: list[float] = []

    def settle(self, outcomes: Sequence[Outcome], until: float) -> None:
        """
        Write down what became of deliveries, trying until a moment by `time.monotonic`.

        Raises OutboxUnavailable where that failed.
        """
        held = self._settle(outcomes, until)
        now = time.monotonic()
        for outcome in outcomes:
            if outcome.verdict is Verdict.AGAIN and outcome.after > 0:
                heapq.heappush(self._due, now + outcome.after)
        if held < len(outcomes):
            logger.warning(
                "%d of %d deliveries were claimed by somebody else meanwhile and may be made twice: "
                "this process was stopped, or took longer than the lease",
                *(len(outcomes) - held, len(outcomes)),
            )

    def next_due(self) -> float | None:
        """Return the seconds until something is due that was settled here to be tried again, None where nothing is."""
        now = time.monotonic()
        # What has just come due may have been asked for a moment too early.
        while self._due and self._due[0] <= now - 2 * _LATER:
            heapq.heappop(self._due)
        return max(0.0, self._due[0] - now) + _LATER if self._due else None

    def _settle(self, outcomes: Sequence[Outcome], until: float) -> int:
        while True:
            try:
                return self._outbox.settle(outcomes)
            except OutboxUnavailable:
                if time.monotonic() + _PAUSE > until:
                    raise
                self._never.wait(_PAUSE)

    def failed(self, claimed: Claimed, error: BaseException, policy: RetryPolicy) -> Outcome:
        """Decide what becomes of a delivery that failed, and is itself at fault."""
        outcome = Outcome.failed(claimed, error, after=policy.pause(claimed.attempts), blocks=policy.blocks)
        if outcome.verdict is Verdict.DEAD:
            _report(outcome, error)
        else:
            logger.warning(
                "%s for %s failed, attempt %d, again in %.1f s: %s",
                *(claimed.message.type, claimed.target, claimed.attempts, outcome.after, outcome.error),
                # What fails on and on fails in the same place, as a rule.
                exc_info=_trace(claimed, error) if claimed.attempts == 1 else None,
            )
        return outcome

    def worn_out(self, claimed: Claimed, policy: RetryPolicy) -> Outcome:
        """Give up what was claimed too often by processes that did not live to settle it."""
        words = f"it was attempted {claimed.attempts - 1} times, and the last process that did is gone"
        outcome = Outcome.failed(claimed, words, after=None, blocks=policy.blocks)
        _report(outcome)
        return outcome


def _report(outcome: Outcome, error: BaseException | None = None) -> None:
    claimed = outcome.claimed
    waits = claimed.message.key is not None and outcome.blocks
    logger.error(
        "%s %s for %s is dead after %d attempt(s): %s%s",
        *(claimed.message.type, claimed.message.id, claimed.target, claimed.attempts, outcome.error),
        "; what comes after it with its key waits until it is replayed or discarded" if waits else "",
        exc_info=None if error is None else _trace(claimed, error),
    )


def _trace(claimed: Claimed, error: BaseException) -> BaseException | None:
    """Return an error whose traceback tells more than its words do: a handler's, and not a broker's."""
    return None if claimed.handler is None else error
