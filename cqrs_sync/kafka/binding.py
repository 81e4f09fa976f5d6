"""A message as a record, and back: the CloudEvents binding for Kafka, and what a group has noted on it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from cqrs_sync.broker import NOTE, IncomingMessage, OutgoingMessage
from cqrs_sync.errors import MessageRejected

#: Headers with an attribute start with it.
PREFIX = "ce_"
CONTENT_TYPE = "content-type"
_NO_NOTES: Mapping[str, str] = MappingProxyType({})
#: What most messages have, by the names of the headers.
_ATTRIBUTES = {
    f"{PREFIX}{name}": name
    for name in (
        *("specversion", "id", "source", "type", "time", "eventversion", "partitionkey"),
        *("correlationid", "causationid", "traceparent", "tracestate"),
    )
}
#: The topic that a message had at first, and the moment until which it waits, in milliseconds since 1970.
TOPIC, DUE = f"{NOTE}topic", f"{NOTE}due"


def key_and_headers_of(message: OutgoingMessage) -> tuple[bytes | None, list[tuple[str, bytes]]]:
    """
    Return what a record has besides its body; for a structured CloudEvent the content type is the only header.

    A KeptMessage has its headers already.

    Raises MessageRejected for what cannot be UTF-8.
    """
    key = message.key
    headers: list[tuple[str, bytes]] | None = getattr(message, "headers", None)
    try:
        if headers is None:
            headers = [(f"ce_{name}", value.encode()) for name, value in message.attributes.items()]
            headers.append((CONTENT_TYPE, message.content_type.encode()))
        return (None if key is None else key.encode()), headers
    except (AttributeError, UnicodeEncodeError) as error:
        raise MessageRejected(f"its key or an attribute is no text: {error}") from error


def incoming_message(
    topic: str,
    body: bytes | None,
    key: bytes | None,
    headers: Iterable[tuple[str, bytes | None]],
    *,
    kept: bool = False,
) -> IncomingMessage:
    """
    Read a record, whoever wrote it: what is not text becomes readable, nothing raises.

    What is noted on it counts only where it was `kept` by the group itself.
    """
    attributes: dict[str, str] = {}
    notes = _NO_NOTES
    content_type = None
    for name, value in headers:
        # Written out, and known names first: of all that receiving costs these lines are the most.
        attribute = _ATTRIBUTES.get(name)
        if attribute is not None:
            attributes[attribute] = value.decode("utf-8", "replace") if value else ""
            continue
        kind, short = _sorted(name)
        if kind is PREFIX:
            attributes[short] = text(value)
        elif kind is CONTENT_TYPE:
            content_type = text(value)
        elif kept and kind is NOTE:
            notes = {**notes, short: text(value)}
        elif kept and kind is TOPIC:
            topic = text(value)
    return IncomingMessage(topic, body or b"", content_type, None if key is None else text(key), attributes, notes)


def text(value: bytes | None) -> str:
    """Read bytes that should be text."""
    return value.decode(errors="replace") if value else ""


@functools.lru_cache(maxsize=1024)
def _sorted(name: str) -> tuple[str, str]:
    """Return what kind of header it is, and the name of what it holds."""
    name = name.lower()
    for whole in (CONTENT_TYPE, TOPIC, DUE):
        if name == whole:
            return whole, name
    for prefix in (PREFIX, NOTE):
        if name.startswith(prefix):
            return prefix, name.removeprefix(prefix)
    return "", name
