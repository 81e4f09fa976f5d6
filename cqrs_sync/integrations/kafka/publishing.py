"""One call of `publish`: every message is confirmed, or it is known which was not and why."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from kafka.errors import IllegalStateError, KafkaError

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.errors import BrokerUnavailable, Closed, DeliveryError
from cqrs_sync.integrations.kafka.doctor import ProducerSupervisor
from cqrs_sync.integrations.kafka.errors import delivery_error, is_passing
from cqrs_sync.integrations.kafka.producer import SharedProducer, TopicNotKnown
from cqrs_sync.integrations.kafka.topics import NewTopics
from cqrs_sync.kafka import key_and_headers_of

logger = logging.getLogger(__name__)

#: A mask: once in so many messages.
_LOOK_AT_THE_CLOCK = 63

_NO_TIME = BrokerUnavailable("not sent: there was no time left")


class Publishing:
    """
    Sends a batch, waits for all answers with one deadline, and keeps what failed.

    An idempotent producer of kafka-python that is refused one record fails all others
    it has under way with the same error. So a record that was refused in company is
    only a suspect: it is sent again by a producer that puts each record into a batch
    of its own, and that answer counts.
    """

    def __init__(self, messages: Sequence[OutgoingMessage], until: float) -> None:
        self._messages = messages
        self._until = until
        self._failures: dict[int, DeliveryError] = {}
        self._suspects: dict[int, KafkaError] = {}

    def run(
        self, together: ProducerSupervisor, alone: ProducerSupervisor
    ) -> list[tuple[OutgoingMessage, DeliveryError]]:
        """Return what was not confirmed and why, in the order of the batch."""
        self._publish(together, range(len(self._messages)))
        if self._suspects:
            self._clear(alone)
        return [(self._messages[index], self._failures[index]) for index in sorted(self._failures)]

    def _clear(self, alone: ProducerSupervisor) -> None:
        """Send every suspect again, except where that would let it arrive after its successor."""
        suspects, self._suspects = self._suspects, {}
        confirmed = self._last_confirmed(suspects)
        again = []
        for index, error in suspects.items():
            message = self._messages[index]
            if message.key is not None and confirmed.get((message.topic, message.key), -1) > index:
                self._failures[index] = _undecided(error, "a later message of its key was confirmed")
            elif time.monotonic() >= self._until:
                self._failures[index] = _undecided(error, "there was no time to send it on its own")
            else:
                again.append(index)
        if again:
            logger.warning("%d message(s) are sent again, each on its own: %s", len(again), suspects[again[0]])
            self._publish(alone, again)
        self._failures.update((index, delivery_error(error)) for index, error in self._suspects.items())

    def _last_confirmed(self, suspects: dict[int, KafkaError]) -> dict[tuple[str, str | None], int]:
        return {
            (message.topic, message.key): index
            for index, message in enumerate(self._messages)
            if index not in suspects and index not in self._failures
        }

    def _publish(self, doctor: ProducerSupervisor, indexes: Sequence[int]) -> None:
        while indexes:
            try:
                producer = doctor.producer(self._until)
            except BrokerUnavailable as error:
                self._failures.update(dict.fromkeys(indexes, error))
                return
            except Closed as error:
                self._failures.update(dict.fromkeys(indexes, BrokerUnavailable(f"not sent: {error}")))
                return
            started = time.monotonic()
            if started >= self._until:
                self._failures.update(dict.fromkeys(indexes, _NO_TIME))
                return
            sent, indexes = self._send(producer, indexes)
            self._settle(doctor, producer, sent, started)

    def _send(self, producer: SharedProducer, indexes: Sequence[int]) -> tuple[list[tuple[int, Any]], Sequence[int]]:
        """Return what is under way, and what is left over because the producer was retired."""
        sent: list[tuple[int, Any]] = []
        new_topics: NewTopics | None = None
        send, messages = producer.send, self._messages
        for position, index in enumerate(indexes):
            message = messages[index]
            if position and not position & _LOOK_AT_THE_CLOCK and time.monotonic() >= self._until:
                self._failures.update(dict.fromkeys(indexes[position:], _NO_TIME))
                break
            try:
                if new_topics is not None and message.topic in new_topics:
                    new_topics.add(message.topic, index)
                    continue
                key, headers = key_and_headers_of(message)
                sent.append((index, send(message.topic, message.body, key, headers)))
            except IllegalStateError:
                waiting = () if new_topics is None else new_topics.remaining()
                return sent, sorted([*indexes[position:], *waiting])
            except Exception as error:  # noqa: BLE001 -- whatever it is, it concerns this message only
                if self._is_early(error, message, producer):
                    new_topics = new_topics or NewTopics(producer, self._until)
                    new_topics.add(message.topic, index)
                else:
                    self._failures[index] = delivery_error(error)
        return sent, () if new_topics is None else self._send_to(new_topics, producer, sent)

    @staticmethod
    def _is_early(error: Exception, message: OutgoingMessage, producer: SharedProducer) -> bool:
        # A ValueError without a topic: between two looks of `send`, the broker has lost a topic it had.
        return isinstance(error, TopicNotKnown) or (
            isinstance(error, ValueError) and isinstance(message.topic, str) and not producer.knows(message.topic)
        )

    def _send_to(self, new_topics: NewTopics, producer: SharedProducer, sent: list[tuple[int, Any]]) -> Sequence[int]:
        """Send to each topic as soon as it is there; return what is left over."""
        left_over: list[int] = []
        for indexes, problem in new_topics.answers():
            if problem is not None:
                self._failures.update(dict.fromkeys(indexes, problem))
                continue
            under_way, rest = self._send(producer, indexes)
            sent.extend(under_way)
            left_over.extend(rest)
        return sorted(left_over)

    def _settle(
        self, doctor: ProducerSupervisor, producer: SharedProducer, sent: Sequence[tuple[int, Any]], started: float
    ) -> None:
        """Wait for the answers and keep those that are no confirmation."""
        failed: Any = None
        for index, future in sent:
            if not future.is_done:
                _wait(future, self._until)
            # In this order: it may be answered between the two.
            if not future.is_done:
                self._failures[index] = BrokerUnavailable("not confirmed in time: whether it arrived is unknown")
                doctor.owes(producer, future, started)
            elif future.exception is None:
                doctor.heard_at = started
            else:
                failed = failed or future.exception
                self._blame(index, future.exception)
        if failed is not None:
            doctor.retire(producer, failed)

    def _blame(self, index: int, error: KafkaError) -> None:
        if is_passing(error):
            self._failures[index] = delivery_error(error)
        else:
            self._suspects[index] = error


def _undecided(error: KafkaError, why: str) -> DeliveryError:
    ours = BrokerUnavailable(f"not confirmed, whether this message is at fault is unknown, because {why}: {error}")
    ours.__cause__ = error
    return ours


def _wait(future: Any, until: float) -> None:
    try:  # noqa: SIM105 -- this costs least
        future.get(max(0.0, until - time.monotonic()))
    except Exception:  # noqa: BLE001, S110 -- the future itself says what became of it
        pass
