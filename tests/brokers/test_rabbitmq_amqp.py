"""Our AMQP frames against pika's: pika reads what we encode, and we read what pika encodes."""

from __future__ import annotations

import struct
from typing import Any

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.errors import MessageRejected
from cqrs_sync.integrations.rabbitmq.amqp import (
    AckEncoder,
    LargeMessage,
    MessageEncoder,
    cut_deliveries,
    decode_method,
    decode_properties,
)

_short = st.text(st.characters(codec="utf-8"), max_size=60)
_names = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=20)
SHORT = st.text(max_size=20)
TEXTS = st.dictionaries(st.text(max_size=20), st.text(max_size=50), max_size=8)
ANYTHING = st.dictionaries(
    st.text(max_size=20), st.one_of(st.text(max_size=20), st.integers(-(2**31), 2**31 - 1), st.none(), st.booleans())
)


@given(
    identity=_short,
    topic=_short,
    content_type=_short,
    body=st.binary(max_size=9000),
    attributes=st.dictionaries(_names, st.text(st.characters(codec="utf-8")), max_size=12),
    frame_max=st.sampled_from([4096, 8192, 131072]),
)
def test_pika_reads_what_we_write(identity, topic, content_type, body, attributes, frame_max):
    """pika's decoder returns every part of a message unchanged, from frames of the allowed size."""
    encoder = MessageEncoder("an-exchange", 100_000)
    message = OutgoingMessage(identity, topic, "x", body, content_type, attributes=attributes)

    encoded = encoder.encode(message)
    data = b"".join(encoded.frames(frame_max)) if isinstance(encoded, LargeMessage) else encoded
    method, header, *bodies = _frames(data, frame_max)

    assert (1, "an-exchange", topic, True, False) == (
        method.channel_number,
        method.method.exchange,
        method.method.routing_key,
        method.method.mandatory,
        method.method.immediate,
    )
    assert {f"ce-{name}": value for name, value in attributes.items()} == (header.properties.headers or {})
    assert (content_type or None, 2, identity) == (
        header.properties.content_type,
        header.properties.delivery_mode,
        header.properties.message_id,
    )
    assert len(body) == header.body_size
    assert body == b"".join(part.fragment for part in bodies)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"topic": "t" * 256}, "topic has 256 bytes"),
        ({"id": "ä" * 128}, "id has 256 bytes"),
        ({"content_type": "c" * 256}, "content type has 256 bytes"),
        ({"attributes": {"a" * 300: "x"}}, "attribute's name has 303 bytes"),
        ({"attributes": {"tenant": "\ud800"}}, "attribute 'tenant' cannot be sent as text"),
        ({"attributes": {"tenant": 7}}, "attribute 'tenant' cannot be sent as text"),
        ({"topic": "\udfff"}, "topic cannot be sent as text"),
        ({"body": b"x" * 1001}, "1001 bytes, 1000 are allowed"),
    ],
)
def test_a_message_that_amqp_cannot_carry_is_refused(changes, named):
    """The error names the part and the limit."""
    fields = {"id": "1", "topic": "t", "type": "x", "body": b"", **changes}

    with pytest.raises(MessageRejected, match=named):
        MessageEncoder("an-exchange", 1000).encode(OutgoingMessage(**fields))


def test_attributes_that_do_not_fit_into_a_frame_are_refused():
    """The broker would answer with 501 and close the connection of all callers."""
    message = OutgoingMessage("1", "t", "x", b"", attributes={"baggage": "x" * 140 * 1024})

    encoded = MessageEncoder("an-exchange", 1000).encode(message)

    assert isinstance(encoded, LargeMessage)
    with pytest.raises(MessageRejected, match=r"attributes take .* bytes, the broker takes 131072"):
        encoded.frames(131072)


def test_the_caches_are_bounded():
    """Topics that a stranger makes up do not fill the memory."""
    encoder = MessageEncoder("an-exchange", 1000)

    for n in range(10_000):
        encoder.encode(OutgoingMessage("1", f"topic-{n}", "x", b"", attributes={f"a{n}": "1"}))

    assert len(encoder._methods) <= 4096
    assert len(encoder._names) <= 4096


def _frames(data: bytes, frame_max: int) -> list[frame.Frame]:
    found = []
    while data:
        consumed, decoded = frame.decode_frame(data)
        assert 0 < consumed <= frame_max
        found.append(decoded)
        data = data[consumed:]
    assert isinstance(found[0].method, spec.Basic.Publish)
    return found


def marshalled(
    tag: int, *, body: bytes, redelivered: bool = False, exchange: str = "e", topic: str = "t", **properties: Any
) -> bytes:
    """Return a delivery as the server sends it."""
    deliver = spec.Basic.Deliver("ctag", tag, redelivered, exchange, topic)
    parts = [frame.Method(1, deliver), frame.Header(1, len(body), pika.BasicProperties(**properties))]
    parts += [frame.Body(1, body)] if body else []
    return b"".join(part.marshal() for part in parts)


@given(st.integers(0, 2**63), st.booleans(), SHORT, SHORT, st.binary(max_size=50), TEXTS | ANYTHING, st.data())
def test_a_delivery_is_decoded_as_pika_decodes_it(tag, redelivered, exchange, topic, body, headers, data):
    """Tag, flag, exchange, topic, content type, headers and body."""
    content_type, encoding = data.draw(SHORT), data.draw(st.none() | SHORT)
    properties = {"content_type": content_type, "content_encoding": encoding, "headers": headers, "message_id": "m"}
    sent = marshalled(tag, body=body, redelivered=redelivered, exchange=exchange, topic=topic, **properties)

    [(method, header, content)], length = cut_deliveries(sent)

    assert len(sent) == length
    assert (tag, redelivered, exchange, topic) == decode_method(method)
    expected = pika.BasicProperties()
    expected.decode(header[12:])
    assert (expected.content_type or None, expected.headers or {}) == (
        decode_properties(header).content_type or None,
        decode_properties(header).headers,
    )
    assert body == content


@given(st.lists(st.binary(max_size=30), max_size=5), st.integers(0, 2000), st.sampled_from([b"", b"\x08", b"\x01"]))
def test_incomplete_deliveries_are_left(contents, length, behind):
    """Only whole deliveries are cut out of the stream."""
    whole = [marshalled(n, body=body, headers={"a": "b"}) for n, body in enumerate(contents)]
    stream = b"".join(whole)[:length] + behind
    deliveries, end = cut_deliveries(stream)

    expected = 0
    while expected < len(whole) and len(b"".join(whole[: expected + 1])) <= min(length, len(stream)):
        expected += 1
    assert expected == len(deliveries)
    assert end == len(b"".join(whole[:expected]))


def test_everything_else_is_left_to_pika():
    """Bodies of several frames, other channels, other methods, broken frames."""
    first, second = frame.Body(1, b"x" * 10).marshal(), frame.Body(1, b"y" * 10).marshal()
    head = frame.Method(1, spec.Basic.Deliver("c", 1, False, "e", "t")).marshal()
    in_two = head + frame.Header(1, 20, pika.BasicProperties()).marshal() + first + second
    elsewhere = frame.Method(2, spec.Basic.Deliver("c", 1, False, "e", "t")).marshal()
    heartbeat = frame.Heartbeat().marshal()
    between = head + heartbeat + frame.Header(1, 10, pika.BasicProperties()).marshal() + first

    broken = marshalled(1, body=b"x")[:-1] + b"\0"

    for stream in (
        broken,
        in_two,
        elsewhere + in_two,
        heartbeat,
        between,
        frame.Method(1, spec.Basic.QosOk()).marshal() * 9,
    ):
        assert ([], 0) == cut_deliveries(stream)


@pytest.mark.parametrize("table", [b"\x03abc", b"\xff", b"\x01aT" + struct.pack(">Q", 2**63 - 1)])
def test_headers_that_cannot_be_decoded_count_as_none(table):
    """They do not raise."""
    header = struct.pack(">HHQH", 60, 0, 0, 0x2000) + struct.pack(">I", len(table)) + table

    assert {} == decode_properties(header).headers


class Server:
    """RabbitMQ's side of acks: it fails for a tag that it does not wait for."""

    def __init__(self, deliveries: int) -> None:
        self.waits_for = list(range(1, deliveries + 1))
        self.acked: list[int] = []
        self.requeued: list[int] = []
        self.frames = 0

    def receive(self, data: bytes) -> None:
        while data:
            length, part = frame.decode_frame(data)
            data, method = data[length:], part.method
            self.frames += 1
            assert method.delivery_tag in self.waits_for
            multiple = getattr(method, "multiple", False)
            tags = [t for t in self.waits_for if t == method.delivery_tag or (multiple and t < method.delivery_tag)]
            is_ack = isinstance(method, spec.Basic.Ack)
            assert is_ack or method.requeue
            (self.acked if is_ack else self.requeued).extend(tags)
            self.waits_for = [tag for tag in self.waits_for if tag not in tags]


@given(st.permutations(range(1, 31)), st.lists(st.integers(1, 10)), st.sets(st.integers(1, 30)))
def test_every_ack_and_nack_arrives(order, sizes, refused):
    """In any order, in batches of any size: RabbitMQ acks exactly the acked deliveries and requeues the others."""
    server, acks, left = Server(30), AckEncoder(), list(order)
    for size in [*sizes, 30]:
        batch, left = left[:size], left[size:]
        server.receive(acks.encode((tag, tag not in refused) for tag in batch))

    assert [] == server.waits_for
    assert set(server.requeued) == refused
    assert set(server.acked) == set(range(1, 31)) - refused


def test_a_run_of_acks_is_one_frame():
    """RabbitMQ needs less work for it than for a frame each."""
    server, acks = Server(400), AckEncoder()
    server.receive(acks.encode((tag, True) for tag in range(2, 201)))
    assert 199 == server.frames
    server.receive(acks.encode([(1, True)]))
    server.receive(acks.encode((tag, True) for tag in range(201, 401)))

    assert 201 == server.frames
