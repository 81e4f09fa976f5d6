"""The broker that a URL names; only the one that was chosen is imported."""

from __future__ import annotations

from urllib.parse import urlsplit

from cqrs_sync.broker import ReceivingBroker
from cqrs_sync.memory import MemoryBroker

#: What the demo publishes to on RabbitMQ, away from what an application uses there.
_EXCHANGE = "cqrs-demo"
#: Milliseconds after which RabbitMQ drops the queue of a run that is over, however it ended.
_EXPIRES = {"x-expires": 60_000}
#: The shortest session a Kafka broker allows by default: some let a new group wait for half of one.
_SESSION = {"session_timeout_ms": 6000, "heartbeat_interval_ms": 2000}


def open_broker(url: str) -> ReceivingBroker:
    """
    Make the broker of `memory`, `amqp://...` or `kafka://...`; nothing is connected yet.

    Raises ValueError or ConfigurationError for a URL that will not do, ImportError where
    the extra is not installed; none of them shows a password.
    """
    if url == "memory":
        return MemoryBroker()
    scheme = url.partition("://")[0]
    if scheme in {"amqp", "amqps"}:
        from cqrs_sync.integrations.rabbitmq import RabbitMQBroker  # noqa: PLC0415 -- optional

        address_of(url)
        return RabbitMQBroker(url, exchange=_EXCHANGE, queue_arguments=_EXPIRES)
    if scheme in {"kafka", "kafkas"}:
        from cqrs_sync.integrations.kafka import KafkaBroker  # noqa: PLC0415 -- optional

        address_of(url)
        return KafkaBroker.from_url(url, consumer_config={} if "session_timeout_ms" in url else _SESSION)
    raise ValueError("choose memory, amqp://user:password@host:5672/ or kafka://host:9092")


def address_of(url: str) -> str:
    """
    Return where a broker is, without a secret.

    Raises ValueError where that cannot be told, as with a password that holds a slash.
    """
    if url == "memory":
        return url
    parts = urlsplit(url)
    if "@" in url and "@" not in parts.netloc:
        raise ValueError("special characters in user and password must be written as %XX, a slash as %2F")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
