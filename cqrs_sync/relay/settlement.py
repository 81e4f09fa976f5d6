"""Claims of a relay, and their settlement: done, again or dead."""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Collection, Sequence
from typing import Any

import attrs

from cqrs_sync.errors import OutboxUnavailable
from cqrs_sync.outbox import ClaimedDelivery, Outbox, Outcome, OutcomeKind
from cqrs_sync.retry import RetryPolicy

logger: logging.Logger = logging.getLogger(__name__)

#: Seconds between attempts to settle in a database that answered a moment ago.
_PAUSE = 0.25
#: Seconds after its next attempt is due for which a message that did not reach the broker counts as in flight.
_UNREACHED = 2.0
#: Seconds by which the database's clock may differ from this one over a delay.
_CLOCK_SKEW = 0.02


@attrs.frozen
class InFlightDelivery:
    """A delivery that this process has claimed and not settled."""

    claimed: ClaimedDelivery
    #: When it was claimed, by `time.monotonic`.
    since: float
    #: The thread that publishes it or runs its handler; None while it waits for a thread, and after the handler.
    thread: int | None
    #: Whether its handler has finished, so that only the settlement is left.
    is_handled: bool = False


class ClaimTracker:
    """
    The deliveries that the tasks of one relay have claimed and not settled.

    The tasks claim, renew and settle through it. Any thread may ask what is in flight. A delivery whose lease
    is over is not in flight here: another process may claim it.
    """

    def __init__(self, outbox: Outbox) -> None:
        #: Where they are claimed.
        self.outbox = outbox
        self._lock = threading.Lock()
        # By number: the delivery, and when its lease is over.
        self._held: dict[int, tuple[InFlightDelivery, float]] = {}
        # Messages that did not reach the broker, and until when they count as work that is still due.
        self._unreached: dict[int, float] = {}
        self._claiming = self._claim_count = 0
        #: How many deliveries were made.
        self.delivered: int = 0

    @property
    def running(self) -> int:
        """How many durable handlers run or wait for a thread, whether or not the lease of their delivery lasts."""
        with self._lock:
            return sum(each.claimed.handler is not None and not each.is_handled for each, _ in self._held.values())

    def claim(
        self, limit: int, lease: float, *, handlers: Collection[str] | None = None, exclude: Collection[str] = ()
    ) -> Sequence[ClaimedDelivery]:
        """Claim deliveries as `Outbox.claim` does."""
        now = time.monotonic()
        with self._lock:
            self._claiming += 1
            self._claim_count += 1
            # A delivery that could not be settled in time is free for others; its handler may still run.
            lapsed = [
                number
                for number, (each, until) in self._held.items()
                if until <= now and (each.is_handled or not each.claimed.handler)
            ]
            for number in lapsed:
                del self._held[number]
            self._forget_unreached(now)
        claimed: Sequence[ClaimedDelivery] = ()
        thread = threading.get_ident() if handlers is None else None
        try:
            claimed = self.outbox.claim(limit, lease, handlers=handlers, exclude=exclude)
        finally:
            with self._lock:
                self._claiming -= 1
                for each in claimed:
                    self._held[each.number] = InFlightDelivery(each, now, thread), now + lease
                    self._unreached.pop(each.number, None)
        if logger.isEnabledFor(logging.DEBUG):
            for each in claimed:
                logger.debug("%s: claimed for %s (attempt %d)", each.message.title, each.target, each.attempts)
        return claimed

    def note_thread(self, claimed: ClaimedDelivery) -> None:
        """Note that the calling thread runs the handler of this delivery."""
        self._change(claimed, thread=threading.get_ident())

    def note_handled(self, claimed: ClaimedDelivery) -> None:
        """Note that the handler of this delivery has finished, or is not going to run."""
        self._change(claimed, thread=None, is_handled=True)

    def renew(self, tokens: Collection[str], lease: float) -> None:
        """Renew leases as `Outbox.renew` does."""
        until = time.monotonic() + lease
        self.outbox.renew(tokens, lease)
        with self._lock:
            for number, (each, _) in self._held.items():
                if each.claimed.token in tokens:
                    self._held[number] = each, until

    def settle(self, outcomes: Sequence[Outcome]) -> int:
        """Settle deliveries as `Outbox.settle` does."""
        settled = self.outbox.settle(outcomes)
        now = time.monotonic()
        with self._lock:
            for outcome in outcomes:
                number = outcome.claimed.number
                self._held.pop(number, None)
                self.delivered += outcome.kind is OutcomeKind.DONE
                if _missed_the_broker(outcome):
                    self._unreached[number] = now + outcome.after + _UNREACHED
        if logger.isEnabledFor(logging.DEBUG):
            for outcome in outcomes:
                logger.debug("%s: settled for %s: %s", *_words_of(outcome))
        return settled

    def in_flight(self) -> list[InFlightDelivery]:
        """Return what is claimed and neither settled nor free for other processes."""
        now = time.monotonic()
        with self._lock:
            return [each for each, until in self._held.values() if until > now]

    def idle_mark(self) -> int | None:
        """
        Return a number that stays the same until the next claim; None while something is in flight.

        A message that did not reach the broker counts as in flight until shortly after it is due again.
        """
        now = time.monotonic()
        with self._lock:
            self._forget_unreached(now)
            is_busy = self._claiming or self._unreached or any(until > now for _, until in self._held.values())
            return None if is_busy else self._claim_count

    def _change(self, claimed: ClaimedDelivery, **changes: Any) -> None:
        with self._lock:
            known = self._held.get(claimed.number)
            # Another worker of this relay may have claimed it anew.
            if known is not None and known[0].claimed.token == claimed.token:
                self._held[claimed.number] = attrs.evolve(known[0], **changes), known[1]

    def _forget_unreached(self, now: float) -> None:
        """Forget messages that are long due again: another process may have published them. Under the lock."""
        self._unreached = {number: until for number, until in self._unreached.items() if until > now}


class Settlement:
    """
    Settles the deliveries of one task and logs those that failed.

    If a delivery cannot be settled while its lease lasts, another process claims it again.
    """

    def __init__(self, claims: ClaimTracker) -> None:
        self._claims = claims
        self._never = threading.Event()
        # When retries are due, by `time.monotonic`.
        self._due: list[float] = []

    def settle(self, outcomes: Sequence[Outcome], timeout: float) -> None:
        """
        Settle deliveries; tries again for `timeout` seconds if the database cannot be reached.

        Raises OutboxUnavailable if it still cannot be reached then.
        """
        settled = self._settle(outcomes, time.monotonic() + timeout)
        now = time.monotonic()
        for outcome in outcomes:
            if outcome.kind is OutcomeKind.RETRY and outcome.after > 0:
                heapq.heappush(self._due, now + outcome.after)
        if settled < len(outcomes):
            logger.warning(
                "lease lost on %d of %d deliveries, another process may deliver them again: this process was "
                "suspended, or took longer than the lease",
                len(outcomes) - settled,
                len(outcomes),
            )

    def next_due(self) -> float | None:
        """Return the seconds until a retry that was settled here is due; None if there is none."""
        now = time.monotonic()
        # A retry that has just come due may have been asked for a moment too early.
        while self._due and self._due[0] <= now - 2 * _CLOCK_SKEW:
            heapq.heappop(self._due)
        return max(0.0, self._due[0] - now) + _CLOCK_SKEW if self._due else None

    def _settle(self, outcomes: Sequence[Outcome], until: float) -> int:
        while True:
            try:
                return self._claims.settle(outcomes)
            except OutboxUnavailable:
                if time.monotonic() + _PAUSE > until:
                    raise
                self._never.wait(_PAUSE)

    def failure_outcome(self, claimed: ClaimedDelivery, error: BaseException, policy: RetryPolicy) -> Outcome:
        """Return the outcome of a delivery that is itself at fault: retry or dead letter, as the policy says."""
        delay = policy.delay(claimed.attempts, error)
        outcome = Outcome.failed(claimed, error, after=delay, blocks=policy.blocks)
        if outcome.kind is OutcomeKind.DEAD:
            _log_dead_letter(outcome, error)
        else:
            words = "%s for %s: attempt %d failed, retrying in %.1f s: %s"
            arguments = claimed.message.title, claimed.target, claimed.attempts, outcome.after, outcome.error
            # Later attempts fail in the same place, as a rule.
            logger.warning(words, *arguments, exc_info=_trace(claimed, error) if claimed.attempts == 1 else None)
        return outcome

    def exhausted_outcome(self, claimed: ClaimedDelivery, policy: RetryPolicy) -> Outcome:
        """Return the outcome of a delivery whose last attempt ended with its process."""
        words = f"it was attempted {claimed.attempts - 1} times, and the process of the last attempt died"
        outcome = Outcome.failed(claimed, words, after=None, blocks=policy.blocks)
        _log_dead_letter(outcome)
        return outcome


def _log_dead_letter(outcome: Outcome, error: BaseException | None = None) -> None:
    claimed = outcome.claimed
    holds_up = claimed.message.key is not None and outcome.blocks
    words = "%s for %s is a dead letter after %d attempt(s): %s"
    if holds_up:
        words += "; later deliveries with its key wait until you replay or purge it"
    arguments = claimed.message.title, claimed.target, claimed.attempts, outcome.error
    logger.error(words, *arguments, exc_info=None if error is None else _trace(claimed, error))


def _words_of(outcome: Outcome) -> tuple[str, str, str]:
    kind = f"retry in {outcome.after:.1f} s" if outcome.kind is OutcomeKind.RETRY else outcome.kind.value
    return outcome.claimed.message.title, outcome.claimed.target, kind


def _trace(claimed: ClaimedDelivery, error: BaseException) -> BaseException | None:
    """Return the error if its traceback helps: that of a handler does, that of a broker does not."""
    return None if claimed.handler is None else error


def _missed_the_broker(outcome: Outcome) -> bool:
    is_deferred = outcome.kind is OutcomeKind.RETRY and not outcome.counted and outcome.after > 0
    return is_deferred and outcome.claimed.handler is None
