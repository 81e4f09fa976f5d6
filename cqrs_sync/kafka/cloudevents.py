"""Messages as records and back: the CloudEvents binding for Kafka, and the notes of a group on deferred messages."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType

import attrs

from cqrs_sync.broker import NOTE, IncomingMessage, OutgoingMessage
from cqrs_sync.errors import MessageRejected
from cqrs_sync.kafka.client import HeaderList, Headers

#: Headers that hold an attribute start with it.
_ATTRIBUTE = "ce_"
_CONTENT_TYPE = "content-type"
_NO_NOTES: Mapping[str, str] = MappingProxyType({})
#: Attributes that most messages have, by the names of their headers.
_KNOWN = {
    f"{_ATTRIBUTE}{name}": name
    for name in (
        *("specversion", "id", "source", "type", "time", "eventversion", "partitionkey"),
        *("correlationid", "causationid", "traceparent", "tracestate"),
    )
}
#: The topic a message was published to, and the moment until which it waits, in milliseconds since 1970.
_TOPIC, _DUE = f"{NOTE}topic", f"{NOTE}due"
#: Bytes of a record besides its key, body and headers, and of a header besides its name and value: at most.
_RECORD, _HEADER = 512, 12
#: Bytes of a note that is cut, at least.
_SHORTEST = 16


@attrs.frozen
class DeferredMessage(OutgoingMessage):
    """A message for a retry topic or the dead letter topic of a group; its headers are complete."""

    headers: HeaderList = attrs.field(factory=list, repr=False)


def key_and_headers_of(message: OutgoingMessage) -> tuple[bytes | None, HeaderList]:
    """
    Return what a record has besides its body; for a structured CloudEvent the content type is the only header.

    Raises MessageRejected for what cannot be UTF-8.
    """
    key = message.key
    headers: HeaderList | None = getattr(message, "headers", None)
    try:
        if headers is None:
            headers = [(f"ce_{name}", value.encode()) for name, value in message.attributes.items()]
            headers.append((_CONTENT_TYPE, message.content_type.encode()))
        return (None if key is None else key.encode()), headers
    except (AttributeError, UnicodeEncodeError) as error:
        raise MessageRejected(f"its key or an attribute is not text: {error}") from error


def incoming_message(
    topic: str, body: bytes | None, key: bytes | None, headers: Headers, *, deferred: bool = False
) -> IncomingMessage:
    """
    Read a record of any origin: bytes that are not text become readable, nothing raises.

    Its notes count only if the group itself has `deferred` it.
    """
    attributes: dict[str, str] = {}
    notes = _NO_NOTES
    content_type = None
    for name, value in headers:
        # Written out, and known names first: these lines cost the most of all that receiving does.
        attribute = _KNOWN.get(name)
        if attribute is not None:
            attributes[attribute] = value.decode("utf-8", "replace") if value else ""
            continue
        kind, short = _classify(name)
        if kind is _ATTRIBUTE:
            attributes[short] = _text(value)
        elif kind is _CONTENT_TYPE:
            content_type = _text(value)
        elif deferred and kind is NOTE:
            notes = {**notes, short: _text(value)}
        elif deferred and kind is _TOPIC:
            topic = _text(value)
    return IncomingMessage(topic, body or b"", content_type, None if key is None else _text(key), attributes, notes)


def deferred_messages(
    messages: Sequence[IncomingMessage], topic: str, *, after: float | None, limit: int
) -> list[DeferredMessage]:
    """Return messages for `topic` that are no larger than `limit` bytes, as far as their headers can be cut."""
    due = None if not after else round((_now() + after) * 1000)
    return [_defer(message, topic, due, limit) for message in messages]


def seconds_until_due(headers: Headers, delay: float) -> float:
    """Return how long a record has to wait; never longer than `delay`, whatever the clock of its writer."""
    for name, value in headers:
        if name.lower() == _DUE:
            try:
                return min(delay, max(0.0, int(_text(value)) / 1000 - _now()))
            except ValueError:
                return 0.0
    return 0.0


@functools.lru_cache(maxsize=1024)
def _classify(name: str) -> tuple[str, str]:
    """Return the kind of a header, and the name of what it holds."""
    name = name.lower()
    for whole in (_CONTENT_TYPE, _TOPIC, _DUE):
        if name == whole:
            return whole, name
    for prefix in (_ATTRIBUTE, NOTE):
        if name.startswith(prefix):
            return prefix, name.removeprefix(prefix)
    return "", name


def _defer(message: IncomingMessage, topic: str, due: int | None, limit: int) -> DeferredMessage:
    headers = [(_TOPIC, _bytes(message.topic))]
    if message.content_type is not None:
        headers.append((_CONTENT_TYPE, _bytes(message.content_type)))
    if due is not None:
        headers.append((_DUE, b"%d" % due))
    further = [(f"{_ATTRIBUTE}{name}", _bytes(value)) for name, value in message.attributes.items()]
    further += [(f"{NOTE}{name}", _bytes(value)) for name, value in message.notes.items()]
    # A note with the name of one of these two would be read in its place.
    further = [header for header in further if header[0].lower() not in {_TOPIC, _DUE}]
    used = _RECORD + len(message.body) + len(_bytes(message.key or "")) + sum(map(_size, headers))
    return DeferredMessage(
        id=message.attributes.get("id", ""),
        topic=topic,
        type=message.attributes.get("type", ""),
        body=message.body,
        content_type=message.content_type or "",
        key=message.key,
        attributes=message.attributes,
        headers=headers + _fit(further, limit - used),
    )


def _fit(headers: HeaderList, room: int) -> HeaderList:
    """
    Return the headers there is room for: small ones whole, of large notes the beginning.

    Half an attribute would be another attribute, so large ones are left out.
    """
    if sum(map(_size, headers)) <= room:
        return headers
    # The largest come last: by then, those that are left out have made room.
    by_size = sorted(headers, key=_size)
    fitting: dict[str, bytes] = {}
    for count, (name, value) in enumerate(by_size):
        share = room // (len(by_size) - count)
        cut = value
        if _size((name, value)) > share:
            if not name.startswith(NOTE) or (left := share - _size((name, b""))) < _SHORTEST:
                continue
            cut = value[:left].decode(errors="ignore").encode()
        fitting[name] = cut
        room -= _size((name, cut))
    return [(name, fitting[name]) for name, _ in headers if name in fitting]


def _size(header: tuple[str, bytes]) -> int:
    return len(header[0].encode(errors="replace")) + len(header[1]) + _HEADER


def _bytes(value: str) -> bytes:
    # Text that was read with errors="replace" can always be encoded; text of a caller may be anything.
    return value.encode(errors="replace")


def _text(value: bytes | None) -> str:
    return value.decode(errors="replace") if value else ""


def _now() -> float:
    return datetime.now(UTC).timestamp()
