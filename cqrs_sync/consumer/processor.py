"""Handle one received message, and decide what follows if that fails: retry, defer, park or dead letter."""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

import attrs

from cqrs_sync.broker import Group, IncomingMessage, ReceivingBroker
from cqrs_sync.consumer.inflight import InFlightMessage, KeyedQueue, number_in
from cqrs_sync.errors import (
    ConfigurationError,
    CqrsError,
    EventsFailed,
    MalformedMessage,
    UnknownMessageType,
    describe_error,
    fingerprint,
)
from cqrs_sync.inbox import Inbox
from cqrs_sync.retry import CircuitBreaker, RetryPolicy, is_permanent, is_transient, requested_delay, with_jitter

logger: logging.Logger = logging.getLogger(__name__)

#: The retry policy of a consumer, and the longest of its delays that a message spends in the consumer.
DEFAULT_RETRY, INLINE_LIMIT = RetryPolicy(delays=(0.1, 1.0, 10.0, 60.0, 600.0)), 5.0
#: Seconds that a message may wait in the consumer at most: its key waits for it, and so does a deploy.
_LONGEST_INLINE = 60.0
#: Seconds for which a message of an unknown type is parked in all.
PARKED = 86_400
#: Seconds between two probes while the circuit is open, at first and at most.
_PROBE_FIRST, _PROBE_MOST = 0.25, 5.0
#: Seconds until the next attempt to defer a message or to make it a dead letter.
_KEEP_RETRY = 1.0
#: Without an inbox the broker counts deliveries, and a crash counts for all messages the process had: allow so many,
#: and run a message alone from so many on.
_WITHOUT_INBOX = 20, 2, "it was delivered {} times and never settled"
#: Why a message that the inbox has counted is a dead letter.
_EXHAUSTED = "it was begun {} times, and each time its process died"
#: Unknown types that are logged at most: any sender can make up names.
_MOST_LOGGED = 1000


class OnUnknownType(enum.Enum):
    """What happens to a message whose type is not bound here."""

    #: The broker keeps it for the longest delay, again and again for a day: a newer build may know it.
    PARK = "park"
    #: The consumer drops it: it is for others.
    ACK = "ack"
    #: It becomes a dead letter.
    DEAD_LETTER = "dead letter"


#: What the log says of a message of an unknown type.
_CONSEQUENCES = {
    OnUnknownType.PARK: "messages of this type are parked for a day",
    OnUnknownType.ACK: "messages of this type are dropped",
    OnUnknownType.DEAD_LETTER: "messages of this type become dead letters",
}


@attrs.define
class MessageCounts:
    """How many messages had which end."""

    #: Handled and acked.
    handled: int = 0
    #: Deferred or parked.
    delayed: int = 0
    #: Dead letters.
    dead: int = 0
    #: Dropped, because their type is unknown and the policy says so.
    dropped: int = 0

    @property
    def settled(self) -> int:
        """All messages that are no longer in flight."""
        return self.handled + self.delayed + self.dead + self.dropped


@attrs.frozen
class MessageFailurePolicy:
    """
    What happens to a message that cannot be handled.

    Delays of `retry` up to `inline_limit` seconds pass in the consumer, where the key of the message waits. For
    longer delays the broker keeps the message, and later messages of its key overtake it.
    """

    retry: RetryPolicy = DEFAULT_RETRY
    inline_limit: float = INLINE_LIMIT
    on_unknown: OnUnknownType = OnUnknownType.PARK
    #: A message is a dead letter after it has killed so many processes.
    max_crashes: int = 5

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.retry, RetryPolicy):
            raise ConfigurationError(f"retry must be a RetryPolicy, not {self.retry!r}")
        if isinstance(self.inline_limit, bool) or not isinstance(self.inline_limit, (int, float)):
            raise ConfigurationError(f"inline_limit must be a number of seconds, not {self.inline_limit!r}")
        if not 0 <= self.inline_limit <= _LONGEST_INLINE:
            raise ConfigurationError(
                f"inline_limit must be between 0 and {_LONGEST_INLINE:g} s, not {self.inline_limit:g}: "
                "the broker keeps a message for longer delays"
            )
        if not isinstance(self.on_unknown, OnUnknownType):
            raise ConfigurationError(f"on_unknown must be an OnUnknownType, not {self.on_unknown!r}")

    @property
    def broker_delays(self) -> tuple[float, ...]:
        """The delays for which the broker keeps messages, shortest first."""
        base = (self.retry.base_delay(attempts) for attempts in range(1, self.retry.attempts))
        return tuple(sorted({delay for delay in base if delay is not None and delay > self.inline_limit}))

    def delay(self, attempts: int, error: BaseException) -> tuple[float, bool] | None:
        """
        Return the seconds until the next attempt, and whether the message stays in the consumer for so long.

        None if there is no other attempt. `TemporaryError(after=...)` makes the delay longer.
        """
        base, requested, deferred = self.retry.base_delay(attempts), requested_delay(error), self.broker_delays
        if base is None:
            return None
        if base <= self.inline_limit:
            seconds = max(requested, with_jitter(base))
            if seconds <= _LONGEST_INLINE or not deferred:
                return min(seconds, _LONGEST_INLINE), True
        # The broker knows only these delays: take the first that is long enough.
        return next((each for each in deferred if each >= max(requested, base)), deferred[-1]), False


class HandlerCircuitBreaker(CircuitBreaker):
    """
    The circuit breaker of all handlers of a consumer. Failures in a row open it, whatever the messages are.

    While it is open one message at a time is tried, each time another one. The first success closes it, so those come
    first that are likely to succeed: messages of types that have not failed do not wait for a broken handler.
    """

    def __init__(self, threshold: int) -> None:
        super().__init__(_PROBE_FIRST, _PROBE_MOST, threshold=threshold)
        # Types of the messages that have failed since the last success.
        self._types: set[str] = set()

    @property
    def trouble(self) -> str:
        """What is wrong; empty if nothing is."""
        words = f"{self.failures} attempts in a row have failed: one message at a time is tried"
        return words if self.is_open else ""

    def rank(self, item: InFlightMessage) -> tuple[bool, bool]:
        """Rank a message: the lower, the likelier it succeeds."""
        return item.type in self._types, item.failed_attempts > 0

    def record_success(self) -> bool:
        """Note that a message was handled; returns whether that closed the circuit."""
        if not self.failures:
            return False
        self._types.clear()
        was_open = super().record_success()
        if was_open:
            logger.warning("circuit closed: a message succeeded, handling messages concurrently again")
        return was_open

    def record_handler_failure(self, item: InFlightMessage, error: BaseException) -> None:
        """Note that a message failed."""
        self._types.add(item.type)
        if self.record_failure():
            logger.error(
                "circuit opened after %d failures in a row: trying one message at a time until one succeeds; "
                "transient errors use up no attempt; last error: %s",
                self.failures,
                describe_error(error),
            )


class MessageProcessor:
    """
    Handles messages in flight, one per call of `process`; any number of threads call it.

    A deferred message carries its attempts in its notes. The inbox counts attempts that may have killed a process,
    before they begin.
    """

    def __init__(
        self,
        receive: Callable[[IncomingMessage], object],
        inbox: Inbox | None,
        broker: ReceivingBroker,
        group: Group,
        queue: KeyedQueue,
        policy: MessageFailurePolicy,
        circuit: HandlerCircuitBreaker,
    ) -> None:
        self._receive = receive
        self._inbox = inbox
        self._broker = broker
        self._group = group
        self._queue = queue
        self._policy = policy
        #: Opens while handlers fail one after the other.
        self.circuit = circuit
        #: How many messages had which end.
        self.counts: MessageCounts = MessageCounts()
        self._logged_types: set[str] = set()
        # The inbox does not count a first attempt that the broker says is the first one.
        most = max(1, policy.max_crashes - 1)
        # After so many attempts a message is a dead letter, from so many on it runs alone; and the reason.
        self._limits = _WITHOUT_INBOX if self._inbox is None else (most, min(1, most - 1), _EXHAUSTED)

    def process(self, item: InFlightMessage) -> float | None:
        """Handle a message; returns the seconds until its next attempt, None if it is done."""
        delay = None if item.to_keep is not None else self._try(item)
        return delay if item.to_keep is None else self._hand_to_broker(item)

    def _try(self, item: InFlightMessage) -> float | None:
        """Handle it. After a failure decide where it goes, or return the seconds to wait."""
        try:
            if item.delivery.redeliveries and not item.begun_attempts and not self._count_attempt(item):
                return 0.0
            self._receive(item.delivery.message)
        except BaseException as error:  # noqa: BLE001 -- SystemExit and the like are failures of the message as well
            self._uncount_attempt(item)
            return self._on_failure(item, error)
        self._on_success(item)
        return None

    def _on_success(self, item: InFlightMessage) -> None:
        item.is_done = True
        self.counts.handled += 1
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s: handled in %.3f s", item.delivery.message.title, time.monotonic() - item.begun)
        if self.circuit.record_success():
            self._queue.resume()
        # A count of one does no harm, and to purge its row later is cheaper than to delete it now.
        if self._inbox is not None and item.begun_attempts > 1:
            self._change_count(item, self._inbox.reset_attempts)

    def _count_attempt(self, item: InFlightMessage) -> bool:
        """Count a redelivered message as begun; False if it does not begin now. Waiting for its turn counts nothing."""
        inbox, identity = self._inbox, item.identity
        before = item.delivery.redeliveries if inbox is None else inbox.counted_attempts(identity)
        most, alone_from, reason = self._limits
        if before >= most:
            item.failed_attempts = max(item.failed_attempts, before)
            self._make_dead_letter(item, reason.format(before))
            return False
        if before >= alone_from and not item.runs_alone:
            # If it kills the process, the crash must not count for other messages.
            item.runs_alone = True
            return False
        item.begun_attempts = before + 1 if inbox is None else inbox.count_attempt(identity)
        return True

    def _uncount_attempt(self, item: InFlightMessage) -> None:
        """Take back the count of an attempt that failed without killing the process."""
        if self._inbox is not None and item.begun_attempts:
            self._change_count(item, self._inbox.uncount_attempt)
        item.begun_attempts = 0

    def _change_count(self, item: InFlightMessage, change: Callable[[str], object]) -> None:
        try:
            change(item.identity)
        except Exception as error:  # noqa: BLE001 -- the message is handled all the same
            logger.warning("the inbox cannot update the attempts at %s: %s", item.identity, error)

    def _on_failure(self, item: InFlightMessage, error: BaseException) -> float | None:
        if isinstance(error, UnknownMessageType):
            self._on_unknown(item, error)
            return None
        if isinstance(error, MalformedMessage) or is_permanent(error):
            self._make_dead_letter(item, error)
            return None
        self.circuit.record_handler_failure(item, error)
        if self.circuit.is_open:
            self._queue.pause(self.circuit.delay())
            if is_transient(error):
                # It goes to the end of the queue: another message probes next.
                return 0.0
        item.failed_attempts += 1
        next_attempt = self._policy.delay(item.failed_attempts, error)
        if next_attempt is None:
            self._make_dead_letter(item, error)
            return None
        delay, is_inline = next_attempt
        is_overtaken = item.key is not None and not is_inline
        # Later attempts fail in the same place, as a rule.
        logger.warning(
            "%s: attempt %d failed, retrying in %.1f s%s: %s",
            item.delivery.message.title,
            item.failed_attempts,
            delay,
            ", meanwhile later messages of its key overtake it" if is_overtaken else "",
            fingerprint(error),
            exc_info=error if item.failed_attempts == 1 else None,
        )
        if is_inline:
            return delay
        self._prepare_copy(item, error, delay)
        return None

    def _make_dead_letter(self, item: InFlightMessage, error: BaseException | str) -> None:
        """Make it a dead letter."""
        if self._inbox is not None and item.delivery.redeliveries:
            # A replay begins with no attempts.
            self._change_count(item, self._inbox.reset_attempts)
        item.failed_attempts = max(1, item.failed_attempts)
        item.error = error if isinstance(error, EventsFailed) else None
        self._prepare_copy(item, error, None)

    def _on_unknown(self, item: InFlightMessage, error: UnknownMessageType) -> None:
        policy, name = self._policy.on_unknown, item.delivery.message.attributes.get("type", "?")[:200]
        delays = self._group.delays
        if policy is OnUnknownType.PARK and not delays:
            # The group has no delay, so the broker cannot keep it for a while.
            policy = OnUnknownType.DEAD_LETTER
        if name not in self._logged_types and len(self._logged_types) < _MOST_LOGGED:
            self._logged_types.add(name)
            logger.warning("%s; %s (to change: on_unknown=, --on-unknown)", error, _CONSEQUENCES[policy])
        rounds = number_in(item.delivery.message.notes.get("parked"))
        if policy is OnUnknownType.ACK:
            item.is_done = True
            self.counts.dropped += 1
            logger.debug("%s: dropped, its type is not bound here", item.delivery.message.title)
        elif policy is OnUnknownType.DEAD_LETTER or rounds * delays[-1] >= PARKED:
            self._make_dead_letter(item, error)
        else:
            self._prepare_copy(item, error, delays[-1], parked=str(rounds + 1))

    def _prepare_copy(
        self, item: InFlightMessage, error: BaseException | str, delay: float | None, **notes: str
    ) -> None:
        """Note on the message what happened, and for how long the broker has to keep it; None is for good."""
        message = item.delivery.message
        noted = {
            **{name: text for name, text in message.notes.items() if name != "parked"},
            "attempts": str(item.failed_attempts),
            "reason": fingerprint(error),
            "error": describe_error(error),
            "group": self._group.name,
            "origin": message.notes.get("origin") or item.delivery.origin,
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            **notes,
        }
        if isinstance(error, EventsFailed):
            noted["handlers"] = ", ".join(sorted({failure.handler for failure in error.failures}))
        item.to_keep = attrs.evolve(message, notes=noted), delay

    def _hand_to_broker(self, item: InFlightMessage) -> float | None:
        """Give the message to the broker, for its delay or as a dead letter."""
        assert item.to_keep is not None
        message, delay = item.to_keep
        try:
            if delay is None:
                self._broker.add_dead_letters([message], self._group)
            else:
                self._broker.defer([message], self._group, after=delay)
        except CqrsError as error:
            what = "made a dead letter" if delay is None else "deferred"
            logger.warning(
                "%s cannot be %s, trying again in %g s: %s", item.delivery.message.title, what, _KEEP_RETRY, error
            )
            return _KEEP_RETRY
        item.is_done = True
        if delay is None:
            words, notes = "%s from %s is a dead letter after %s attempt(s): %s", message.notes
            arguments = item.delivery.message.title, item.delivery.origin, notes["attempts"], notes["reason"]
            logger.error(words, *arguments, exc_info=item.error)
            self.counts.dead += 1
        else:
            self.counts.delayed += 1
            verb = "parked" if "parked" in message.notes else "deferred"
            logger.debug("%s: %s for %g s (attempt %s)", message.title, verb, delay, message.notes["attempts"])
        return None
