"""Messages sent in one go through one producer, and what became of each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from confluent_kafka import KafkaError

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.errors import BrokerUnavailable, DeliveryError, MessageRejected
from cqrs_sync.integrations.confluent.answers import Answers
from cqrs_sync.integrations.confluent.errors import (
    LOST_PRODUCER,
    REFUSALS,
    STRANGE_TOPIC,
    code_of,
    delivery_error,
)
from cqrs_sync.integrations.confluent.producer import Retired, SharedProducer
from cqrs_sync.integrations.confluent.topics import check_topic
from cqrs_sync.kafka import key_and_headers_of

#: A mask: once in so many messages.
_LOOK_AT_THE_CLOCK = 63

_NO_TIME = BrokerUnavailable("not sent: there was no time left")


class Attempt:
    """Messages are told apart by their numbers in the batch."""

    def __init__(self, producer: SharedProducer, messages: Sequence[OutgoingMessage], until: float) -> None:
        self.producer = producer
        self.started = time.monotonic()
        self.answers = Answers()
        self.confirmed: Sequence[int] = ()
        #: Left over because the producer was retired meanwhile.
        self.unsent: Sequence[int] = ()
        #: Not answered in time.
        self.owed: list[int] = []
        #: Failed for good.
        self.failed: dict[int, DeliveryError] = {}
        #: Failed because the producer did.
        self.lost: dict[int, KafkaError] = {}
        #: Failed with what the broker says about a request that they share with others.
        self.suspects: dict[int, KafkaError] = {}
        #: Messages of topics that may not be there.
        self.strange: dict[str, list[int]] = {}
        #: The first message that has waited for as long as it may.
        self.expired: KafkaError | None = None
        self._messages = messages
        self._until = until
        self._sent: list[int] = []

    def send(self, indexes: Sequence[int]) -> None:
        """Put messages into the queue, in this order; wait where it is full."""
        for position, index in enumerate(indexes):
            if not position & _LOOK_AT_THE_CLOCK and time.monotonic() >= self._until:
                self.failed.update(dict.fromkeys(indexes[position:], _NO_TIME))
                return
            try:
                self._put(index, self._messages[index])
            except Retired:
                self.unsent = indexes[position:]
                return
            except Exception as error:  # noqa: BLE001 -- whatever it is, it concerns this message only
                if code_of(error) in STRANGE_TOPIC:
                    self._is_strange(index)
                elif code_of(error) in LOST_PRODUCER:
                    self.unsent = indexes[position:]
                    self.lost[index] = error.args[0]
                    return
                else:
                    self.failed[index] = delivery_error(error)
            else:
                self._sent.append(index)

    def wait(self) -> None:
        """Wait for all answers, until the time is up, and sort them."""
        known = self.answers.known
        self.answers.wait(len(self._sent), self._until)
        errors = {index: error for index, error in list(known.items()) if error is not None}
        if not errors and len(known) == len(self._sent):
            self.confirmed = self._sent
            return
        answered = {index for index in self._sent if index in known}
        self.owed = [index for index in self._sent if index not in answered]
        self.confirmed = [index for index in self._sent if index in answered and known[index] is None]
        for index in sorted(answered):
            error = known[index]
            if error is not None:
                self._sort(index, error)

    def _put(self, index: int, message: OutgoingMessage) -> None:
        check_topic(message.topic)
        if not isinstance(message.body, bytes):
            raise MessageRejected(f"its body is no bytes: {type(message.body).__name__}")
        key, headers = key_and_headers_of(message)
        while True:
            try:
                self.producer.send(message.topic, message.body, key, headers, partial(self.answers.take, index))
            except BufferError as error:
                if time.monotonic() >= self._until:
                    raise BrokerUnavailable("not sent: the queue was full all the time") from error
                self.producer.wait_for_room(self._until)
            else:
                return

    def _sort(self, index: int, error: KafkaError) -> None:
        code = error.code()
        if error.fatal() or code in LOST_PRODUCER:
            self.lost[index] = error
        elif code in STRANGE_TOPIC:
            self._is_strange(index)
        elif code in REFUSALS and code != KafkaError.TOPIC_EXCEPTION:
            self.suspects[index] = error
        else:
            self.failed[index] = delivery_error(error, self.producer.why)
            if code == KafkaError._MSG_TIMED_OUT:  # noqa: SLF001
                self.expired = self.expired or error

    def _is_strange(self, index: int) -> None:
        self.strange.setdefault(self._messages[index].topic, []).append(index)
