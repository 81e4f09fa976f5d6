"""Publish the messages that the outbox keeps."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence

from cqrs_sync import context
from cqrs_sync.emitter import EventEmitter
from cqrs_sync.errors import BrokerUnavailable, ClosedError, ConfigurationError, PublishFailed
from cqrs_sync.outbox import ClaimedDelivery, Outcome, OutcomeKind
from cqrs_sync.relay.settlement import ClaimTracker, Settlement
from cqrs_sync.relay.thread import RelayTask
from cqrs_sync.retry import CircuitBreaker, LogThrottle, RetryPolicies

logger: logging.Logger = logging.getLogger(__name__)

#: Errors that cost a message no attempt.
_NOT_ITS_FAULT = (BrokerUnavailable, ClosedError, ConfigurationError, TimeoutError)
#: How many messages probe whether the broker is back, and the seconds a probe may take.
_PROBE, _PROBE_TIMEOUT = 1, 2.0
#: The share of a lease in which one batch may be published.
_SHARE = 1 / 3
#: Seconds until a message is tried again whose topic cannot be reached while others can.
_TOPIC_DELAY = 2.0
#: Seconds between two probes of the broker, at first and at most; the same for a topic while others can be reached.
_BROKER_DELAYS, _TOPIC_DELAYS = (0.25, 3.0), (1.0, 30.0)


class OutboxPublisher(RelayTask):
    """
    Claims messages, publishes them and settles them. No transaction is open while it publishes.

    A batch goes out in rounds if a dead letter would block its key: each round has one message of each key, so a key
    waits for the confirmation of its previous message. All other messages go out in one round.
    """

    def __init__(
        self, claims: ClaimTracker, emitter: EventEmitter, policies: RetryPolicies, *, lease: float, batch: int
    ) -> None:
        super().__init__(claims)
        self._emitter = emitter
        self._policies = policies
        self._lease = lease
        self._batch = batch
        self._breakers = BrokerCircuitBreakers()
        self._settlement = Settlement(claims)

    def step(self) -> float | None:
        """Publish one batch."""
        pause = self._breakers.delay()
        if self.is_ending or (self.is_finishing and pause > 0):
            return None
        if pause > 0:
            return pause
        begun = time.monotonic()
        limit = _PROBE if self._breakers.is_probing else self._batch
        claimed = self.claims.claim(limit, self._lease, exclude=self._breakers.unreachable_topics())
        if not claimed:
            return None if self.is_finishing else self._next_due()
        outcomes = self._publish(claimed, begun)
        self._settlement.settle(outcomes, begun + self._lease - time.monotonic())
        return self._breakers.delay()

    def _next_due(self) -> float | None:
        waits = (self._breakers.next_topic_delay(), self._settlement.next_due())
        return min((wait for wait in waits if wait is not None), default=None)

    def _publish(self, claimed: Sequence[ClaimedDelivery], begun: float) -> list[Outcome]:
        outcomes: list[Outcome] = []
        stopped: set[tuple[str, str | None]] = set()
        for round_ in self._rounds(claimed):
            ready: list[ClaimedDelivery] = []
            for each in round_:
                if stopped and _key_of(each) in stopped and self._policies.of(each.target).blocks:
                    outcomes.append(_given_back(each))
                else:
                    ready.append(each)
            if not ready:
                continue
            if self._breakers.delay() > 0 or time.monotonic() - begun > self._lease * _SHARE * 2:
                # The lease could end before the broker confirms these.
                outcomes += map(_given_back, ready)
                continue
            failed = self._publish_round(ready)
            stopped.update(_key_of(outcome.claimed) for outcome in failed)
            unconfirmed = {outcome.claimed.number for outcome in failed}
            outcomes += failed
            outcomes += [Outcome(each, OutcomeKind.DONE) for each in ready if each.number not in unconfirmed]
        return outcomes

    def _rounds(self, claimed: Sequence[ClaimedDelivery]) -> Sequence[list[ClaimedDelivery]]:
        """Cut a batch into rounds that have each key that blocks at most once."""
        rounds: list[list[ClaimedDelivery]] = [[]]
        last_round: dict[tuple[str, str | None], int] = {}
        blocks = {target: self._policies.of(target).blocks for target in {each.target for each in claimed}}
        for each in claimed:
            number = 0
            if each.message.key is not None and blocks[each.target]:
                key = _key_of(each)
                number = last_round[key] = last_round.get(key, -1) + 1
                if number == len(rounds):
                    rounds.append([])
            rounds[number].append(each)
        return rounds

    def _publish_round(self, ready: Sequence[ClaimedDelivery]) -> list[Outcome]:
        """Publish messages and return the outcomes of those that the broker did not confirm."""
        limits = {target: self._policies.of(target).attempts for target in {each.target for each in ready}}
        exhausted = [each for each in ready if each.attempts > limits[each.target]]
        fresh = [each for each in ready if each not in exhausted] if exhausted else ready
        errors = self._errors_of(fresh, _PROBE_TIMEOUT if self._breakers.is_probing else self._lease * _SHARE)
        unreached = {each.target for each in fresh if errors and _is_unavailable(errors.get(each.message.id))}
        reached = {each.target for each in fresh if not errors or not _is_unavailable(errors.get(each.message.id))}
        unavailable = next((error for error in errors.values() if _is_unavailable(error)), None)
        self._breakers.record(reached, unreached, unavailable)
        outcomes = [self._settlement.exhausted_outcome(each, self._policies.of(each.target)) for each in exhausted]
        for each in fresh if errors else ():
            error = errors.get(each.message.id)
            if error is not None:
                outcomes.append(self._outcome_of(each, error, can_reach_others=bool(reached)))
        return outcomes

    def _errors_of(self, ready: Sequence[ClaimedDelivery], timeout: float) -> dict[str, Exception]:
        """Publish messages and return the errors by message id."""
        if not ready:
            return {}
        try:
            with context.extended_deadline(timeout):
                self._emitter.publish([each.message for each in ready])
        except PublishFailed as failed:
            return {message.id: error for message, error in failed.failures}
        except _NOT_ITS_FAULT as error:
            return dict.fromkeys((each.message.id for each in ready), error)
        except Exception as error:  # noqa: BLE001 -- a middleware failed: find out which message it refuses
            if len(ready) == 1:
                return {ready[0].message.id: error}
            alone = [self._errors_of([each], timeout) for each in ready]
            return {identity: why for errors in alone for identity, why in errors.items()}
        return {}

    def _outcome_of(self, claimed: ClaimedDelivery, error: Exception, *, can_reach_others: bool) -> Outcome:
        if _is_unavailable(error):
            after = _TOPIC_DELAY if can_reach_others else self._breakers.delay()
            return Outcome.failed(claimed, error, after=after, counted=False)
        return self._settlement.failure_outcome(claimed, error, self._policies.of(claimed.target))


class BrokerCircuitBreakers:
    """
    Circuit breakers for the broker and for each of its topics.

    A broker that cannot be reached costs no message an attempt. One message at a time probes whether it is back.
    """

    def __init__(self) -> None:
        self._broker = CircuitBreaker(*_BROKER_DELAYS)
        self._topics: dict[str, CircuitBreaker] = {}
        self._throttle = LogThrottle()

    @property
    def is_probing(self) -> bool:
        """Whether the broker could not be reached the last time."""
        return self._broker.is_open

    def delay(self) -> float:
        """Return the seconds until the next attempt to reach the broker."""
        return self._broker.delay()

    def unreachable_topics(self) -> list[str]:
        """Return the topics that are not tried now."""
        return [topic for topic, breaker in self._topics.items() if breaker.delay() > 0]

    def next_topic_delay(self) -> float | None:
        """Return the seconds until the next attempt to reach such a topic; None if there is none."""
        waits = [breaker.delay() for breaker in self._topics.values()]
        return min((wait for wait in waits if wait > 0), default=None)

    def record(self, reached: Collection[str], unreached: Collection[str], error: BaseException | None) -> None:
        """Record the topics whose messages the broker confirmed or refused, and those that could not be reached."""
        if reached:
            if self._broker.record_success():
                logger.warning("the broker can be reached again")
                self._throttle = LogThrottle()
                # These topics were unreachable only because the broker was.
                self._topics.clear()
            for topic in reached:
                self._topics.pop(topic, None)
            for topic in set(unreached) - set(reached):
                self._topics.setdefault(topic, CircuitBreaker(*_TOPIC_DELAYS)).record_failure()
                logger.warning("the topic %r cannot be reached, other topics can: %s", topic, error)
        elif unreached:
            self._broker.record_failure()
            suffix = self._throttle.due()
            if suffix is not None:
                logger.warning("the broker cannot be reached, messages wait in the outbox: %s%s", error, suffix)
            pause = self._broker.delay()
            for topic in unreached:
                # The topic alone may be the cause: the next probe uses another topic, if a message for one waits.
                self._topics[topic] = CircuitBreaker(*_TOPIC_DELAYS)
                self._topics[topic].postpone(pause * 1.5)


def _key_of(claimed: ClaimedDelivery) -> tuple[str, str | None]:
    # A message without a key shares its order with no other.
    return claimed.target, claimed.message.key or f"\0{claimed.number}"


def _is_unavailable(error: Exception | None) -> bool:
    return isinstance(error, _NOT_ITS_FAULT)


def _given_back(claimed: ClaimedDelivery) -> Outcome:
    return Outcome(claimed, OutcomeKind.RETRY, counted=False)
