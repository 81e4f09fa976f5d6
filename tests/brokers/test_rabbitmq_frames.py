"""Our encoder against pika's decoder: what we write is AMQP, and says what the message says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.errors import MessageRejected
from cqrs_sync.integrations.rabbitmq.amqp import Encoder, LargeMessage

_short = st.text(st.characters(codec="utf-8"), max_size=60)
_names = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=20)


@given(
    identity=_short,
    topic=_short,
    content_type=_short,
    body=st.binary(max_size=9000),
    attributes=st.dictionaries(_names, st.text(st.characters(codec="utf-8")), max_size=12),
    frame_max=st.sampled_from([4096, 8192, 131072]),
)
def test_pika_reads_what_we_write(identity, topic, content_type, body, attributes, frame_max):
    """Every part of a message comes out of pika's decoder as it went in, in frames that are not too long."""
    encoder = Encoder("an-exchange", 100_000)
    message = OutgoingMessage(identity, topic, "x", body, content_type, attributes=attributes)

    encoded = encoder.encode(message)
    data = b"".join(encoded.pieces(frame_max)) if isinstance(encoded, LargeMessage) else encoded
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
def test_what_amqp_cannot_say_is_refused_before_it_is_sent(changes, named):
    """The message is at fault, and the error names the part and the limit."""
    fields = {"id": "1", "topic": "t", "type": "x", "body": b"", **changes}

    with pytest.raises(MessageRejected, match=named):
        Encoder("an-exchange", 1000).encode(OutgoingMessage(**fields))


def test_attributes_that_do_not_fit_into_a_frame_are_refused():
    """The broker would answer with 501 and close the connection for everybody."""
    message = OutgoingMessage("1", "t", "x", b"", attributes={"baggage": "x" * 140 * 1024})

    encoded = Encoder("an-exchange", 1000).encode(message)

    assert isinstance(encoded, LargeMessage)
    with pytest.raises(MessageRejected, match=r"attributes take .* bytes, the broker takes 131072"):
        encoded.pieces(131072)


def test_what_is_remembered_is_bounded():
    """Topics made up by a stranger do not fill the memory."""
    encoder = Encoder("an-exchange", 1000)

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
