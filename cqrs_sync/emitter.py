"""Send notification events out."""

from __future__ import annotations

from collections.abc import Sequence

from cqrs_sync.broker import MessageBroker, OutgoingMessage
from cqrs_sync.context import time_left
from cqrs_sync.messages import NotificationEvent
from cqrs_sync.middleware import MiddlewareChain
from cqrs_sync.serializer import JsonSerializer, Serializer


class EventEmitter:
    """
    Turns notification events into messages and gives them to the broker.

    It does not close the broker.
    """

    def __init__(
        self,
        broker: MessageBroker,
        *,
        serializer: Serializer | None = None,
        middleware: MiddlewareChain | None = None,
    ) -> None:
        self.broker = broker
        self._serializer = serializer or JsonSerializer()
        self._publish = (middleware or MiddlewareChain()).wrap(OutgoingMessage, self._to_broker)

    def emit(self, *events: NotificationEvent) -> None:
        """
        Publish events; return when the broker has confirmed them all.

        Raises EventNotSerializable and InvalidMessage before anything is published,
        and PublishFailed with what was not confirmed.
        """
        self.publish([self.prepare(event) for event in events])

    def prepare(self, event: NotificationEvent, /) -> OutgoingMessage:
        """Make an event's message, with everything that can fail without a broker."""
        return self._serializer.dump(event)

    def publish(self, messages: Sequence[OutgoingMessage], /) -> None:
        """Publish prepared messages as one batch."""
        if messages:
            self._publish(tuple(messages))

    def _to_broker(self, messages: Sequence[OutgoingMessage]) -> None:
        self.broker.publish(messages, timeout=time_left())
