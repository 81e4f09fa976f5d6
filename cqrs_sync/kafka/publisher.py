"""Publishes a batch: every message is confirmed, or it is known which was not, and why."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.errors import BrokerUnavailable, ClosedError, DeliveryError, MessageRejected
from cqrs_sync.kafka.client import ErrorAction, ProducerClient, ProducerRetired, RecordBatch, TopicNotKnown
from cqrs_sync.kafka.cloudevents import key_and_headers_of
from cqrs_sync.kafka.supervisor import ProducerSupervisor
from cqrs_sync.kafka.topology import check_topic

logger: logging.Logger = logging.getLogger(__name__)

#: A mask: the clock is read once in so many messages.
_CLOCK_MASK = 63

_NO_TIME = BrokerUnavailable("not sent: there was no time left")


class KafkaPublisher:
    """
    Sends a batch, waits for all answers with one deadline, and keeps what failed.

    Clients fail a whole request, or all that a producer has in flight, with what the broker says about one record. So
    a record that was refused in company is only a suspect: `single`, whose producer puts each record into a request of
    its own, sends it once more, and that answer counts. What failed because its producer did is sent by the next one.
    Nothing is sent again after a later message of its key was confirmed.
    """

    def __init__(self, batching: ProducerSupervisor, single: ProducerSupervisor) -> None:
        self.batching = batching
        self.single = single

    def publish(
        self, messages: Sequence[OutgoingMessage], timeout: float
    ) -> list[tuple[OutgoingMessage, DeliveryError]]:
        """Return what was not confirmed within `timeout` seconds and why, in the order of the batch."""
        return _Call(messages, timeout).run(self.batching, self.single)

    def close(self, timeout: float) -> None:
        """Close both producers within `timeout` seconds."""
        until = time.monotonic() + timeout
        self.batching.close(timeout)
        self.single.close(max(0.0, until - time.monotonic()))


class _Call:
    """One call of `publish`; messages are known by their indexes."""

    def __init__(self, messages: Sequence[OutgoingMessage], timeout: float) -> None:
        self._messages = messages
        self._until = time.monotonic() + timeout
        self._failures: dict[int, DeliveryError] = {}
        self._confirmed: list[int] = []
        self._suspects: dict[int, DeliveryError] = {}

    def run(
        self, batching: ProducerSupervisor, single: ProducerSupervisor
    ) -> list[tuple[OutgoingMessage, DeliveryError]]:
        self._publish(batching, range(len(self._messages)))
        if self._suspects:
            suspects, self._suspects = self._suspects, {}
            again = self._resendable(suspects)
            if again:
                logger.warning("sending %d refused message(s) again, each alone: %s", len(again), suspects[again[0]])
                self._publish(single, again)
            self._failures.update(self._suspects)
        return [(self._messages[index], self._failures[index]) for index in sorted(self._failures)]

    def _publish(self, supervisor: ProducerSupervisor, indexes: Sequence[int]) -> None:
        while indexes:
            try:
                producer = supervisor.producer(self._left())
            except BrokerUnavailable as error:
                self._fail(indexes, error)
                return
            except ClosedError as error:
                self._fail(indexes, BrokerUnavailable(f"not confirmed: {error}"))
                return
            started = time.monotonic()
            batch = producer.new_batch(self._left())
            sent: list[int] = []
            unsent = self._send(supervisor, producer, batch, indexes, sent)
            batch.wait(self._left())
            answers = batch.answers()
            if len(answers) == len(sent) and all(error is None for error in answers.values()):
                self._confirmed += sent
                if sent:
                    supervisor.confirm(producer, started)
            else:
                outcome = _outcome(producer, answers, sent)
                self._report(supervisor, producer, batch, outcome, started)
                unsent += self._settle(supervisor, producer, outcome)
            indexes = sorted(unsent)

    def _send(
        self,
        supervisor: ProducerSupervisor,
        producer: ProducerClient,
        batch: RecordBatch,
        indexes: Sequence[int],
        sent: list[int],
    ) -> list[int]:
        """Send messages in this order and add them to `sent`; return those that the next producer has to send."""
        unknown: dict[str, list[int]] = {}
        for position, index in enumerate(indexes):
            if not position & _CLOCK_MASK and time.monotonic() >= self._until:
                self._fail(indexes[position:], _NO_TIME)
                break
            try:
                self._send_one(batch, index, unknown)
            except TopicNotKnown:
                unknown.setdefault(self._messages[index].topic, []).append(index)
            except ProducerRetired:
                # Otherwise the supervisor would keep one that failed while it was made.
                supervisor.retire(producer, "it takes no more records")
                return [*indexes[position:], *itertools.chain.from_iterable(unknown.values())]
            except Exception as error:  # noqa: BLE001 -- whatever it is, it concerns this message only
                self._failures[index] = producer.delivery_error(error)
            else:
                sent.append(index)
        unsent: list[int] = []
        for found in self._found(supervisor, producer, unknown) if unknown else ():
            unsent += found if producer.caches_missing_topics else self._send(supervisor, producer, batch, found, sent)
        return unsent

    def _send_one(self, batch: RecordBatch, index: int, unknown: Mapping[str, object]) -> None:
        message = self._messages[index]
        check_topic(message.topic, MessageRejected)
        if not isinstance(message.body, bytes):
            raise MessageRejected(f"its body is not bytes but {type(message.body).__name__}")
        if unknown and message.topic in unknown:
            # Not before those that wait for this topic already.
            raise TopicNotKnown
        key, headers = key_and_headers_of(message)
        batch.send(index, message, key, headers)

    @staticmethod
    def _report(
        supervisor: ProducerSupervisor, producer: ProducerClient, batch: RecordBatch, outcome: _Outcome, started: float
    ) -> None:
        """Tell the supervisor how the producer did."""
        if outcome.confirmed:
            supervisor.confirm(producer, started)
        if outcome.lost:
            supervisor.abandon(producer, next(iter(outcome.lost.values())))
        elif outcome.unfit is not None:
            supervisor.retire(producer, outcome.unfit)
        for index in outcome.unanswered:
            supervisor.record_unanswered(producer, batch, index, started)

    def _settle(self, supervisor: ProducerSupervisor, producer: ProducerClient, outcome: _Outcome) -> list[int]:
        """Keep what failed; return what the next producer may send."""
        self._confirmed += outcome.confirmed
        self._failures.update(outcome.failed)
        self._suspects.update(outcome.refused)
        unknown: dict[str, list[int]] = {}
        for index in outcome.topic_not_known:
            unknown.setdefault(self._messages[index].topic, []).append(index)
        found = self._found(supervisor, producer, unknown) if unknown else ()
        again = [index for indexes in found for index in indexes]
        if producer.refusal is None:
            return again + self._resendable(outcome.lost)
        self._fail(outcome.lost, producer.refusal)
        return again

    def _found(
        self, supervisor: ProducerSupervisor, producer: ProducerClient, unknown: Mapping[str, list[int]]
    ) -> Iterator[list[int]]:
        """Yield the messages of each topic that exists after all; the others fail."""
        for topic, error in producer.find_topics(list(unknown), self._left()):
            if error is not None:
                self._fail(unknown[topic], error)
                continue
            if producer.caches_missing_topics:
                supervisor.retire(producer, f"the topic {topic!r} was created meanwhile")
            yield unknown[topic]

    def _resendable(self, errors: Mapping[int, DeliveryError]) -> list[int]:
        """Return what may be sent again; the others would arrive after a later message of their key, or too late."""
        last_confirmed = {
            (self._messages[index].topic, self._messages[index].key): index for index in sorted(self._confirmed)
        }
        is_late = time.monotonic() >= self._until
        again = []
        for index, error in sorted(errors.items()):
            message = self._messages[index]
            if message.key is not None and last_confirmed.get((message.topic, message.key), -1) > index:
                self._failures[index] = _undecided(error, "a later message of its key was confirmed")
            elif is_late:
                self._failures[index] = _undecided(error, "there was no time left")
            else:
                again.append(index)
        return again

    def _fail(self, indexes: Iterable[int], error: DeliveryError) -> None:
        self._failures.update(dict.fromkeys(indexes, error))

    def _left(self) -> float:
        return max(0.0, self._until - time.monotonic())


@attrs.define
class _Outcome:
    """What became of the records of a batch."""

    confirmed: list[int] = attrs.field(factory=list)
    failed: dict[int, DeliveryError] = attrs.field(factory=dict)
    refused: dict[int, DeliveryError] = attrs.field(factory=dict)
    lost: dict[int, DeliveryError] = attrs.field(factory=dict)
    topic_not_known: list[int] = attrs.field(factory=list)
    #: Not answered in time; they are among the failed.
    unanswered: list[int] = attrs.field(factory=list)
    #: Why another producer has to replace this one.
    unfit: DeliveryError | None = None


def _outcome(producer: ProducerClient, answers: Mapping[int, Any], sent: list[int]) -> _Outcome:
    outcome = _Outcome()
    trouble = producer.connection_trouble()
    silence = "not confirmed in time: whether it arrived is unknown" + (f" ({trouble})" if trouble else "")
    for index in sent:
        if index not in answers:
            outcome.failed[index] = BrokerUnavailable(silence)
            outcome.unanswered.append(index)
        elif answers[index] is None:
            outcome.confirmed.append(index)
        else:
            _judge(outcome, producer, index, answers[index])
    return outcome


def _judge(outcome: _Outcome, producer: ProducerClient, index: int, vendor: Any) -> None:
    action, error = producer.action_after(vendor), producer.delivery_error(vendor)
    if action is ErrorAction.FIND_TOPIC:
        outcome.topic_not_known.append(index)
    elif action is ErrorAction.SEND_AGAIN:
        outcome.lost[index] = error
    else:
        (outcome.refused if action is ErrorAction.SEND_ALONE else outcome.failed)[index] = error
        if action is ErrorAction.FAIL_AND_REPLACE or producer.replaced_after_errors:
            outcome.unfit = outcome.unfit or error


def _undecided(error: DeliveryError, why: str) -> DeliveryError:
    ours = BrokerUnavailable(f"not confirmed, and not sent again because {why}: whether it arrived is unknown: {error}")
    ours.__cause__ = error.__cause__
    return ours
