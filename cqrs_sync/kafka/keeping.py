"""Messages that a group sets aside, as records: nothing of them is lost but what is too large for a record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import attrs

from cqrs_sync.broker import NOTE, IncomingMessage, OutgoingMessage
from cqrs_sync.kafka.binding import CONTENT_TYPE, DUE, PREFIX, TOPIC, text

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
