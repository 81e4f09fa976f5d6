"""What is read and answered past pika is what pika would have read and answered."""

from __future__ import annotations

import struct
from typing import Any

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec

from cqrs_sync.integrations.rabbitmq.amqp import Answers, cut, method_in, properties_in

SHORT = st.text(max_size=20)
TEXTS = st.dictionaries(st.text(max_size=20), st.text(max_size=50), max_size=8)
ANYTHING = st.dictionaries(
    st.text(max_size=20), st.one_of(st.text(max_size=20), st.integers(-(2**31), 2**31 - 1), st.none(), st.booleans())
)


class Taken:
    """Keeps what is handed over."""

    def __init__(self) -> None:
        self.all: list[tuple[bytes, bytes, bytes]] = []

    def take(self, method: bytes, header: bytes, body: bytes) -> None:
        self.all.append((method, header, body))

    def taken(self) -> None:
        """Nobody waits."""


def marshalled(
    tag: int, *, body: bytes, redelivered: bool = False, exchange: str = "e", topic: str = "t", **properties: Any
) -> bytes:
    """Return a delivery as the server sends it."""
    deliver = spec.Basic.Deliver("ctag", tag, redelivered, exchange, topic)
    parts = [frame.Method(1, deliver), frame.Header(1, len(body), pika.BasicProperties(**properties))]
    parts += [frame.Body(1, body)] if body else []
    return b"".join(part.marshal() for part in parts)


@given(st.integers(0, 2**63), st.booleans(), SHORT, SHORT, st.binary(max_size=50), TEXTS | ANYTHING, st.data())
def test_a_delivery_is_read_as_pika_reads_it(tag, redelivered, exchange, topic, body, headers, data):
    """Tag, flag, exchange, topic, content type, headers and body."""
    content_type, encoding = data.draw(SHORT), data.draw(st.none() | SHORT)
    properties = {"content_type": content_type, "content_encoding": encoding, "headers": headers, "message_id": "m"}
    sent = marshalled(tag, body=body, redelivered=redelivered, exchange=exchange, topic=topic, **properties)
    taken = Taken()

    assert len(sent) == cut(sent, taken)
    method, header, content = taken.all[0]
    assert (tag, redelivered, exchange, topic) == method_in(method)
    expected = pika.BasicProperties()
    expected.decode(header[12:])
    assert (expected.content_type or None, expected.headers or {}) == (
        properties_in(header).content_type or None,
        properties_in(header).headers,
    )
    assert body == content


@given(st.lists(st.binary(max_size=30), max_size=5), st.integers(0, 2000), st.sampled_from([b"", b"\x08", b"\x01"]))
def test_whatever_is_not_all_there_is_left(contents, length, behind):
    """Whole deliveries are taken, and nothing of what comes after them."""
    whole = [marshalled(n, body=body, headers={"a": "b"}) for n, body in enumerate(contents)]
    stream = b"".join(whole)[:length] + behind
    taken = Taken()
    end = cut(stream, taken)

    expected = 0
    while expected < len(whole) and len(b"".join(whole[: expected + 1])) <= min(length, len(stream)):
        expected += 1
    assert expected == len(taken.all)
    assert end == len(b"".join(whole[:expected]))


def test_what_is_no_single_delivery_is_pikas_affair():
    """Bodies of several frames, other channels, other methods."""
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
        assert 0 == cut(stream, Taken())


@pytest.mark.parametrize("table", [b"\x03abc", b"\xff", b"\x01aT" + struct.pack(">Q", 2**63 - 1)])
def test_headers_that_nobody_can_read_are_none(table):
    """Nor do they raise."""
    header = struct.pack(">HHQH", 60, 0, 0, 0x2000) + struct.pack(">I", len(table)) + table

    assert {} == properties_in(header).headers


class Server:
    """What RabbitMQ does with answers: it hangs up on a tag that it does not wait for."""

    def __init__(self, deliveries: int) -> None:
        self.waits_for = list(range(1, deliveries + 1))
        self.acked: list[int] = []
        self.requeued: list[int] = []
        self.frames = 0

    def hear(self, data: bytes) -> None:
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
def test_every_answer_arrives_as_it_was_given(order, sizes, refused):
    """In any order, in batches of any size: what is acknowledged is, and nothing else."""
    server, answers, left = Server(30), Answers(), list(order)
    for size in [*sizes, 30]:
        batch, left = left[:size], left[size:]
        server.hear(answers.encode((tag, tag not in refused) for tag in batch))

    assert [] == server.waits_for
    assert set(server.requeued) == refused
    assert set(server.acked) == set(range(1, 31)) - refused


def test_a_run_of_answers_is_one_frame():
    """That is what makes them cheap."""
    server, answers = Server(400), Answers()
    server.hear(answers.encode((tag, True) for tag in range(2, 201)))
    assert 199 == server.frames
    server.hear(answers.encode([(1, True)]))
    server.hear(answers.encode((tag, True) for tag in range(201, 401)))

    assert 201 == server.frames
