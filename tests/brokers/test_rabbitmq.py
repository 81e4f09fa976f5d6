"""Publishing to RabbitMQ: the bytes on the wire, and the errors."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import ssl
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator

import attrs
import pika
import pytest
from cloudevents.core.bindings import rabbitmq as binding
from pika.adapters.utils import connection_workflow

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.context import deadline
from cqrs_sync.errors import BrokerUnavailable, ConfigurationError, DeliveryError, MessageRejected, PublishFailed
from cqrs_sync.integrations.rabbitmq import RabbitMQBroker
from cqrs_sync.integrations.rabbitmq import publisher as publisher_module
from cqrs_sync.integrations.rabbitmq.amqp import MessageEncoder
from cqrs_sync.integrations.rabbitmq.errors import delivery_error
from cqrs_sync.integrations.rabbitmq.publisher import PublishBatch
from cqrs_sync.messages import NotificationEvent
from cqrs_sync.serializer import JsonSerializer
from cqrs_sync.testing.contracts.broker import message
from tests.brokers.rabbitmq_publishers import channel_of
from tests.servers import free_port
from tests.servers.rabbitmq import OwnRabbitMQ, bound_queue, drained, opened, proxied, via
from tests.waiting import eventually

pytestmark = pytest.mark.broker

_CANARY = "S3cr3t-7f3a"


@attrs.frozen
class MeetingJoined(NotificationEvent, topic="meetings", name="meeting.joined", key="meeting_id"):
    meeting_id: str
    user_id: str


@pytest.fixture
def queue(rabbitmq_url: str, exchange: str) -> Iterator[str]:
    with bound_queue(rabbitmq_url, exchange, "meetings") as queue:
        yield queue


@pytest.fixture
def connect(exchange: str) -> Iterator[Callable[..., RabbitMQBroker]]:
    """Make brokers that are closed after the test."""
    with contextlib.ExitStack() as stack:

        def made(url: object, **options: object) -> RabbitMQBroker:
            broker = RabbitMQBroker(url, **{"exchange": exchange, **options})
            stack.callback(broker.close)
            return broker

        yield made


@pytest.fixture
def broker(connect, rabbitmq_url: str, queue: str) -> RabbitMQBroker:
    return connect(rabbitmq_url)


def refusals(broker: RabbitMQBroker, messages: list[OutgoingMessage], **options: float) -> dict[str, DeliveryError]:
    """The error of each message that was not confirmed."""
    with pytest.raises(PublishFailed) as caught:
        broker.publish(messages, **options)
    return {failed.id: error for failed, error in caught.value.failures}


def refusal(broker: RabbitMQBroker, sent: OutgoingMessage, **options: float) -> DeliveryError:
    return refusals(broker, [sent], **options)[sent.id]


class TestTheWire:
    def test_the_official_sdk_reads_binary_mode(self, broker, queue, rabbitmq_url):
        """B3: CloudEvents 1.0 in binary mode, with all attributes, persistent."""
        sent = JsonSerializer(source="tests").dump(MeetingJoined("m-1", "Zoë"))
        broker.publish([sent])

        [(properties, body)] = drained(rabbitmq_url, queue)
        event = binding.from_rabbitmq_event(binding.RabbitMQMessage(properties.headers, properties.content_type, body))

        assert {"meeting_id": "m-1", "user_id": "Zoë"} == event.get_data()
        assert ("meeting.joined", "tests", sent.id) == (event.get_type(), event.get_source(), event.get_id())
        assert "m-1" == event.get_extension("partitionkey")
        assert (2, sent.id) == (properties.delivery_mode, properties.message_id)

    def test_the_official_sdk_reads_structured_mode(self, broker, queue, rabbitmq_url):
        """B3: structured mode on request."""
        sent = JsonSerializer(source="tests", structured=True).dump(MeetingJoined("m-1", "u-1"))
        broker.publish([sent])

        [(properties, body)] = drained(rabbitmq_url, queue)
        event = binding.from_rabbitmq_event(
            binding.RabbitMQMessage(properties.headers or {}, properties.content_type, body)
        )

        assert {"meeting_id": "m-1", "user_id": "u-1"} == event.get_data()
        assert sent.id == event.get_id()

    def test_a_body_larger_than_a_frame_arrives_whole(self, broker, queue, rabbitmq_url):
        """The body is cut into frames of the negotiated size."""
        body = json.dumps("x" * 1_000_000).encode()
        broker.publish([message("meetings", body), message("meetings", b"2")])

        assert [body, b"2"] == [received for _, received in drained(rabbitmq_url, queue)]

    def test_frames_keep_the_negotiated_size(self, connect, queue, rabbitmq_url):
        """A limit below the default counts."""
        body = b"x" * 20_000
        connect(f"{rabbitmq_url}?frame_max=4096").publish([message("meetings", body)])

        assert [body] == [received for _, received in drained(rabbitmq_url, queue)]

    def test_a_call_larger_than_a_batch_keeps_its_order(self, broker, queue, rabbitmq_url):
        """The call is cut into many batches."""
        bodies = [b"%d" % n for n in range(2_345)]
        broker.publish([message("meetings", body) for body in bodies], timeout=30)

        assert bodies == [body for _, body in drained(rabbitmq_url, queue)]

    def test_a_pika_without_our_hook_costs_only_speed(self, monkeypatch, broker, queue, rabbitmq_url):
        """The messages go through pika's own encoder, and are the same."""
        sent = [message("meetings", b"%d" % n, key="k") for n in range(3)]
        broker.publish(sent)
        monkeypatch.setattr(publisher_module, "CAN_EMIT", False)
        broker.publish(sent)

        received = [(properties.__dict__, body) for properties, body in drained(rabbitmq_url, queue)]

        assert received[:3] == received[3:]

    def test_tls_is_verified(self, connect, own_rabbitmq: OwnRabbitMQ):
        """An unknown certificate fails at once; with its authority it is trusted."""
        url = own_rabbitmq.tls_url
        started = time.monotonic()

        assert "certificate is not trusted" in str(refusal(connect(url), message("meetings"), timeout=20))
        assert time.monotonic() - started < 10
        parameters = pika.URLParameters(url)
        parameters.ssl_options = pika.SSLOptions(ssl.create_default_context(cafile=own_rabbitmq.authority))
        exchange = f"tls-{uuid.uuid4().hex[:6]}"
        with bound_queue(own_rabbitmq.url, exchange, "meetings") as queue:
            broker = connect(parameters, exchange=exchange)
            broker.publish([message("meetings", b"x" * 300_000), *(message("meetings") for _ in range(500))])
            assert 501 == len(drained(own_rabbitmq.url, queue))


class TestMessagesAtFault:
    def test_an_unroutable_message_names_its_topic_and_exchange(self, broker, exchange):
        """B1: a message that reaches no queue is not published, though the broker confirms it."""
        error = refusal(broker, message("nobody-listens"))

        assert isinstance(error, MessageRejected)
        assert f"no queue is bound to the topic 'nobody-listens' on the exchange '{exchange}'" in str(error)
        way_out = "start a consumer of it, or create the queue of its group with `cqrs-sync topology apply`"
        assert str(error).endswith(f"(312 NO_ROUTE): {way_out}")

    def test_messages_with_the_same_id_are_told_apart(self, broker, queue, rabbitmq_url):
        """A return has the id of a message, not its tag: the right one of a pair fails."""
        good = message("meetings")
        bad = attrs.evolve(good, topic="nobody-listens")
        batch = [good, bad, good, bad, bad, good]

        with pytest.raises(PublishFailed) as caught:
            broker.publish(batch)

        assert [bad, bad, bad] == [failed for failed, _ in caught.value.failures]
        assert 3 == len(drained(rabbitmq_url, queue))

    def test_many_unroutable_messages_are_all_named(self, broker):
        """They take more than one batch."""
        batch = [message("nobody-listens") for _ in range(5_000)]

        assert {sent.id for sent in batch} == set(refusals(broker, batch, timeout=30))

    def test_a_missing_exchange_is_named(self, connect, queue, rabbitmq_url):
        """With `declare=False` it must exist; once it does, publishing works."""
        name = f"late-{uuid.uuid4().hex[:6]}"
        broker = connect(rabbitmq_url, exchange=name, declare=False)

        error = refusal(broker, message("meetings"), timeout=10)

        assert isinstance(error, MessageRejected)
        assert f"no exchange '{name}'" in str(error)
        with bound_queue(rabbitmq_url, name, "meetings"):
            broker.publish([message("meetings")])

    def test_an_exchange_of_another_type_is_refused(self, connect, rabbitmq_url):
        """The error contains RabbitMQ's reason."""
        name = f"fanout-{uuid.uuid4().hex[:6]}"
        with opened(rabbitmq_url) as channel:
            channel.exchange_declare(name, exchange_type="fanout")
            error = refusal(connect(rabbitmq_url, exchange=name), message("meetings"), timeout=10)
            channel.exchange_delete(name)

        assert isinstance(error, MessageRejected)
        assert "inequivalent arg 'type'" in str(error)

    def test_a_deleted_exchange_is_created_again(self, broker, queue, exchange, rabbitmq_url):
        """Its bindings are gone, so messages are unroutable. Later messages are not affected."""
        broker.publish([message("meetings")])
        with opened(rabbitmq_url) as channel:
            channel.exchange_delete(exchange)
        batch = [message("meetings") for _ in range(20)]

        assert {MessageRejected} == {type(error) for error in refusals(broker, batch, timeout=10).values()}
        with opened(rabbitmq_url) as channel:
            channel.queue_bind(queue, exchange, "meetings")
        broker.publish(batch)

    def test_a_message_that_closes_the_channel_harms_no_other(self, connect, exchange, own_rabbitmq: OwnRabbitMQ):
        """406 closes the channel of all callers: the guilty messages are found, all others arrive."""
        with bound_queue(own_rabbitmq.url, exchange, "meetings") as queue:
            broker = connect(own_rabbitmq.url, publish_timeout=20)
            neighbours = [[message("meetings") for _ in range(20)] for _ in range(4)]
            guilty = [message("meetings", b"x" * (own_rabbitmq.max_bytes + 1)) for _ in range(2)]
            mixed = [message("meetings"), guilty[0], message("meetings"), guilty[1], message("meetings")]
            threads = [threading.Thread(target=broker.publish, args=(batch,)) for batch in neighbours]
            for thread in threads:
                thread.start()
            errors = refusals(broker, mixed)
            for thread in threads:
                thread.join(30)
            arrived = {properties.message_id for properties, _ in drained(own_rabbitmq.url, queue)}

        assert {sent.id for sent in guilty} == set(errors)
        assert {MessageRejected} == {type(error) for error in errors.values()}
        innocent = {sent.id for batch in [*neighbours, mixed] for sent in batch} - set(errors)
        assert innocent == arrived

    def test_attributes_larger_than_a_frame_are_refused_without_harm(self, queue, connect, rabbitmq_url):
        """RabbitMQ would close the connection of all callers (501)."""
        with proxied(rabbitmq_url) as proxy:
            broker = connect(via(proxy, rabbitmq_url))
            bad = message("meetings", baggage="x" * 140 * 1024)
            errors = refusals(broker, [message("meetings"), bad, message("meetings")])
            broker.publish([message("meetings")])

            assert [bad.id] == list(errors)
            assert isinstance(errors[bad.id], MessageRejected)
            assert 1 == proxy.accepted

    def test_a_full_queue_may_have_room_later(self, connect, exchange, rabbitmq_url):
        """A nack is not the message's fault."""
        with opened(rabbitmq_url) as channel:
            channel.exchange_declare(exchange, exchange_type="topic", durable=True)
            name = f"{exchange}.full"
            channel.queue_declare(name, durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
            channel.queue_bind(name, exchange, "meetings")
            try:
                broker = connect(rabbitmq_url)
                broker.publish([message("meetings")])
                error = refusal(broker, message("meetings"))
            finally:
                channel.queue_delete(name)

        assert isinstance(error, BrokerUnavailable)
        assert "nack" in str(error)


class TestBrokersOutOfReach:
    def test_a_refused_connection_is_reported_at_the_deadline(self, connect):
        """Not earlier, because the broker may come back; not later, because callers must not hang."""
        broker = connect(f"amqp://guest:guest@127.0.0.1:{free_port()}/")
        started = time.monotonic()

        error = refusal(broker, message("meetings"), timeout=0.5)

        assert 0.5 <= time.monotonic() - started < 5.0
        assert isinstance(error, BrokerUnavailable)
        assert "not sent in time: connection refused (RabbitMQ at 127.0.0.1:" in str(error)

    def test_an_unknown_host_is_named(self, connect):
        """A broker whose name cannot be resolved is unavailable."""
        error = refusal(connect("amqp://no-such-host.invalid/"), message("meetings"), timeout=2)

        assert "the host name cannot be resolved (RabbitMQ at no-such-host.invalid:5672)" in str(error)

    def test_a_silent_network_is_reported_at_the_deadline(self, connect, queue, rabbitmq_url):
        """The deadline includes connecting."""
        with proxied(rabbitmq_url) as proxy:
            proxy.freeze()
            broker = connect(via(proxy, rabbitmq_url))
            started = time.monotonic()

            error = refusal(broker, message("meetings"), timeout=0.5)

            assert time.monotonic() - started < 5.0
            assert "not sent in time" in str(error)
            proxy.restore()
            broker.publish([message("meetings")])

    @pytest.mark.parametrize(
        ("url", "words"),
        [
            (f"amqp://guest:{_CANARY}@{{address}}/", "refuses user and password"),
            (f"amqp://nobody:{_CANARY}@{{address}}/", "refuses user and password"),
            ("amqp://guest:guest@{address}/no-such-vhost", "refuses the virtual host"),
        ],
    )
    def test_an_error_that_no_retry_changes_is_reported_at_once(
        self, connect, own_rabbitmq: OwnRabbitMQ, caplog, url, words
    ):
        """Errors, tracebacks, logs and representations do not contain the password."""
        caplog.set_level(logging.DEBUG)
        broker = connect(url.format(address=f"127.0.0.1:{own_rabbitmq.port}"))
        started = time.monotonic()

        with pytest.raises(PublishFailed) as caught:
            broker.publish([message("meetings")], timeout=30)

        assert time.monotonic() - started < 10
        [(_, error)] = caught.value.failures
        assert isinstance(error, BrokerUnavailable)
        assert words in str(error)
        shown = [repr(broker), repr(caught.value), *traceback.format_exception(error), caplog.text]
        assert not [text for text in shown if _CANARY in text]

    @pytest.mark.parametrize(
        "url",
        [
            f"amqp://guest:{_CANARY}/x@host/",
            f"amqp://guest:{_CANARY}#@host/",
            f"amqp://guest:{_CANARY}@host:{_CANARY}/",
            f"http://guest:{_CANARY}@host/",
            f"amqp://guest:{_CANARY}@host/?heartbeat={_CANARY}",
            "amqp://guest@host/",
            f"guest:{_CANARY}@host:5672",
            "localhost",
            None,
        ],
    )
    def test_an_invalid_url_is_refused_and_not_quoted(self, url):
        """The parser's error may contain the password."""
        with pytest.raises(ConfigurationError, match="RabbitMQ broker") as caught:
            RabbitMQBroker(url)

        assert _CANARY not in "".join(traceback.format_exception(caught.value))

    def test_the_nearest_deadline_counts(self, connect):
        """T6: the deadline of the request limits publishing."""
        broker = connect(f"amqp://guest:guest@127.0.0.1:{free_port()}/", publish_timeout=30)
        started = time.monotonic()

        with deadline(0.3):
            refusal(broker, message("meetings"))

        assert time.monotonic() - started < 5.0

    def test_a_message_whose_caller_gave_up_is_not_sent_later(self, connect, queue, rabbitmq_url):
        """The error said that it was not sent."""
        with proxied(rabbitmq_url) as proxy:
            broker = connect(via(proxy, rabbitmq_url))
            proxy.cut()
            refusals(broker, [message("meetings", b"given up") for _ in range(300)], timeout=0.3)
            proxy.restore()
            broker.publish([message("meetings", b"new")])

        assert [b"new"] == [body for _, body in drained(rabbitmq_url, queue)]

    def test_an_abandoned_batch_in_the_queue_is_not_sent(self, broker, exchange, queue, rabbitmq_url):
        """The connection thread drops it."""
        broker.publish([message("meetings", b"before")])
        late = PublishBatch([message("meetings", b"given up")], MessageEncoder(exchange, 1000))
        late.abandoned = True
        channel_of(broker).submit(late)
        broker.publish([message("meetings", b"after")])

        assert [b"before", b"after"] == [body for _, body in drained(rabbitmq_url, queue)]

    def test_a_broker_without_memory_is_reported(self, connect, exchange, own_rabbitmq: OwnRabbitMQ):
        """No message is queued behind the alarm; when it is over, publishing works."""
        with bound_queue(own_rabbitmq.url, exchange, "meetings") as queue:
            broker = connect(own_rabbitmq.url)
            broker.publish([message("meetings")])
            own_rabbitmq.ctl("set_vm_memory_high_watermark", "0.00000001")
            try:
                # The broker reports the alarm when it gets the first message.
                refusal(broker, message("meetings"), timeout=1)
                blocked = refusal(broker, message("meetings", b"blocked"), timeout=0.5)
            finally:
                own_rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")
            broker.publish([message("meetings", b"after")], timeout=10)

            assert isinstance(blocked, BrokerUnavailable)
            assert "not sent in time: the broker blocks publishers: low on memory" in str(blocked)
            bodies = [body for _, body in drained(own_rabbitmq.url, queue)]
            assert b"blocked" not in bodies
            assert b"after" == bodies[-1]

    def test_the_io_thread_survives_an_error(self, broker):
        """It starts over with a new connection, and callers are served."""
        broker.publish([message("meetings")])
        thread = channel_of(broker)._thread
        before = thread.connection
        thread.call_soon(lambda: 1 / 0)
        eventually(lambda: thread.connection is not before)

        broker.publish([message("meetings")])


def test_no_vendor_error_is_unmapped():
    """Each exception of pika becomes MessageRejected or BrokerUnavailable."""
    classes = [kind for _, kind in inspect.getmembers(pika.exceptions, inspect.isclass) if issubclass(kind, Exception)]
    classes += [
        kind
        for _, kind in inspect.getmembers(connection_workflow, inspect.isclass)
        if issubclass(kind, connection_workflow.AMQPConnectorException)
    ]
    mapped = {kind: delivery_error(_made(kind), "host:5672") for kind in classes}

    assert len(classes) > 40
    assert {
        pika.exceptions.ShortStringTooLong,
        pika.exceptions.UnroutableError,
        pika.exceptions.UnsupportedAMQPFieldException,
    } == {kind for kind, ours in mapped.items() if type(ours) is MessageRejected}
    assert {MessageRejected, BrokerUnavailable} == {type(ours) for ours in mapped.values()}
    # A text of our own, not the name of pika's class.
    assert {} == {kind: str(ours) for kind, ours in mapped.items() if kind.__name__ in str(ours)}


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (pika.exceptions.ChannelClosedByBroker(404, "NOT_FOUND - no exchange 'x'"), MessageRejected),
        (pika.exceptions.ChannelClosedByBroker(406, "PRECONDITION_FAILED"), MessageRejected),
        (pika.exceptions.ChannelClosedByBroker(403, "ACCESS_REFUSED"), MessageRejected),
        (pika.exceptions.ChannelClosedByBroker(541, "INTERNAL_ERROR"), BrokerUnavailable),
        (pika.exceptions.ConnectionClosedByBroker(501, "FRAME_ERROR"), MessageRejected),
        (pika.exceptions.ConnectionClosedByBroker(320, "CONNECTION_FORCED"), BrokerUnavailable),
        (pika.exceptions.ConnectionClosedByBroker(403, "ACCESS_REFUSED"), BrokerUnavailable),
    ],
)
def test_the_close_code_tells_whether_the_message_is_at_fault(error, ours):
    """The broker's text is kept."""
    translated = delivery_error(error, "host:5672")

    assert ours is type(translated)
    assert f"{error.reply_code} {error.reply_text} (RabbitMQ at host:5672)" in str(translated)
    assert error is translated.__cause__


def _made(kind: type[Exception]) -> Exception:
    """Return an instance of an exception, with any arguments."""
    if issubclass(kind, connection_workflow.AMQPConnectorPhaseErrorBase):
        return kind(OSError("why"))
    if issubclass(kind, connection_workflow.AMQPConnectionWorkflowFailed):
        return kind([OSError("why")])
    for arguments in ((), ("why",), (320, "why"), (1, 2, 3), ([],)):
        with contextlib.suppress(TypeError, IndexError):
            error = kind(*arguments)
            repr(error)
            return error
    raise AssertionError(f"how is {kind} made?")


@pytest.mark.parametrize(("level", "shown"), [(logging.INFO, False), (logging.DEBUG, True)], ids=["info", "debug"])
def test_lines_of_pika_are_left_out_unless_its_logger_is_at_debug(connect, caplog, level, shown):
    """What the caller gets says it once."""
    broker = connect(f"amqp://guest:guest@127.0.0.1:{free_port()}/", publish_timeout=0.3)
    with caplog.at_level(level), pytest.raises(PublishFailed, match="connection refused"):
        broker.publish([message("meetings")])

    assert shown == any(record.name.startswith("pika") for record in caplog.records)


def test_connections_that_the_application_makes_with_pika_log_as_before(connect, caplog):
    closed = f"amqp://guest:guest@127.0.0.1:{free_port()}/"
    with pytest.raises(PublishFailed):
        connect(closed, publish_timeout=0.3).publish([message("meetings")])
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        pika.BlockingConnection(pika.URLParameters(closed))

    assert {"MainThread"} == {record.threadName for record in caplog.records if record.name.startswith("pika")}
