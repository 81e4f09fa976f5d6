"""Messages for topics the producer has not heard of: wait for the topic, not for ever."""

from __future__ import annotations

import time
from collections.abc import Iterator

from kafka.errors import KafkaTimeoutError

from cqrs_sync.errors import BrokerUnavailable, DeliveryError, MessageRejected
from cqrs_sync.integrations.kafka.errors import delivery_error
from cqrs_sync.integrations.kafka.producer import SharedProducer

#: Seconds a broker that does not make topics gets to tell about one that was made a moment ago.
_PATIENCE = 1.0
#: Seconds between two looks at a topic while another one is waited for as well.
_LOOK = 0.1


class NewTopics:
    """
    Messages of one batch, by their topic, as numbers in the batch.

    All topics are waited for together: one that does not exist holds back nobody.
    """

    def __init__(self, producer: SharedProducer, until: float) -> None:
        self._producer = producer
        self._until = until
        self._started = time.monotonic()
        self._waiting: dict[str, list[int]] = {}

    def __contains__(self, topic: str) -> bool:
        return topic in self._waiting

    def add(self, topic: str, index: int) -> None:
        """Put a message behind those that wait for this topic already."""
        self._waiting.setdefault(topic, []).append(index)

    def remaining(self) -> list[int]:
        """Return every message that still waits."""
        return [index for indexes in self._waiting.values() for index in indexes]

    def answers(self) -> Iterator[tuple[list[int], DeliveryError | None]]:
        """Give each topic's messages as soon as it is there, or with what is wrong with it."""
        timeout = 0.0
        while self._waiting:
            for topic in list(self._waiting):
                known, problem = self._look(topic, timeout)
                if known or problem is not None:
                    yield self._waiting.pop(topic), problem
            timeout = _LOOK

    def _look(self, topic: str, timeout: float) -> tuple[bool, DeliveryError | None]:
        """Tell whether the topic is there, and what is wrong with it once that is certain."""
        left = self._until - time.monotonic()
        try:
            self._producer.await_topic(topic, max(0.0, min(left, timeout)))
        except KafkaTimeoutError:
            return False, self._verdict(topic)
        except Exception as error:  # noqa: BLE001 -- an illegal name, missing rights: it concerns this topic only
            return False, delivery_error(error)
        return True, None

    def _verdict(self, topic: str) -> DeliveryError | None:
        now = time.monotonic()
        waited = now - self._started
        makes_topics = self._producer.config["allow_auto_create_topics"]
        if now < self._until and (makes_topics or waited < _PATIENCE):
            return None
        self._producer.forget_topic(topic)
        if waited >= _PATIENCE and self._producer.refreshed_at > self._started:
            return MessageRejected(f"there is no topic {topic!r} on the broker: create it")
        return BrokerUnavailable(f"the broker has not told about the topic {topic!r} in time")
