from __future__ import annotations

from django.conf import settings

from cqrs_sync.integrations.django import bootstrap
from cqrs_sync.integrations.rabbitmq import RabbitMQBroker
from cqrs_sync.memory import MemoryBroker
from meetings.handlers import events, requests

broker = (
    RabbitMQBroker(settings.RABBITMQ_URL, exchange=settings.RABBITMQ_EXCHANGE)
    if settings.RABBITMQ_URL
    else MemoryBroker()
)
# This starts nothing: each process makes its connections and threads when it first needs them.
mediator = bootstrap(requests, events, broker=broker, threads=4)
