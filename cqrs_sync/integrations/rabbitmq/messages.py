"""
A message that was received, on its way to a place of its group and back.

What is noted on it travels in headers called `cqrs-…`, beside the attributes of CloudEvents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cqrs_sync.broker import NOTE, IncomingMessage, OutgoingMessage

#: Of CloudEvents, in the protocol binding for AMQP.
PREFIX = "ce-"
_TOPIC = f"{NOTE}topic"
_KEY = f"{NOTE}key"
_KEY_ATTRIBUTE = "partitionkey"
#: Bytes of AMQP's short strings, and of what else the header frame holds.
_SHORT = 255
_OTHERWISE = 4096
#: Bytes a header takes beside its name and value.
_ENTRY = 6
#: Where groups put messages, and where RabbitMQ puts what has waited long enough.
_NO_NAME = ""


def copy_of(message: IncomingMessage, place: str, frame_max: int) -> OutgoingMessage:
    """
    Return what is published to `place`; its attributes are the headers, with their prefixes.

    RabbitMQ hangs up on headers that do not fit into one frame: of long notes the beginning
    is kept, and attributes for which no room is left are left out, the longest first.
    """
    attributes = message.attributes
    headers = dict(_fitting(message, frame_max - _OTHERWISE))
    return OutgoingMessage(
        id=_short(attributes.get("id", "")),
        topic=place,
        type=attributes.get("type", ""),
        body=message.body,
        # A part of a content type is another one.
        content_type=message.content_type if _short(message.content_type or "") == message.content_type else "",
        key=message.key,
        attributes=headers,
    )


def incoming(method: Any, properties: Any, body: bytes, aside: str) -> IncomingMessage:
    """
    Take what CloudEvents and we know out of a message; whoever sent it may have put anything in.

    Notes count only on what came from where groups put it: anybody else may have written them.
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
    if method.exchange not in {aside, _NO_NAME}:
        notes = {}
    else:
        topic, key = notes.pop("topic", None) or _first_topic(headers) or topic, notes.pop("key", key)
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


def redeliveries(method: Any, properties: Any) -> int:
    """Return how often it may have been delivered before: quorum queues count, others tell whether it was."""
    if not method.redelivered:
        return 0
    counted = (properties.headers or {}).get("x-delivery-count", 0)
    return max(1, counted if isinstance(counted, int) else 0)


def _first_topic(headers: Mapping[Any, Any]) -> str | None:
    """Return the topic of what RabbitMQ itself has moved, which has no note of it."""
    try:
        topic = headers["x-death"][-1]["routing-keys"][0]
    except (LookupError, TypeError):
        return None
    return topic if isinstance(topic, str) else None


def _fitting(message: IncomingMessage, room: int) -> Iterator[tuple[str, str]]:
    """Yield headers as long as there is room: what we need first, then what is short."""
    notes = sorted(message.notes.items(), key=lambda note: len(note[1]))
    attributes = sorted(message.attributes.items(), key=lambda attribute: len(attribute[1]))
    ours = [(_TOPIC, message.topic)]
    if message.key is not None and message.key != message.attributes.get(_KEY_ATTRIBUTE):
        ours.append((_KEY, message.key))
    ours += ((f"{NOTE}{name}", _cut(text, room // 2)) for name, text in notes)
    for name, text in (*ours, *((f"{PREFIX}{name}", text) for name, text in attributes)):
        size = _ENTRY + len(name.encode(errors="replace")) + len(text.encode(errors="replace"))
        if len(name.encode(errors="replace")) <= _SHORT and size <= room:
            room -= size
            # Half a surrogate pair is no text for AMQP.
            yield _cut(name, _SHORT), _cut(text, size)


def _short(text: str) -> str:
    return _cut(text, _SHORT)


def _cut(text: str, size: int) -> str:
    """Return what fits into so many bytes of UTF-8, from the beginning."""
    return text.encode(errors="replace")[:size].decode(errors="ignore")
