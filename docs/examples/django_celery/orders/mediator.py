from __future__ import annotations

from django.conf import settings

from cqrs_sync.integrations.django import bootstrap
from cqrs_sync.integrations.rabbitmq import RabbitMQBroker
from cqrs_sync.memory import MemoryBroker
from orders.handlers import events, requests

broker = (
    RabbitMQBroker(settings.RABBITMQ_URL, exchange=settings.RABBITMQ_EXCHANGE)
    if settings.RABBITMQ_URL
    else MemoryBroker()
)
# Made in the parent of the worker's processes; each process makes its own connections and threads.
mediator = bootstrap(requests, events, broker=broker, threads=4)
