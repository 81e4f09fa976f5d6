"""A message as a record, and back: the CloudEvents binding for Kafka, and what a group has noted on it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType

import attrs

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


#: Bytes of a record besides its key, body and headers, and of a header besides its name and value: at most.
_RECORD, _HEADER = 512, 12
#: Bytes that are left of a note, at least, where it has to be cut.
_SHORTEST = 16


@attrs.frozen
class KeptMessage(OutgoingMessage):
    """A message on its way into one of a group's places; `topic` is that place."""

    headers: list[tuple[str, bytes]] = attrs.field(factory=list, repr=False)


def kept_messages(
    messages: Sequence[IncomingMessage], place: str, *, after: float | None, limit: int
) -> list[KeptMessage]:
    """Make records for `place` that are no larger than `limit` bytes, as far as their headers go."""
    due = None if not after else round((_now() + after) * 1000)
    return [_kept(message, place, due, limit) for message in messages]


def due_in(headers: Iterable[tuple[str, bytes | None]], delay: float) -> float:
    """Return for how many seconds a record has to wait; never longer than `delay`, whatever clock has written it."""
    for name, value in headers:
        if name.lower() == DUE:
            try:
                return min(delay, max(0.0, int(text(value)) / 1000 - _now()))
            except ValueError:
                return 0.0
    return 0.0


def _kept(message: IncomingMessage, place: str, due: int | None, limit: int) -> KeptMessage:
    headers = [(TOPIC, _bytes(message.topic))]
    if message.content_type is not None:
        headers.append((CONTENT_TYPE, _bytes(message.content_type)))
    if due is not None:
        headers.append((DUE, b"%d" % due))
    further = [(f"{PREFIX}{name}", _bytes(value)) for name, value in message.attributes.items()]
    further += [(f"{NOTE}{name}", _bytes(value)) for name, value in message.notes.items()]
    # A header without a name of our own would be read as another one.
    further = [header for header in further if header[0].lower() not in {TOPIC, DUE}]
    taken = _RECORD + len(message.body) + len(_bytes(message.key or "")) + sum(map(_size, headers))
    return KeptMessage(
        id=message.attributes.get("id", ""),
        topic=place,
        type=message.attributes.get("type", ""),
        body=message.body,
        content_type=message.content_type or "",
        key=message.key,
        attributes=message.attributes,
        headers=headers + _fitting(further, limit - taken),
    )


def _fitting(headers: list[tuple[str, bytes]], room: int) -> list[tuple[str, bytes]]:
    """
    Return what there is room for: the small ones whole, of large notes the beginning.

    Half of an attribute would be another one, so those are left out.
    """
    if sum(map(_size, headers)) <= room:
        return headers
    # What is to be cut comes last: by then all that is left out has made room.
    by_size = sorted(headers, key=_size)
    cut: dict[str, bytes] = {}
    for count, (name, value) in enumerate(by_size):
        share = room // (len(by_size) - count)
        if _size((name, value)) > share:
            if not name.startswith(NOTE) or (left := share - _size((name, b""))) < _SHORTEST:
                continue
            value = value[:left].decode(errors="ignore").encode()  # noqa: PLW2901 -- it is the same value, shorter
        cut[name] = value
        room -= _size((name, value))
    return [(name, cut[name]) for name, _ in headers if name in cut]


def _size(header: tuple[str, bytes]) -> int:
    return len(header[0].encode(errors="replace")) + len(header[1]) + _HEADER


def _bytes(value: str) -> bytes:
    # What was read with errors="replace" is always text; a caller's own may be anything.
    return value.encode(errors="replace")


def _now() -> float:
    return datetime.now(UTC).timestamp()
