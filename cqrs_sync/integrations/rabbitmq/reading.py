"""
Deliveries as the bytes that AMQP 0-9-1 has for them.

pika decodes a message in 40 µs and more, most of it copies of its buffer and headers that nobody reads. Here
the I/O thread only cuts deliveries out of what has arrived, and the thread that receives
decodes what is needed. Tests hold it against pika's own decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from typing import Any, NamedTuple, Protocol

from pika import data as pika_data

_METHOD, _HEADER, _BODY = 1, 2, 3
_CHANNEL = 1
_FRAME = Struct(">BHI")
#: Bytes before and after the payload of a frame.
_BEFORE, _AROUND = 7, 8
_END = 0xCE
_DELIVER = b"\0\x3c\0\x3c"
_LENGTH = Struct(">Q")
_TAG = Struct(">Q?")
_FLAGS = Struct(">H")
_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS = 0x8000, 0x4000, 0x2000
_TEXT = ord("S")


class Receiver(Protocol):
    """Whoever gets the deliveries of a connection; on its I/O thread."""

    def take(self, method: bytes, header: bytes, body: bytes) -> None:
        """Take one, as the payloads of its frames."""

    def taken(self) -> None:
        """For the moment there are no more."""


class Method(NamedTuple):
    """What we need of pika's Basic.Deliver."""

    delivery_tag: int
    redelivered: bool
    exchange: str
    routing_key: str


class Properties(NamedTuple):
    """What we need of pika's BasicProperties."""

    content_type: str | None
    headers: Mapping[Any, Any]


def cut(data: bytes, receiver: Receiver) -> int:
    """
    Hand over the deliveries that `data` begins with, and return where it goes on.

    What is no delivery, or is not all there or broken, or has more than one frame of body, is left to pika.
    """
    at, end = 0, len(data)
    while end - at > _AROUND:
        kind, channel, size = _FRAME.unpack_from(data, at)
        if kind != _METHOD or channel != _CHANNEL or not data.startswith(_DELIVER, at + _BEFORE):
            break
        header = at + size + _AROUND
        if end - header < _BEFORE + 14:
            break
        kind, channel, size = _FRAME.unpack_from(data, header)
        body = header + size + _AROUND
        if kind != _HEADER or channel != _CHANNEL or end < body:
            break
        (length,) = _LENGTH.unpack_from(data, header + _BEFORE + 4)
        after = body
        if length:
            after = body + length + _AROUND
            if end < after or _FRAME.unpack_from(data, body) != (_BODY, _CHANNEL, length):
                break
        if data[after - 1] != _END:
            break
        receiver.take(
            data[at + _BEFORE : header - 1], data[header + _BEFORE : body - 1], data[body + _BEFORE : after - 1]
        )
        at = after
    return at


def method_in(payload: bytes) -> Method:
    """Decode Basic.Deliver."""
    at = 5 + payload[4]
    tag, redelivered = _TAG.unpack_from(payload, at)
    exchange = at + 10
    topic = exchange + payload[at + 9]
    return Method(
        tag,
        redelivered,
        payload[exchange:topic].decode(errors="replace"),
        payload[topic + 1 :].decode(errors="replace"),
    )


def properties_in(payload: bytes) -> Properties:
    """Decode the content type and the headers; those that nobody can decode become none."""
    (flags,) = _FLAGS.unpack_from(payload, 12)
    at = 14
    content_type = None
    if flags & _CONTENT_TYPE:
        after = at + 1 + payload[at]
        content_type, at = payload[at + 1 : after].decode(errors="replace"), after
    if flags & _CONTENT_ENCODING:
        at += 1 + payload[at]
    return Properties(content_type, _headers(payload, at) if flags & _HEADERS else {})


def _headers(payload: bytes, at: int) -> Mapping[Any, Any]:
    try:
        return _texts(payload, at)
    except Exception:  # noqa: BLE001 -- pika knows the other types; whatever it cannot read either counts as none
        try:
            headers: dict[Any, Any] = pika_data.decode_table(payload, at)[0]
        except Exception:  # noqa: BLE001 -- as above
            return {}
        return headers


def _texts(payload: bytes, at: int) -> dict[str, str]:
    """Decode a table that has nothing but text in it, as nearly all have. Raises for any other."""
    headers: dict[str, str] = {}
    end = at + 4 + int.from_bytes(payload[at : at + 4], "big")
    at += 4
    while at < end:
        kind = at + 1 + payload[at]
        text = kind + 5
        if payload[kind] != _TEXT:
            raise TypeError("not only text")
        after = text + int.from_bytes(payload[kind + 1 : text], "big")
        headers[payload[at + 1 : kind].decode()] = payload[text:after].decode()
        at = after
    return headers
