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
# Nothing is started here: connections and threads are made by the process that first needs them.
mediator = bootstrap(requests, events, broker=broker, threads=4)
