"""What a RabbitMQBroker publishes with: tests that look at its insides reach for them here."""

from __future__ import annotations

from cqrs_sync.integrations.rabbitmq import RabbitMQBroker
from cqrs_sync.integrations.rabbitmq.publisher import ConfirmChannel, ConfirmingPublisher


def publisher_of(broker: RabbitMQBroker) -> ConfirmingPublisher:
    """Return what all callers of `publish` share."""
    return broker._publisher


def channel_of(broker: RabbitMQBroker) -> ConfirmChannel:
    """Return the channel that the next call of `publish` uses; one must have been made."""
    channel = publisher_of(broker)._channel
    assert channel is not None
    return channel
