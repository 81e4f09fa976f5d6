"""One message that was received, and is to be settled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pika.channel import Channel

from cqrs_sync.broker import IncomingMessage

if TYPE_CHECKING:
    from cqrs_sync.integrations.rabbitmq.subscription import RabbitMQSubscription


class RabbitMQDelivery:
    """One message of a queue."""

    __slots__ = ("_subscription", "channel", "message", "origin", "redeliveries", "tag")

    def __init__(
        self,
        message: IncomingMessage,
        subscription: RabbitMQSubscription,
        channel: Channel,
        tag: int,
        redeliveries: int,
    ) -> None:
        self.message = message
        self.channel = channel
        self.tag = tag
        self.redeliveries = redeliveries
        self.origin = subscription.queue
        self._subscription: RabbitMQSubscription | None = subscription

    @property
    def lapsed(self) -> bool:
        """Whether it was settled, or its channel is gone: then it comes again."""
        return self._subscription is None or not self._subscription.holds(self)

    def ack(self) -> None:
        """It is done: never deliver it again."""
        self._settle(done=True)

    def nack(self) -> None:
        """It is not done: deliver it again."""
        self._settle(done=False)

    def _settle(self, *, done: bool) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.settle(self, done=done)
