"""Receiving from RabbitMQ: subscriptions through outages, hostile messages, forks and close."""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Iterator

import pika
import pytest

from cqrs_sync.broker import Group
from cqrs_sync.errors import BrokerUnavailable, ClosedError, PublishFailed
from cqrs_sync.integrations.rabbitmq import RabbitMQBroker
from cqrs_sync.testing.contracts.broker import message, receive
from cqrs_sync.testing.waiting import in_forked_child
from tests.servers import free_port
from tests.servers.proxy import TcpProxy
from tests.servers.rabbitmq import forget, opened, proxied, via
from tests.waiting import eventually

pytestmark = pytest.mark.broker

GROUP = Group("group", ["meetings"], ordered=False, prefetch=10)


@pytest.fixture
def proxy(rabbitmq_url: str) -> Iterator[TcpProxy]:
    with proxied(rabbitmq_url) as proxy:
        yield proxy


@pytest.fixture
def broker(proxy: TcpProxy, rabbitmq_url: str, exchange: str) -> Iterator[RabbitMQBroker]:
    """A broker that connects through the proxy. What its group has on the server is deleted afterwards."""
    with contextlib.closing(RabbitMQBroker(f"{via(proxy, rabbitmq_url)}?heartbeat=1", exchange=exchange)) as broker:
        yield broker
    forget(rabbitmq_url, exchange, GROUP)


def bodies(deliveries: list[object]) -> list[bytes]:
    return [delivery.message.body for delivery in deliveries]


def ready(url: str, queue: str) -> int:
    """How many messages of a queue the server has delivered to no consumer."""
    with opened(url) as channel:
        count: int = channel.queue_declare(queue, passive=True).method.message_count
        return count


def test_a_subscription_continues_after_an_outage(broker, proxy, exchange, rabbitmq_url):
    """Unsettled messages are delivered again, acked ones are not, and late nacks change nothing."""
    with broker.subscribe(GROUP) as subscription:
        broker.publish([message("meetings", b"%d" % n) for n in range(12)])
        held = receive(subscription, 5, settle=False)
        held[0].ack()
        held[1].ack()
        # The prefetch is ten: the last two leave the queue when the server has both acks.
        eventually(lambda: ready(rabbitmq_url, f"{exchange}.group") == 0)
        before = proxy.accepted
        proxy.drop()
        eventually(lambda: proxy.accepted > before)
        again = receive(subscription, 10, settle=False)
        for delivery in held:
            delivery.nack()

        assert [b"%d" % n for n in range(2, 12)] == bodies(again)
        assert subscription.receive(0.2) is None


def test_a_subscription_reports_that_the_broker_is_away(broker, proxy):
    """It receives again when the broker is back."""
    with broker.subscribe(GROUP) as subscription:
        proxy.cut()
        with pytest.raises(BrokerUnavailable, match="connection refused"):
            eventually(lambda: subscription.receive(0.1) is not None)
        proxy.restore()
        broker.publish([message("meetings", b"1")])

        assert b"1" == eventually(lambda: _patiently(subscription)).message.body


def test_a_slow_handler_does_not_cost_the_connection(broker, proxy):
    """Heartbeats are answered while the handler runs: the server closes after two missed ones."""
    with broker.subscribe(GROUP) as subscription:
        broker.publish([message("meetings", b"%d" % n) for n in range(2)])
        slow = receive(subscription, 1, settle=False)[0]
        threading.Event().wait(5.0)
        slow.ack()

        assert [b"1"] == bodies(receive(subscription, 1))
        assert 2 == proxy.accepted


def test_a_deleted_queue_is_created_again(broker, exchange, rabbitmq_url):
    """The broker cancels the consumer, which starts again."""
    with broker.subscribe(GROUP) as subscription:
        with opened(rabbitmq_url) as channel:
            channel.queue_delete(f"{exchange}.group")
        eventually(lambda: _published(broker, b"after"))

        assert [b"after"] == bodies(receive(subscription, 1))


def test_hostile_headers_crash_nothing(broker, exchange, rabbitmq_url):
    """Values that are no text are left out; headers that pika cannot decode count as none."""
    hostile = {
        "ce-type": "x",
        "ce-number": 7,
        "CE-Upper": "case",
        "ce-table": {"a": [1, None]},
        "ce-none": None,
        "other": "x",
        "ce-partitionkey": b"\xff",
    }
    with broker.subscribe(GROUP) as subscription, opened(rabbitmq_url) as channel:
        channel.basic_publish(exchange, "meetings", b"1", pika.BasicProperties(headers=hostile))
        _publish_unreadable(channel, exchange, b"2")
        channel.basic_publish(exchange, "meetings", b"3")
        first, second, third = (delivery.message for delivery in receive(subscription, 3))

    assert {"type": "x", "upper": "case"} == first.attributes
    assert (b"2", {}, None) == (second.body, second.attributes, second.key)
    assert (b"3", {}, None) == (third.body, third.attributes, third.content_type)


def test_a_subscription_holds_at_most_its_prefetch(broker, exchange, rabbitmq_url):
    """`prefetch` limits the memory, and leaves messages for the other subscriptions of the group."""
    with broker.subscribe(GROUP) as one, broker.subscribe(GROUP) as other:
        broker.publish([message("meetings", b"%d" % n) for n in range(40)])
        first = receive(one, 10, settle=False)
        second = receive(other, 10, settle=False)

        assert one.receive(0.2) is None
        assert other.receive(0.2) is None
        assert 20 == len({*bodies(first), *bodies(second)})


def test_closing_gives_back_unsettled_messages(broker):
    """That includes messages that were not received yet."""
    with broker.subscribe(GROUP) as subscription:
        broker.publish([message("meetings", b"%d" % n) for n in range(3)])
        done, kept = receive(subscription, 2, settle=False)
        done.ack()
    kept.ack()
    with pytest.raises(ClosedError):
        subscription.receive(0.1)

    with broker.subscribe(GROUP) as subscription:
        assert [b"1", b"2"] == bodies(receive(subscription, 2))


def test_an_iteration_ends_when_the_subscription_is_closed(broker):
    """One thread can stop the loop of another."""
    subscription = broker.subscribe(GROUP)
    received: list[bytes] = []

    def loop() -> None:
        for delivery in subscription:
            received.append(delivery.message.body)
            delivery.ack()

    thread = threading.Thread(target=loop)
    thread.start()
    broker.publish([message("meetings", b"1")])
    eventually(lambda: received)
    subscription.close()
    thread.join(5)

    assert [b"1"] == received
    assert not thread.is_alive()


def test_a_subscription_belongs_to_its_process(broker, exchange):
    """A child would read from the parent's connection."""
    with broker.subscribe(GROUP) as subscription:

        def child() -> None:
            with pytest.raises(ClosedError, match="belongs to the parent"):
                subscription.receive(1)

        assert 0 == in_forked_child(child, timeout=10)
        broker.publish([message("meetings", b"1")])
        assert [b"1"] == bodies(receive(subscription, 1))


def test_a_broker_that_is_away_cannot_be_subscribed_to(exchange):
    """The error comes within `publish_timeout`."""
    with (
        contextlib.closing(
            RabbitMQBroker(f"amqp://127.0.0.1:{free_port()}/", exchange=exchange, publish_timeout=0.3)
        ) as broker,
        pytest.raises(BrokerUnavailable, match="connection refused"),
    ):
        broker.subscribe(GROUP)


def _patiently(subscription):
    with contextlib.suppress(BrokerUnavailable):
        return subscription.receive(0.5)


def _published(broker: RabbitMQBroker, body: bytes) -> bool:
    with contextlib.suppress(PublishFailed):
        broker.publish([message("meetings", body)], timeout=1)
        return True
    return False


def _publish_unreadable(channel, exchange: str, body: bytes) -> None:
    """Publish with a header that RabbitMQ accepts and pika cannot decode: a date in the year 292 billion."""
    name = b"\x07ce-time" + b"T" + struct.pack(">Q", 2**63 - 1)
    payload = struct.pack(">HHQH", 60, 0, len(body), 0x2000) + struct.pack(">I", len(name)) + name
    connection = channel.connection._impl
    number = channel.channel_number
    method = pika.spec.Basic.Publish(exchange=exchange, routing_key="meetings")
    connection._output_marshaled_frames(
        [
            pika.frame.Method(number, method).marshal(),
            struct.pack(">BHI", 2, number, len(payload)) + payload + b"\xce",
            pika.frame.Body(number, body).marshal(),
        ]
    )
    channel.connection.process_data_events()


def test_a_group_that_expires_leaves_nothing_behind(rabbitmq_url, exchange):
    """RabbitMQ deletes the unused queues of a group with `x-expires`, that of its dead letters as well."""
    options = {"queue_arguments": {"x-expires": 200}}
    with contextlib.closing(RabbitMQBroker(rabbitmq_url, exchange=exchange, **options)) as broker:
        broker.subscribe(GROUP).close()
        eventually(
            lambda: {"missing"} == {each.state for each in broker.inspect_topology(GROUP) if each.kind == "queue"}
        )
    forget(rabbitmq_url, exchange, GROUP)
