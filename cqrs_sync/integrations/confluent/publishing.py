"""One call of `publish`: every message is confirmed, or it is known which was not and why."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence

from confluent_kafka import KafkaError, KafkaException

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.errors import BrokerUnavailable, Closed, DeliveryError, MessageRejected
from cqrs_sync.integrations.confluent.attempt import Attempt
from cqrs_sync.integrations.confluent.doctor import ProducerSupervisor
from cqrs_sync.integrations.confluent.errors import STRANGE_TOPIC, connection_error, delivery_error
from cqrs_sync.integrations.confluent.producer import Retired

logger = logging.getLogger(__name__)


class Publishing:
    """
    Sends a batch, waits for all answers with one deadline, and keeps what failed.

    librdkafka fails a whole request with what the broker says about one record in it. So
    a record that was refused in company is only a suspect: it is sent again by a producer
    that puts each record into a request of its own, and that answer counts. What failed
    because its producer did is sent again by the next one. Nothing is sent again after a
    later message of its key was confirmed.
    """

    def __init__(self, messages: Sequence[OutgoingMessage], until: float, servers: str) -> None:
        self._messages = messages
        self._until = until
        self._servers = servers
        self._failures: dict[int, DeliveryError] = {}
        self._confirmed: list[int] = []
        self._suspects: dict[int, KafkaError] = {}

    def run(
        self, together: ProducerSupervisor, alone: ProducerSupervisor
    ) -> list[tuple[OutgoingMessage, DeliveryError]]:
        """Return what was not confirmed and why, in the order of the batch."""
        self._publish(together, range(len(self._messages)))
        if self._suspects:
            suspects, self._suspects = self._suspects, {}
            again = self._those_in_order(suspects)
            if again:
                logger.warning("%d message(s) are sent again, each on its own: %s", len(again), suspects[again[0]])
                self._publish(alone, again)
            self._failures.update((index, delivery_error(error)) for index, error in self._suspects.items())
        return [(self._messages[index], self._failures[index]) for index in sorted(self._failures)]

    def _publish(self, doctor: ProducerSupervisor, indexes: Sequence[int]) -> None:
        while indexes:
            try:
                producer = doctor.producer()
            except Closed as error:
                self._fail(indexes, BrokerUnavailable(f"not confirmed: {error}"))
                return
            attempt = Attempt(producer, self._messages, self._until)
            attempt.send(indexes)
            attempt.wait()
            self._confirmed += attempt.confirmed
            self._failures.update(attempt.failed)
            self._suspects.update(attempt.suspects)
            self._care_for(doctor, attempt)
            indexes = attempt.unsent
            if attempt.lost or attempt.strange:
                indexes = sorted({*indexes, *self._saved(attempt), *self._found(doctor, attempt)})

    def _care_for(self, doctor: ProducerSupervisor, attempt: Attempt) -> None:
        """Tell the doctor how the producer is."""
        producer = attempt.producer
        if attempt.confirmed:
            doctor.heard(producer, attempt.started)
        if attempt.lost:
            doctor.abandon(producer, next(iter(attempt.lost.values())).str())
        elif attempt.expired is not None:
            doctor.retire(producer, attempt.expired.str())
        for index in attempt.owed:
            why = "" if producer.why is None else f" ({producer.why.str()})"
            self._failures[index] = BrokerUnavailable(f"not confirmed in time: whether it arrived is unknown{why}")
            doctor.owes(producer, attempt.answers, index, attempt.started)

    def _saved(self, attempt: Attempt) -> Iterable[int]:
        """Return what the next producer may send in place of one that was lost."""
        refusal = attempt.producer.refusal
        if refusal is None:
            return self._those_in_order(attempt.lost)
        self._fail(attempt.lost, connection_error(KafkaException(refusal), self._servers))
        return ()

    def _found(self, doctor: ProducerSupervisor, attempt: Attempt) -> Iterable[int]:
        """
        Ask about topics that may not be there; return what can be sent all the same.

        librdkafka keeps what it knows of a topic for minutes, another producer does not.
        """
        found: list[int] = []
        for topic, indexes in attempt.strange.items():
            try:
                error = attempt.producer.error_of_topic(topic, self._until - time.monotonic())
            except (KafkaException, Retired) as reason:
                self._fail(indexes, _not_told(topic, reason))
                continue
            if error is None or error.code() == KafkaError.LEADER_NOT_AVAILABLE:
                doctor.retire(attempt.producer, f"the topic {topic!r} was made meanwhile")
                found += indexes
            elif error.code() in STRANGE_TOPIC:
                self._fail(indexes, MessageRejected(f"there is no topic {topic!r} on the broker: create it"))
            else:
                self._fail(indexes, delivery_error(error))
        return found

    def _those_in_order(self, errors: Mapping[int, KafkaError]) -> list[int]:
        """Return what may be sent again; the rest would arrive after its successor, or too late."""
        last_confirmed = {
            (self._messages[index].topic, self._messages[index].key): index for index in sorted(self._confirmed)
        }
        in_time = time.monotonic() < self._until
        again = []
        for index, error in sorted(errors.items()):
            message = self._messages[index]
            if message.key is not None and last_confirmed.get((message.topic, message.key), -1) > index:
                self._failures[index] = _undecided(error, "a later message of its key was confirmed")
            elif not in_time:
                self._failures[index] = _undecided(error, "there was no time to send it again")
            else:
                again.append(index)
        return again

    def _fail(self, indexes: Iterable[int], error: DeliveryError) -> None:
        self._failures.update(dict.fromkeys(indexes, error))


def _undecided(error: KafkaError, why: str) -> DeliveryError:
    ours = BrokerUnavailable(
        f"not confirmed, whether it arrived or can arrive is unknown, because {why}: {error.str()}"
    )
    ours.__cause__ = KafkaException(error)
    return ours


def _not_told(topic: str, reason: BaseException) -> DeliveryError:
    ours = BrokerUnavailable(f"the broker has not told about the topic {topic!r} in time")
    ours.__cause__ = reason
    return ours
