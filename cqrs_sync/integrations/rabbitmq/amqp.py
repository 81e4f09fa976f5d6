"""
A message as the bytes that AMQP 0-9-1 wants.

pika encodes a message in 20 to 30 µs on the thread that everybody waits for; here
it happens in the caller's thread and costs a fifth. Tests hold every frame against
pika's own decoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from struct import Struct, pack
from typing import Any, NamedTuple, Protocol

from pika import data as pika_data

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.errors import MessageRejected

#: Every frame may be this long, whatever is negotiated.
_SURE = 4096
#: Bytes of a frame that are not its payload.
OVERHEAD = 8
_FRAME_END = b"\xce"
_CHANNEL = 1
_SHORT = 255
#: Entries kept of what repeats; topics and attribute names are few unless someone makes them up.
_REMEMBERED = 4096

_CONTENT_TYPE, _HEADERS, _DELIVERY_MODE, _MESSAGE_ID = 0x8000, 0x2000, 0x1000, 0x0080
_PERSISTENT = b"\x02"
_MANDATORY = b"\x01"
#: What `str.encode` raises for half a surrogate pair, and what is no string at all.
_NO_TEXT = (UnicodeEncodeError, AttributeError)


class LargeMessage(NamedTuple):
    """A message that may not fit into one frame per part: how long one is must be negotiated first."""

    #: The method frame and the header frame.
    head: bytes
    header_length: int
    body: bytes

    def pieces(self, frame_max: int) -> list[bytes]:
        """Cut the body into frames. Raises MessageRejected where the attributes do not fit into one."""
        if self.header_length > frame_max:
            raise MessageRejected(
                f"its attributes take {self.header_length} bytes, the broker takes {frame_max} (frame_max)"
            )
        pieces = [self.head]
        size = frame_max - OVERHEAD
        for start in range(0, len(self.body), size):
            part = self.body[start : start + size]
            pieces += (pack(">BHI", 3, _CHANNEL, len(part)), part, _FRAME_END)
        return pieces


class Encoder:
    """
    Encodes messages for one exchange; any thread may.

    Attributes become headers, with `prefix` before their names.
    """

    def __init__(self, exchange: str, max_bytes: int, prefix: str = "ce-") -> None:
        self.prefix = prefix
        self._exchange = _short("the name of the exchange", exchange)
        self._max_bytes = max_bytes
        self._methods: dict[str, bytes] = {}
        self._names: dict[str, bytes] = {}
        self._types: dict[str, bytes] = {}

    def encode(self, message: OutgoingMessage) -> bytes | LargeMessage:
        """Encode one message. Raises MessageRejected where AMQP or the limit forbids it."""
        body = message.body
        if len(body) > self._max_bytes:
            raise MessageRejected(f"its body has {len(body)} bytes, {self._max_bytes} are allowed (max_bytes)")
        method = self._methods.get(message.topic) or self._method(message.topic)
        header = self._header(message, len(body))
        if len(header) + len(body) > _SURE - OVERHEAD:
            return LargeMessage(method + header, len(header), body)
        if not body:
            return method + header
        return b"".join((method, header, pack(">BHI", 3, _CHANNEL, len(body)), body, _FRAME_END))

    def _method(self, topic: str) -> bytes:
        payload = pack(">HHH", 60, 40, 0) + self._exchange + _short("its topic", topic) + _MANDATORY
        method = pack(">BHI", 1, _CHANNEL, len(payload)) + payload + _FRAME_END
        return _remember(self._methods, topic, method)

    def _header(self, message: OutgoingMessage, length: int) -> bytes:
        flags = _DELIVERY_MODE | _MESSAGE_ID
        content_type = table = b""
        if message.content_type:
            flags |= _CONTENT_TYPE
            content_type = self._types.get(message.content_type) or _remember(
                self._types, message.content_type, _short("its content type", message.content_type)
            )
        if message.attributes:
            flags |= _HEADERS
            entries = self._entries(message)
            table = len(entries).to_bytes(4, "big") + entries
        properties = b"".join((content_type, table, _PERSISTENT, _short("its id", message.id)))
        return pack(">BHIHHQH", 2, _CHANNEL, 14 + len(properties), 60, 0, length, flags) + properties + _FRAME_END

    def _entries(self, message: OutgoingMessage) -> bytes:
        names = self._names
        entries: list[bytes] = []
        for name, value in message.attributes.items():
            known = names.get(name) or _remember(names, name, _short("an attribute's name", self.prefix + name) + b"S")
            try:
                text = value.encode()
            except _NO_TEXT as error:
                raise MessageRejected(f"its attribute {name!r} cannot be sent as text: {error}") from error
            entries += (known, len(text).to_bytes(4, "big"), text)
        return b"".join(entries)


def _short(what: str, value: str) -> bytes:
    try:
        encoded = value.encode()
    except _NO_TEXT as error:
        raise MessageRejected(f"{what} cannot be sent as text: {error}") from error
    if len(encoded) > _SHORT:
        raise MessageRejected(f"{what} has {len(encoded)} bytes, AMQP takes {_SHORT}: {value[:40]!r}...")
    return bytes((len(encoded),)) + encoded


def _remember(memory: dict[str, bytes], key: str, value: bytes) -> bytes:
    if len(memory) >= _REMEMBERED:
        memory.clear()
    memory[key] = value
    return value


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


_CHANNEL = 1
#: Method frames with a delivery tag and a byte of flags.
_ANSWER = Struct(">BHIHHQBB")
_ANSWER_SIZE = 13
_BASIC, _ACK, _NACK = 60, 80, 120
_MULTIPLE, _REQUEUE = 1, 2
_END = 0xCE


class Answers:
    """
    What was answered on one channel; its tags count from 1.

    Where everything up to a tag is settled, one frame says so: RabbitMQ works less for it than for each of them.
    """

    def __init__(self) -> None:
        #: Every tag below is settled.
        self._lowest = 1
        #: Settled, from there on.
        self._settled: set[int] = set()

    def encode(self, answers: Iterable[tuple[int, bool]]) -> bytes:
        """Return the frames for tags that are done, or are to be delivered again."""
        frames: list[bytes] = []
        acks: list[int] = []
        for tag, done in answers:
            self._settled.add(tag)
            if done:
                acks.append(tag)
            else:
                frames.append(_frame(_NACK, tag, _REQUEUE))
        while self._lowest in self._settled:
            self._settled.remove(self._lowest)
            self._lowest += 1
        # The tag it names has to be one that RabbitMQ still waits for.
        last = max((tag for tag in acks if tag < self._lowest), default=0)
        if last:
            frames.append(_frame(_ACK, last, _MULTIPLE))
        frames += (_frame(_ACK, tag, 0) for tag in acks if tag > last)
        return b"".join(frames)


def _frame(method: int, tag: int, flags: int) -> bytes:
    return _ANSWER.pack(1, _CHANNEL, _ANSWER_SIZE, _BASIC, method, tag, flags, _END)
