"""Receiving from RabbitMQ: what a subscription survives."""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections.abc import Iterator

import pika
import pytest

from cqrs_sync.errors import BrokerUnavailable, Closed, PublishFailed
from cqrs_sync.integrations.rabbitmq import RabbitMQBroker
from cqrs_sync.testing.contracts.broker import message, receive
from cqrs_sync.testing.waiting import in_forked_child
from tests.servers import free_port
from tests.servers.proxy import TcpProxy
from tests.servers.rabbitmq import opened, proxied, via
from tests.waiting import eventually

pytestmark = pytest.mark.broker


@pytest.fixture
def proxy(rabbitmq_url: str) -> Iterator[TcpProxy]:
    with proxied(rabbitmq_url) as proxy:
        yield proxy


@pytest.fixture
def broker(proxy: TcpProxy, rabbitmq_url: str, exchange: str) -> Iterator[RabbitMQBroker]:
    """A broker that connects through the proxy; its exchange and its group's queue are removed afterwards."""
    with contextlib.closing(
        RabbitMQBroker(f"{via(proxy, rabbitmq_url)}?heartbeat=1", exchange=exchange, prefetch=10)
    ) as broker:
        yield broker
    with opened(rabbitmq_url) as channel:
        channel.queue_delete(f"{exchange}.group")
        channel.exchange_delete(exchange)


def bodies(deliveries: list[object]) -> list[bytes]:
    return [delivery.message.body for delivery in deliveries]


def test_a_subscription_goes_on_after_an_outage(broker, proxy):
    """What was not settled comes again, what was is gone, and answers that come too late change nothing."""
    with broker.subscribe("meetings", group="group") as subscription:
        broker.publish([message("meetings", b"%d" % n) for n in range(12)])
        held = receive(subscription, 5, settle=False)
        held[0].ack()
        held[1].ack()
        # Ten may be held: the last two come when the server has got both answers.
        eventually(lambda: len(subscription._arrived) == 7)
        before = proxy.accepted
        proxy.drop()
        eventually(lambda: proxy.accepted > before)
        again = receive(subscription, 10, settle=False)
        for delivery in held:
            delivery.nack()

        assert [b"%d" % n for n in range(2, 12)] == bodies(again)
        assert subscription.receive(0.2) is None


def test_a_subscription_says_that_the_broker_is_away(broker, proxy):
    """And receives again when it is back."""
    with broker.subscribe("meetings", group="group") as subscription:
        proxy.cut()
        with pytest.raises(BrokerUnavailable, match="connection refused"):
            eventually(lambda: subscription.receive(0.1) is not None)
        proxy.restore()
        broker.publish([message("meetings", b"1")])

        assert b"1" == eventually(lambda: _patiently(subscription)).message.body


def test_a_slow_handler_does_not_cost_the_connection(broker, proxy):
    """Heartbeats are answered while it works: the server hangs up after two that it missed."""
    with broker.subscribe("meetings", group="group") as subscription:
        broker.publish([message("meetings", b"%d" % n) for n in range(2)])
        slow = receive(subscription, 1, settle=False)[0]
        threading.Event().wait(5.0)
        slow.ack()

        assert [b"1"] == bodies(receive(subscription, 1))
        assert 2 == proxy.accepted


def test_a_deleted_queue_is_made_again(broker, exchange, rabbitmq_url):
    """The broker cancels the consumer; nobody sits there in silence for ever."""
    with broker.subscribe("meetings", group="group") as subscription:
        with opened(rabbitmq_url) as channel:
            channel.queue_delete(f"{exchange}.group")
        eventually(lambda: _published(broker, b"after"))

        assert [b"after"] == bodies(receive(subscription, 1))


def test_hostile_headers_crash_nothing(broker, exchange, rabbitmq_url):
    """What is no text is left out; headers that pika cannot even read count as none."""
    hostile = {
        "ce-type": "x",
        "ce-number": 7,
        "CE-Upper": "case",
        "ce-table": {"a": [1, None]},
        "ce-none": None,
        "other": "x",
        "ce-partitionkey": b"\xff",
    }
    with broker.subscribe("meetings", group="group") as subscription, opened(rabbitmq_url) as channel:
        channel.basic_publish(exchange, "meetings", b"1", pika.BasicProperties(headers=hostile))
        _publish_unreadable(channel, exchange, b"2")
        channel.basic_publish(exchange, "meetings", b"3")
        first, second, third = (delivery.message for delivery in receive(subscription, 3))

    assert {"type": "x", "upper": "case"} == first.attributes
    assert (b"2", {}, None) == (second.body, second.attributes, second.key)
    assert (b"3", {}, None) == (third.body, third.attributes, third.content_type)


def test_no_more_is_held_than_asked_for(broker, exchange, rabbitmq_url):
    """`prefetch` bounds the memory, and what other subscribers of the group can still get."""
    with broker.subscribe("meetings", group="group") as one, broker.subscribe("meetings", group="group") as other:
        broker.publish([message("meetings", b"%d" % n) for n in range(40)])
        first = receive(one, 10, settle=False)
        second = receive(other, 10, settle=False)

        assert one.receive(0.2) is None
        assert other.receive(0.2) is None
        assert 20 == len({*bodies(first), *bodies(second)})


def test_closing_gives_back_what_was_not_settled(broker):
    """Also what nobody has taken yet."""
    with broker.subscribe("meetings", group="group") as subscription:
        broker.publish([message("meetings", b"%d" % n) for n in range(3)])
        done, kept = receive(subscription, 2, settle=False)
        done.ack()
    kept.ack()
    with pytest.raises(Closed):
        subscription.receive(0.1)

    with broker.subscribe("meetings", group="group") as subscription:
        assert [b"1", b"2"] == bodies(receive(subscription, 2))


def test_an_iteration_ends_when_the_subscription_is_closed(broker):
    """So a loop in a thread can be stopped from another one."""
    subscription = broker.subscribe("meetings", group="group")
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


def test_a_subscription_stays_with_its_process(broker, exchange):
    """A child that used it would read from the parent's connection."""
    with broker.subscribe("meetings", group="group") as subscription:

        def child() -> None:
            with pytest.raises(Closed, match="belongs to the parent"):
                subscription.receive(1)

        assert 0 == in_forked_child(child, timeout=10)
        broker.publish([message("meetings", b"1")])
        assert [b"1"] == bodies(receive(subscription, 1))


def test_a_broker_that_is_away_cannot_be_subscribed_to(exchange):
    """It is said within `publish_timeout`."""
    with (
        contextlib.closing(
            RabbitMQBroker(f"amqp://127.0.0.1:{free_port()}/", exchange=exchange, publish_timeout=0.3)
        ) as broker,
        pytest.raises(BrokerUnavailable, match="connection refused"),
    ):
        broker.subscribe("meetings", group="group")


def test_a_queue_declared_differently_is_said(broker, exchange, rabbitmq_url):
    """In RabbitMQ's words, at once."""
    with opened(rabbitmq_url) as channel:
        channel.queue_declare(f"{exchange}.group", durable=False)
    started = time.monotonic()

    with pytest.raises(BrokerUnavailable, match="inequivalent arg 'durable'"):
        broker.subscribe("meetings", group="group")
    assert time.monotonic() - started < 8


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


def test_a_queue_is_declared_with_the_arguments_it_is_to_have(rabbitmq_url, exchange):
    """
    `queue_arguments` reach the server: it refuses to take the queue for one without them.
    """
    name = f"{exchange}.expiring"
    with (
        contextlib.closing(
            RabbitMQBroker(rabbitmq_url, exchange=exchange, queue_arguments={"x-expires": 60_000})
        ) as broker,
        broker.subscribe("expiring", group="expiring"),
        opened(rabbitmq_url) as channel,
        pytest.raises(pika.exceptions.ChannelClosedByBroker, match="x-expires"),
    ):
        channel.queue_declare(name, durable=True)
    with opened(rabbitmq_url) as channel:
        channel.queue_delete(name)
