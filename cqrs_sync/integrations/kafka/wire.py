"""Messages to Kafka records and back: the CloudEvents binding for Kafka."""

from __future__ import annotations

from typing import Any

from cqrs_sync.broker import IncomingMessage, OutgoingMessage
from cqrs_sync.errors import MessageRejected

_PREFIX = "ce_"
_CONTENT_TYPE = "content-type"


def key_and_headers_of(message: OutgoingMessage) -> tuple[bytes | None, list[tuple[str, bytes]]]:
    """
    Return what a record has besides its body; for a structured CloudEvent the content type is the only header.

    Raises MessageRejected for what cannot be UTF-8.
    """
    key = message.key
    try:
        headers = [(f"ce_{name}", value.encode()) for name, value in message.attributes.items()]
        headers.append((_CONTENT_TYPE, message.content_type.encode()))
        return (None if key is None else key.encode()), headers
    except (AttributeError, UnicodeEncodeError) as error:
        raise MessageRejected(f"its key or an attribute is no text: {error}") from error


def incoming_message(record: Any) -> IncomingMessage:
    """Read a record, whoever wrote it: what is not text becomes readable, nothing raises."""
    attributes: dict[str, str] = {}
    content_type = None
    for name, value in record.headers:
        lowered = name.lower()
        if lowered.startswith(_PREFIX):
            attributes[lowered.removeprefix(_PREFIX)] = _text(value)
        elif lowered == _CONTENT_TYPE:
            content_type = _text(value)
    return IncomingMessage(
        topic=record.topic,
        body=record.value or b"",
        content_type=content_type,
        key=None if record.key is None else _text(record.key),
        attributes=attributes,
    )


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")
