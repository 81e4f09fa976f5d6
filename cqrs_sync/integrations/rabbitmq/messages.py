"""
Received messages, mapped to ours, and back to what a group publishes when it sets them aside.

Notes travel in headers called `cqrs-…`, beside the attributes of CloudEvents (`ce-…`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cqrs_sync.broker import NOTE, IncomingMessage, OutgoingMessage
from cqrs_sync.integrations.rabbitmq.amqp import SHORT

#: Of CloudEvents, in its protocol binding for AMQP.
PREFIX = "ce-"
_TOPIC = f"{NOTE}topic"
_KEY = f"{NOTE}key"
_KEY_ATTRIBUTE = "partitionkey"
#: Bytes of the header frame that are no headers.
_FRAME_RESERVE = 4096
#: Bytes of a header beside its name and value.
_ENTRY = 6
#: RabbitMQ itself publishes to the default exchange, when a retry queue's time to live is over.
_DEFAULT_EXCHANGE = ""


def incoming_message(method: Any, properties: Any, body: bytes, aside: str) -> IncomingMessage:
    """
    Read attributes and notes from a delivery. The sender may have put anything into the headers.

    Notes count only on messages from the exchange `aside` or from RabbitMQ itself: on the public exchange
    anybody could write them.
    """
    headers: Mapping[Any, Any] = properties.headers or {}
    attributes, notes = {}, {}
    for name, value in headers.items():
        if isinstance(name, str) and isinstance(value, str):
            lower = name.lower()
            if lower.startswith(PREFIX):
                attributes[lower[len(PREFIX) :]] = value
            elif lower.startswith(NOTE):
                notes[lower[len(NOTE) :]] = value
    topic, content_type, key = method.routing_key, properties.content_type, attributes.get(_KEY_ATTRIBUTE)
    if method.exchange not in {aside, _DEFAULT_EXCHANGE}:
        notes = {}
    else:
        topic, key = notes.pop("topic", None) or _topic_before_death(headers) or topic, notes.pop("key", key)
        if headers.get("x-first-death-reason") == "delivery_limit":
            notes.setdefault("reason", "RabbitMQ has delivered it too often (delivery_limit)")
    return IncomingMessage(
        topic=topic if isinstance(topic, str) else topic.decode(errors="replace"),
        body=body,
        content_type=content_type if isinstance(content_type, str) else None,
        key=key,
        attributes=attributes,
        notes=notes,
    )


def redelivery_count(method: Any, properties: Any) -> int:
    """Return how often it may have been delivered before. Quorum queues count; for other queues it is 0 or 1."""
    if not method.redelivered:
        return 0
    count = (properties.headers or {}).get("x-delivery-count", 0)
    return max(1, count if isinstance(count, int) else 0)


def outgoing_copy(message: IncomingMessage, queue: str, frame_max: int) -> OutgoingMessage:
    """
    Return the copy of a received message for `queue`; its attributes are whole headers, prefixes included.

    RabbitMQ closes the connection when the headers do not fit into one frame. So long notes are cut, and
    attributes that do not fit are left out, the longest first.
    """
    attributes = message.attributes
    return OutgoingMessage(
        id=_cut(attributes.get("id", ""), SHORT),
        topic=queue,
        type=attributes.get("type", ""),
        body=message.body,
        # A cut content type would be a different one.
        content_type=message.content_type if _cut(message.content_type or "", SHORT) == message.content_type else "",
        key=message.key,
        attributes=dict(_headers_that_fit(message, frame_max - _FRAME_RESERVE)),
    )


def _topic_before_death(headers: Mapping[Any, Any]) -> str | None:
    """Return the topic of a message that RabbitMQ itself has moved, which has no note of it."""
    try:
        topic = headers["x-death"][-1]["routing-keys"][0]
    except (LookupError, TypeError):
        return None
    return topic if isinstance(topic, str) else None


def _headers_that_fit(message: IncomingMessage, room: int) -> Iterator[tuple[str, str]]:
    """Yield headers while they fit into `room` bytes: our own first, then notes and attributes, the shortest first."""
    headers = [(_TOPIC, message.topic)]
    if message.key is not None and message.key != message.attributes.get(_KEY_ATTRIBUTE):
        headers.append((_KEY, message.key))
    notes = sorted(message.notes.items(), key=lambda note: len(note[1]))
    headers += ((f"{NOTE}{name}", _cut(text, room // 2)) for name, text in notes)
    attributes = sorted(message.attributes.items(), key=lambda attribute: len(attribute[1]))
    headers += ((f"{PREFIX}{name}", text) for name, text in attributes)
    for name, text in headers:
        name_size = len(name.encode(errors="replace"))
        size = _ENTRY + name_size + len(text.encode(errors="replace"))
        if name_size <= SHORT and size <= room:
            room -= size
            # AMQP cannot carry half a surrogate pair: `_cut` replaces it.
            yield _cut(name, SHORT), _cut(text, size)


def _cut(text: str, size: int) -> str:
    """Return the beginning of `text` that fits into `size` bytes of UTF-8."""
    return text.encode(errors="replace")[:size].decode(errors="ignore")
