"""Give the broker what the outbox keeps for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence

import attrs

from cqrs_sync import context
from cqrs_sync.emitter import EventEmitter
from cqrs_sync.errors import BrokerUnavailable, Closed, ConfigurationError, PublishFailed
from cqrs_sync.outbox import Claimed, Outbox, Outcome, Verdict
from cqrs_sync.relay.settlement import Claims, Settlement
from cqrs_sync.retry import Backoff, Retries, exponential_delay

logger = logging.getLogger(__name__)

_DONE = Verdict.DONE
#: What no message is to be charged for.
_NOT_ITS_FAULT = (BrokerUnavailable, Closed, ConfigurationError, TimeoutError)
#: Messages that find out whether a broker is back.
_PROBE = 1
#: Seconds a probe may take.
_PROBE_TIMEOUT = 2.0
#: Of the time a claim holds, one batch may take this share to be published.
_SHARE = 1 / 3
#: Seconds until a message is tried again whose topic cannot be reached while others can.
_TOPIC_PAUSE = 2.0


class OutboxPublisher:
    """
    Claims messages, publishes them and settles them; no transaction is open meanwhile.

    Messages whose key is to be blocked by one that fails are published one after the other
    for each key, side by side for different keys: a batch takes as many rounds as its
    busiest key has messages. All others are published in one go.
    """

    def __init__(
        self, outbox: Outbox, emitter: EventEmitter, retries: Retries, *, lease: float, batch: int, claims: Claims
    ) -> None:
        self._outbox = outbox
        self._emitter = emitter
        self._retries = retries
        self._lease = lease
        self._batch = batch
        self._claims = claims
        self._outages = Outages()
        self._settlement = Settlement(claims)
        self._finishing = self._ending = False

    def deliver(self) -> float | None:
        """Publish one batch."""
        pause = self._outages.pause()
        if self._ending or (self._finishing and pause > 0):
            return None
        if pause > 0:
            return pause
        begun = time.monotonic()
        limit = _PROBE if self._outages.probing else self._batch
        claimed = self._claims.claim(limit, self._lease, besides=self._outages.unreachable_topics())
        if not claimed:
            return None if self._finishing else self._next_due()
        outcomes = self._publish(claimed, begun)
        self._settlement.settle(outcomes, begun + self._lease)
        return self._outages.pause()

    def _next_due(self) -> float | None:
        waits = (self._outages.next_topic(), self._settlement.next_due())
        return min((wait for wait in waits if wait is not None), default=None)

    def finish(self, *, drain: bool) -> None:
        """Publish what there is, or nothing more."""
        self._finishing = True
        self._ending = not drain

    def release_connection(self) -> None:
        """Give up the database connection of this thread."""
        self._outbox.release_connection()

    def _publish(self, claimed: Sequence[Claimed], begun: float) -> list[Outcome]:
        outcomes: list[Outcome] = []
        stopped: set[tuple[str, str | None]] = set()
        for round_ in self._rounds(claimed):
            ready: list[Claimed] = []
            for each in round_:
                if stopped and _lane(each) in stopped and self._blocks(each):
                    outcomes.append(_given_back(each))
                else:
                    ready.append(each)
            if not ready:
                continue
            if self._outages.pause() > 0 or time.monotonic() - begun > self._lease * _SHARE * 2:
                # Somebody else may hold them before these are confirmed.
                outcomes += map(_given_back, ready)
                continue
            failed = self._publish_round(ready, self._timeout())
            stopped.update(_lane(outcome.claimed) for outcome in failed)
            missing = {outcome.claimed.number for outcome in failed}
            outcomes += failed
            outcomes += [Outcome(each, _DONE) for each in ready if each.number not in missing]
        return outcomes

    def _rounds(self, claimed: Sequence[Claimed]) -> Sequence[list[Claimed]]:
        """Cut a batch into rounds in which each key that is to be blocked by a failure comes once."""
        rounds: list[list[Claimed]] = [[]]
        seen: dict[tuple[str, str | None], int] = {}
        blocks = {target: self._retries.of(target).blocks for target in {each.target for each in claimed}}
        for each in claimed:
            place = 0
            if each.message.key is not None and blocks[each.target]:
                lane = _lane(each)
                place = seen[lane] = seen.get(lane, -1) + 1
                if place == len(rounds):
                    rounds.append([])
            rounds[place].append(each)
        return rounds

    def _blocks(self, claimed: Claimed) -> bool:
        return self._retries.of(claimed.target).blocks

    def _timeout(self) -> float:
        return _PROBE_TIMEOUT if self._outages.probing else self._lease * _SHARE

    def _publish_round(self, ready: Sequence[Claimed], timeout: float) -> list[Outcome]:
        """Publish messages and return the outcomes of those that were not confirmed."""
        most = {target: self._retries.of(target).attempts for target in {each.target for each in ready}}
        exhausted = [each for each in ready if each.attempts > most[each.target]]
        fresh = [each for each in ready if each not in exhausted] if exhausted else ready
        errors = self._errors_of(fresh, timeout)
        unavailable = (
            {each.target for each in fresh if _is_unavailable(errors.get(each.message.id))} if errors else set()
        )
        reached = {each.target for each in fresh if not errors or not _is_unavailable(errors.get(each.message.id))}
        some = next((error for error in errors.values() if _is_unavailable(error)), None)
        self._outages.note(reached, unavailable, some)
        lost = [self._settlement.exhausted(each, self._retries.of(each.target)) for each in exhausted]
        return lost + [
            self._failed(each, errors[each.message.id], others_pass=bool(reached))
            for each in (fresh if errors else ())
            if each.message.id in errors
        ]

    def _errors_of(self, ready: Sequence[Claimed], timeout: float) -> dict[str, Exception]:
        """Publish messages and return why those failed that did."""
        if not ready:
            return {}
        try:
            with context.allowing(timeout):
                self._emitter.publish([each.message for each in ready])
        except PublishFailed as failed:
            return {message.id: error for message, error in failed.failures}
        except _NOT_ITS_FAULT as error:
            return dict.fromkeys((each.message.id for each in ready), error)
        except Exception as error:  # noqa: BLE001 -- of a middleware: no message is to suffer for another
            if len(ready) == 1:
                return {ready[0].message.id: error}
            alone = [self._errors_of([each], timeout) for each in ready]
            return {identity: why for errors in alone for identity, why in errors.items()}
        return {}

    def _failed(self, claimed: Claimed, error: Exception, *, others_pass: bool) -> Outcome:
        if _is_unavailable(error):
            after = _TOPIC_PAUSE if others_pass else self._outages.pause()
            return Outcome.failed(claimed, error, after=after, counted=False)
        return self._settlement.failed(claimed, error, self._retries.of(claimed.target))


def _lane(claimed: Claimed) -> tuple[str, str | None]:
    # Without a key, it is alone in its lane.
    return claimed.target, claimed.message.key or f"\0{claimed.number}"


def _is_unavailable(error: Exception | None) -> bool:
    return isinstance(error, _NOT_ITS_FAULT)


def _given_back(claimed: Claimed) -> Outcome:
    return Outcome(claimed, Verdict.AGAIN, counted=False)


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
