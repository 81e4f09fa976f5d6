from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.db import close_old_connections, transaction

import cqrs_sync as cqrs
from cqrs_sync.integrations.rabbitmq import RabbitMQBroker
from cqrs_sync.memory import MemoryBroker
from meetings.handlers import events, requests


class DjangoTransactions:
    """The transaction of the calling thread, on the default database."""

    def active(self) -> bool:
        return transaction.get_connection().in_atomic_block

    def on_commit(self, callback: Callable[[], object]) -> None:
        transaction.on_commit(callback, robust=True)


def atomic(message: Any, call_next: Callable[[Any], Any]) -> Any:
    """A command has a transaction, or a savepoint in that of the request."""
    with transaction.atomic():
        return call_next(message)


@contextmanager
def old_connections_closed() -> Iterator[None]:
    """Django does this around each request; threads of a pool have to do it themselves."""
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()


broker = (
    RabbitMQBroker(settings.RABBITMQ_URL, exchange=settings.RABBITMQ_EXCHANGE)
    if settings.RABBITMQ_URL
    else MemoryBroker()
)
# Nothing is started here: connections and threads are made by the process that first needs them.
mediator = cqrs.bootstrap(
    requests,
    events,
    broker=broker,
    threads=cqrs.ThreadPool(4, around=old_connections_closed),
    transactions=DjangoTransactions(),
    middleware=cqrs.MiddlewareChain().add(atomic, cqrs.Command),
)
