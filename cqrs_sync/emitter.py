"""Turn notification events into messages, and publish them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from cqrs_sync.broker import MessageBroker, OutgoingMessage
from cqrs_sync.context import time_left
from cqrs_sync.errors import BrokerNotConfigured
from cqrs_sync.messages import Event, NotificationEvent
from cqrs_sync.middleware import MiddlewareChain
from cqrs_sync.serializer import Serializer

logger: logging.Logger = logging.getLogger(__name__)


class EventEmitter:
    """
    Turns events into messages and publishes them to the broker.

    It does not close the broker. Without a broker it only makes messages, for an outbox.
    """

    def __init__(
        self,
        broker: MessageBroker | None,
        *,
        serializer: Serializer,
        middleware: MiddlewareChain | None = None,
    ) -> None:
        self.broker = broker
        self.serializer = serializer
        self._publish = (middleware or MiddlewareChain()).wrap(OutgoingMessage, self._to_broker)

    def emit(self, *events: NotificationEvent) -> None:
        """
        Publish events. Returns when the broker has confirmed all of them.

        Raises EventNotSerializable and InvalidMessage before anything is published,
        and PublishFailed with the messages that were not confirmed.
        """
        self.publish([self.to_message(event) for event in events])

    def to_message(self, event: Event, /) -> OutgoingMessage:
        """Make the message of an event: everything that can fail without a broker."""
        return self.serializer.dump(event)

    def publish(self, messages: Sequence[OutgoingMessage], /) -> None:
        """
        Publish prepared messages as one batch.

        Raises PublishFailed with the messages that were not confirmed, BrokerNotConfigured without a broker.
        """
        if messages:
            self._publish(tuple(messages))

    def _to_broker(self, messages: Sequence[OutgoingMessage]) -> None:
        if self.broker is None:
            raise BrokerNotConfigured("there is no broker to publish to: give bootstrap one")
        self.broker.publish(messages, timeout=time_left())
        if logger.isEnabledFor(logging.DEBUG):
            for each in messages:
                logger.debug("%s: published to the topic %r", each.title, each.topic)
