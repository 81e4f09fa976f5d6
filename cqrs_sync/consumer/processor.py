"""Handle one received message, and decide what becomes of it where that fails."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

import attrs

from cqrs_sync.broker import Delivery, Group, GroupBroker
from cqrs_sync.consumer.inflight import InFlightMessage, KeyedQueue
from cqrs_sync.consumer.outage import Outage, may_pass
from cqrs_sync.consumer.tiers import PARKED, Tiers, Unknown
from cqrs_sync.errors import (
    LONGEST_ERROR,
    CqrsError,
    EventsFailed,
    Fatal,
    MalformedMessage,
    Retryable,
    UnknownMessageType,
    describe_error,
    fingerprint,
    printable,
)
from cqrs_sync.mediator import EventMediator
from cqrs_sync.serializer import is_key

logger = logging.getLogger(__name__)

#: Seconds until setting aside is tried again.
_AGAIN = 1.0
#: Without an inbox brokers count what others had in hand when a process died as well: so many are allowed, and from
#: so many on nothing runs beside it.
_WITHOUT_INBOX = 20, 2, "it was delivered {} times, and nobody has finished it"
_MOST_ATTEMPTS = 1_000_000
#: Why a message is given up that an inbox has counted.
_WORN_OUT = "it was begun {} times, and no process lived to finish it"
#: What is told of an unknown type.
_POLICIES = {
    Unknown.PARK: "such messages are parked",
    Unknown.ACK: "such messages are dropped",
    Unknown.DEAD_LETTER: "such messages are dead letters",
}
#: Unknown types that are told of, at most: anybody may make up names.
_MOST_SAID = 1000


@attrs.define
class Counts:
    """What became of messages, for those who watch."""

    #: Handled, and acked.
    handled: int = 0
    #: Set aside to be tried again.
    delayed: int = 0
    #: Dead letters.
    dead: int = 0
    #: Dropped: of unknown types, where the policy is to ack them.
    dropped: int = 0

    @property
    def settled(self) -> int:
        """All that is out of hand."""
        return self.handled + self.delayed + self.dead + self.dropped


@attrs.frozen
class Rules:
    """What becomes of messages that cannot be handled."""

    tiers: Tiers
    unknown: Unknown
    #: A message that was begun so often by processes that died is a dead letter.
    crashes: int


class Site(Protocol):
    """What processor needs to know of its consumer."""

    broker: GroupBroker
    group: Group
    counts: Counts


class MessageProcessor:
    """
    Handles messages in hand.

    Attempts are counted in the notes of a message when it is set aside. One that was in hand when a process died
    is counted in the inbox before it is begun again.
    """

    def __init__(self, site: Site, events: EventMediator, queue: KeyedQueue, rules: Rules, outage: Outage) -> None:
        self._site = site
        self._receive = events.receive
        self._inbox = events.wiring.inbox
        self._queue = queue
        self._rules = rules
        self._outage = outage
        self._said_unknown: set[str] = set()
        # The first time is not counted where the broker is sure that it is the first.
        most = max(1, rules.crashes - 1)
        #: A message that was begun so often and not finished is given up, and is begun with nothing beside it; and why.
        self._limits = _WITHOUT_INBOX if self._inbox is None else (most, min(1, most - 1), _WORN_OUT)

    def process(self, item: InFlightMessage) -> float | None:
        """Handle a message; returns None where it is to be settled, else the seconds after which to try again."""
        pause = None if item.aside is not None else self._try(item)
        return pause if item.aside is None else self._set_aside(item)

    def _try(self, item: InFlightMessage) -> float | None:
        """Handle it; where that fails, decide where it goes, or return the seconds to wait."""
        try:
            if item.delivery.redeliveries and not item.begun_before and not self._begin_counted(item):
                return 0.0
            self._receive(item.delivery.message)
        except UnknownMessageType as error:
            self._survived(item)
            self._unknown(item, error)
        except MalformedMessage as error:
            self._survived(item)
            self._give_up(item, error)
        except BaseException as error:  # noqa: BLE001 -- what is no Exception is a failure of this message as well
            self._survived(item)
            return self._failed(item, error)
        else:
            self._succeeded(item)
        return None

    def _succeeded(self, item: InFlightMessage) -> None:
        item.is_done = True
        self._site.counts.handled += 1
        if self._outage.note_success():
            self._queue.hurry()
        # One is no harm, and a row that is purged is cheaper than one that is deleted.
        if self._inbox is not None and item.begun_before > 1:
            self._uncount(item, self._inbox.forget_attempts)

    def _begin_counted(self, item: InFlightMessage) -> bool:
        """
        Count it as begun, as it is: what waits for its turn is not to be counted for it. False where it is not begun.
        """
        inbox, identity = self._inbox, item.identity
        before = item.delivery.redeliveries if inbox is None else inbox.attempts_at(identity)
        most, alone_from, why = self._limits
        if before >= most:
            item.attempts = max(item.attempts, before)
            self._give_up(item, why.format(before))
            return False
        if before >= alone_from and not item.is_alone:
            # What ends its process is not to take others along, which would be counted for it.
            item.is_alone = True
            return False
        item.begun_before = before + 1 if inbox is None else inbox.attempt(identity)
        return True

    def _survived(self, item: InFlightMessage) -> None:
        """Take back that it was begun: it failed, and its process lives. It is counted anew if it is tried again."""
        if self._inbox is not None and item.begun_before:
            self._uncount(item, self._inbox.take_back_attempt)
        item.begun_before = 0

    def _uncount(self, item: InFlightMessage, how: Callable[[str], object]) -> None:
        try:
            how(item.identity)
        except Exception as error:  # noqa: BLE001 -- it is done all the same
            logger.warning("attempts at %s cannot be forgotten: %s", item.identity, error)

    def _failed(self, item: InFlightMessage, error: BaseException) -> float | None:
        if _is_fatal(error):
            self._give_up(item, error)
            return None
        self._outage.note_failure(item, error)
        if self._outage.is_on:
            self._queue.hold(self._outage.pause())
            if may_pass(error):
                # It goes behind all others: the next look is another one's.
                return 0.0
        item.attempts += 1
        pause = self._rules.tiers.pause(item.attempts, _wish(error))
        if pause is None:
            self._give_up(item, error)
            return None
        logger.warning(
            "%s failed, attempt %d, again in %.1f s: %s",
            *(_title(item), item.attempts, pause.seconds, fingerprint(describe_error(error))),
            # What fails on and on fails in the same place, as a rule.
            exc_info=error if item.attempts == 1 else None,
        )
        if pause.is_inline:
            return pause.seconds
        self._decide(item, error, pause.seconds)
        return None

    def _give_up(self, item: InFlightMessage, error: BaseException | str) -> None:
        if self._inbox is not None and item.delivery.redeliveries:
            # Whoever replays it begins anew.
            self._uncount(item, self._inbox.forget_attempts)
        item.attempts = max(1, item.attempts)
        item.error = error if isinstance(error, EventsFailed) else None
        self._decide(item, error, None)

    def _unknown(self, item: InFlightMessage, error: UnknownMessageType) -> None:
        policy, name = self._rules.unknown, item.delivery.message.attributes.get("type", "?")[:200]
        delays = self._site.group.delays
        if policy is Unknown.PARK and not delays:
            # There is no place where they could wait.
            policy = Unknown.DEAD_LETTER
        if name not in self._said_unknown and len(self._said_unknown) < _MOST_SAID:
            self._said_unknown.add(name)
            logger.warning("%s: %s (unknown=..., --unknown)", error, _POLICIES[policy])
        rounds = _number(item.delivery.message.notes.get("parked"))
        if policy is Unknown.ACK:
            item.is_done = True
            self._site.counts.dropped += 1
        elif policy is Unknown.DEAD_LETTER or rounds * delays[-1] >= PARKED:
            self._give_up(item, error)
        else:
            self._decide(item, error, delays[-1], parked=str(rounds + 1))

    def _decide(self, item: InFlightMessage, error: BaseException | str, delay: float | None, **notes: str) -> None:
        """Note what happened, and where the message is to go."""
        message = item.delivery.message
        words = error if isinstance(error, str) else describe_error(error)
        noted = {
            **{name: text for name, text in message.notes.items() if name != "parked"},
            "attempts": str(item.attempts),
            "reason": fingerprint(words),
            "error": printable(words)[:LONGEST_ERROR],
            "group": self._site.group.name,
            "origin": message.notes.get("origin") or item.delivery.origin,
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            **notes,
        }
        if isinstance(error, EventsFailed):
            noted["handlers"] = ", ".join(sorted({failure.handler for failure in error.failures}))
        item.aside = attrs.evolve(message, notes=noted), delay

    def _set_aside(self, item: InFlightMessage) -> float | None:
        assert item.aside is not None
        message, delay = item.aside
        try:
            self._site.broker.set_aside([message], self._site.group, after=delay)
        except CqrsError as error:
            logger.warning("%s cannot be set aside, it is tried again: %s", _title(item), error)
            return _AGAIN
        item.is_done = True
        if delay is None:
            logger.error(
                "%s from %s is a dead letter after %s attempt(s): %s",
                *(_title(item), item.delivery.origin, message.notes["attempts"], message.notes["reason"]),
                exc_info=item.error,
            )
            self._site.counts.dead += 1
        else:
            self._site.counts.delayed += 1
        return None


def in_flight(delivery: Delivery) -> InFlightMessage:
    """Take a delivery in hand; nothing in its message is to be trusted."""
    message = delivery.message
    attributes = message.attributes
    identity = f"{attributes.get('source', '')} {attributes.get('id', '')}"
    if identity == " " or not is_key(identity):
        # Its attributes are in its body, or it has none that could name it.
        named = f"{identity} {message.topic} {message.key}".encode(errors="surrogatepass")
        identity = f"blake2b {hashlib.blake2b(named + message.body, digest_size=32).hexdigest()}"
    key = None if message.key is None else (message.topic, message.key)
    return InFlightMessage(delivery, key, identity, _number(message.notes.get("attempts")))


def _is_fatal(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_fatal, error.exceptions))
    return isinstance(error, Fatal)


def _number(text: str | None) -> int:
    """Read a number that anybody may have written."""
    if text is None or not (text.isascii() and text.isdigit()):
        return 0
    return min(int(text[:7]), _MOST_ATTEMPTS)


def _title(item: InFlightMessage) -> str:
    attributes = item.delivery.message.attributes
    return f"{attributes.get('type', 'a message of no type')[:100]!r} {attributes.get('id', '')[:100]!r}"


def _wish(error: BaseException) -> float:
    """Return the seconds that an error asks to be given."""
    if isinstance(error, BaseExceptionGroup):
        return max(map(_wish, error.exceptions))
    return (error.after or 0.0) if isinstance(error, Retryable) else 0.0
