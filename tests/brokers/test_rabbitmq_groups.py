"""Groups of consumers on RabbitMQ: order, retries, dead letters, outages and topology."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import attrs
import pika
import pytest

from cqrs_sync.broker import Group, IncomingMessage, Subscription
from cqrs_sync.errors import BrokerUnavailable, ConfigurationError, PublishFailed
from cqrs_sync.integrations.rabbitmq import RabbitMQBroker, subscription
from cqrs_sync.integrations.rabbitmq.topology import AdminConnection
from cqrs_sync.testing.contracts.broker import message, receive
from cqrs_sync.testing.waiting import in_forked_child
from tests.servers import free_port
from tests.servers.proxy import TcpProxy
from tests.servers.rabbitmq import OwnRabbitMQ, forget, opened, proxied, via
from tests.waiting import eventually

pytestmark = pytest.mark.broker

Opener = Callable[..., RabbitMQBroker]


@pytest.fixture
def group(rabbitmq_url: str, exchange: str) -> Iterator[Group]:
    group = Group("shop", ("orders", "refunds"), delays=(0.2, 1.0), prefetch=10)
    yield group
    forget(rabbitmq_url, exchange, group)


@pytest.fixture
def proxy(rabbitmq_url: str) -> Iterator[TcpProxy]:
    with proxied(rabbitmq_url) as proxy:
        yield proxy


@pytest.fixture
def opener(rabbitmq_url: str, exchange: str) -> Iterator[Opener]:
    """Open a broker on the exchange with options."""
    with contextlib.ExitStack() as stack:

        def open_one(url: str = rabbitmq_url, **options: object) -> RabbitMQBroker:
            return stack.enter_context(contextlib.closing(RabbitMQBroker(url, exchange=exchange, **options)))

        yield open_one


@pytest.fixture
def broker(opener: Opener) -> RabbitMQBroker:
    return opener()


class Consumer:
    """A thread that receives and acks until it is closed."""

    def __init__(self, deliveries: Subscription, received: list[bytes]) -> None:
        self._deliveries = deliveries
        self._received = received
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._stopped.set()
        self._thread.join(10)

    def _run(self) -> None:
        with self._deliveries:
            while not self._stopped.is_set():
                delivery = patiently(self._deliveries, 0.05)
                if delivery is not None:
                    self._received.append(delivery.message.body)
                    delivery.ack()


def bodies(deliveries: list[object]) -> list[bytes]:
    return [delivery.message.body for delivery in deliveries]


# Order and sharing


def test_order_per_key_survives_subscriptions_that_leave(broker, opener, group, proxy, rabbitmq_url):
    """Of three subscriptions one is closed, one loses its connection; first deliveries stay in order."""
    through = opener(via(proxy, rabbitmq_url))
    received: list[bytes] = []
    consumers = [Consumer(each.subscribe(group), received) for each in (broker, through, through)]
    for n in range(600):
        broker.publish([message("orders", b"k%d %d" % (n % 3, n), key=f"k{n % 3}")])
        if n == 200:
            consumers[0].close()
        if n == 400:
            assert proxy.drop() == 2
    eventually(lambda: len(set(received)) == 600, 30)
    for consumer in consumers:
        consumer.close()

    firsts = list(dict.fromkeys(received))
    for key in (b"k0", b"k1", b"k2"):
        numbers = [int(body.split()[1]) for body in firsts if body.startswith(key)]
        assert sorted(numbers) == numbers
        assert 200 == len(numbers)


def test_a_group_of_all_topics_receives_no_message_that_others_keep(broker, opener, group, rabbitmq_url, exchange):
    """Groups keep messages on another exchange."""
    everything = Group("audit", ("#",), prefetch=10)
    with (
        contextlib.ExitStack() as afterwards,
        broker.subscribe(everything) as audit,
        broker.subscribe(group) as deliveries,
    ):
        afterwards.callback(forget, rabbitmq_url, exchange, everything)
        broker.add_dead_letters([IncomingMessage("orders", b"aside")], group)
        for after in (0, 0.2):
            broker.defer([IncomingMessage("orders", b"aside")], group, after=after)
        receive(deliveries, 2)
        broker.publish([message("orders", b"published")])

        assert [b"published"] == bodies(receive(audit, 1))


def test_notes_on_the_public_exchange_do_not_count(broker, group, exchange, rabbitmq_url):
    """A publisher cannot make a message look as if it was deferred or delivered before."""
    headers = {"cqrs-topic": "refunds", "cqrs-attempts": "99", "x-delivery-count": 99, "ce-id": "1"}
    with broker.subscribe(group) as deliveries, opened(rabbitmq_url) as channel:
        channel.basic_publish(exchange, "orders", b"1", pika.BasicProperties(headers=headers))
        delivery = receive(deliveries, 1)[0]

    assert ("orders", {}, {"id": "1"}) == (
        delivery.message.topic,
        delivery.message.notes,
        delivery.message.attributes,
    )
    assert 0 == delivery.redeliveries


# Deferred messages and dead letters


def test_a_delayed_message_starts_without_redeliveries(broker, group):
    """A shorter delay is over first, and earlier deliveries do not count."""
    with broker.subscribe(group) as deliveries:
        begun = time.monotonic()
        broker.defer([IncomingMessage("orders", b"long")], group, after=1.0)
        broker.defer([IncomingMessage("refunds", b"short", key="k")], group, after=0.2)
        short, long = receive(deliveries, 2)

    assert time.monotonic() - begun >= 0.9
    assert (b"short", "refunds", "k", 0) == facts(short)
    assert (b"long", "orders", None, 0) == facts(long)


def test_a_message_that_is_delivered_too_often_becomes_a_dead_letter(opener, group):
    """RabbitMQ moves it when no consumer does; topic and key are kept."""
    broker = opener(queue_arguments={"x-delivery-limit": 2})
    with broker.subscribe(group) as deliveries:
        broker.publish([message("orders", b"poison", key="k")])
        for _ in range(3):
            receive(deliveries, 1, settle=False)[0].nack()
        with broker.read_dead_letters(group) as dead:
            letter = receive(dead, 1)[0].message

    assert (b"poison", "orders", "k") == (letter.body, letter.topic, letter.key)
    assert "too often" in letter.notes["reason"]


def test_hostile_messages_can_be_kept(broker, group, exchange, rabbitmq_url):
    """Their bodies are kept, whatever their headers are."""
    hostile = [
        {"ce-type": "x" * 125_000, "ce-id": "1"},
        {f"ce-many{n}": "v" * 1000 for n in range(100)},
        {"ce-table": {"a": [1, None]}, "ce-bytes": b"\xff\xfe", "ce-" + "n" * 250: "long name", "ce-nul": "\0"},
        {"ce-partitionkey": "k" * 60_000, "ce-id": "i" * 60_000},
    ]
    with broker.subscribe(group) as deliveries, opened(rabbitmq_url) as channel:
        for n, headers in enumerate(hostile):
            properties = pika.BasicProperties(headers=headers, content_type="c" * 255)
            channel.basic_publish(exchange, "orders", b"%d" % n, properties)
        received = [delivery.message for delivery in receive(deliveries, len(hostile))]
        noted = [attrs.evolve(each, notes={"error": "\ud800é" * 60_000, "reason": "bad"}) for each in received]
        broker.add_dead_letters(noted, group)
        with broker.read_dead_letters(group) as dead:
            letters = [delivery.message for delivery in receive(dead, len(hostile))]

    assert [b"0", b"1", b"2", b"3"] == [letter.body for letter in letters]
    assert {"bad"} == {letter.notes["reason"] for letter in letters}
    assert all(letter.notes["error"].startswith("?é?é") for letter in letters)
    assert {"orders"} == {letter.topic for letter in letters}
    assert "1" == letters[0].attributes["id"]


def test_a_received_message_is_never_too_large_to_be_deferred(broker, opener, group):
    """`max_bytes` limits only `publish`."""
    small = opener(max_bytes=1000)
    with small.subscribe(group) as deliveries:
        broker.publish([message("orders", b"x" * 300_000)])
        large = receive(deliveries, 1)[0].message
        small.defer([large], group, after=0)

        assert large.body == receive(deliveries, 1)[0].message.body


def test_a_deleted_retry_queue_is_created_again(broker, group, exchange, rabbitmq_url):
    """People empty queues by deleting them. The next message of the group is kept."""
    with broker.subscribe(group) as deliveries:
        with opened(rabbitmq_url) as channel:
            for place in ("dead", "retry.0.2"):
                channel.queue_delete(f"{exchange}.shop.{place}")
        broker.add_dead_letters([IncomingMessage("orders", b"dead")], group)
        broker.defer([IncomingMessage("orders", b"later")], group, after=0.2)

        assert [b"later"] == bodies(receive(deliveries, 1))
    assert 1 == broker.backlog(group).dead


def test_a_missing_queue_is_named(opener, group, exchange):
    """With `declare=False` the error has the name of the missing queue."""
    opener().apply_topology(group)
    elsewhere = attrs.evolve(group, name="elsewhere")

    with pytest.raises(PublishFailed, match=rf"{exchange}\.elsewhere\.dead"):
        opener(declare=False).add_dead_letters([IncomingMessage("orders", b"1")], elsewhere)


def test_dead_letters_can_be_browsed_often(broker, group):
    """They stay in order. Without the high limit RabbitMQ 4 would drop them after 20 deliveries."""
    items = {item.name: item for item in broker.apply_topology(group)}
    broker.add_dead_letters([IncomingMessage("orders", b"%d" % n) for n in range(3)], group)
    for _ in range(25):
        with broker.read_dead_letters(group) as dead:
            assert [b"0", b"1", b"2"] == bodies(receive(dead, 3, settle=False))

    assert 3 == eventually(lambda: broker.backlog(group).dead)
    assert "x-delivery-limit=2147483647" in next(item.details for name, item in items.items() if "dead" in name)


def test_a_forked_child_sets_messages_aside(broker, group):
    """The child has a connection of its own."""
    letter = [IncomingMessage("orders", b"1")]
    with broker.subscribe(group) as deliveries:
        broker.defer(letter, group, after=0)

        assert 0 == in_forked_child(lambda: broker.defer(letter, group, after=0), timeout=10)
        broker.defer(letter, group, after=0)
        assert 3 == len(receive(deliveries, 3))


# Outages


def test_a_deleted_queue_is_created_again_with_its_arguments(broker, group, exchange, rabbitmq_url):
    """Bindings and arguments are as before."""
    with broker.subscribe(group) as deliveries:
        with opened(rabbitmq_url) as channel:
            channel.queue_delete(f"{exchange}.shop")
        eventually(lambda: published(broker, b"after"))

        assert [b"after"] == bodies(receive(deliveries, 1))
    assert {item.state for item in broker.inspect_topology(group)} == {"there", "unknown"}


def test_a_delivery_unsettled_for_too_long_lapses_and_the_subscription_continues(own_rabbitmq: OwnRabbitMQ, exchange):
    """The broker closes the channel of a slow consumer. The next channel opens within a second."""
    group = Group("slow", ("orders",), prefetch=10)
    own_rabbitmq.ctl("eval", "application:set_env(rabbit, consumer_timeout, 1000).")
    own_rabbitmq.ctl("eval", "application:set_env(rabbit, channel_tick_interval, 500).")
    try:
        with contextlib.closing(RabbitMQBroker(own_rabbitmq.url, exchange=exchange)) as broker:
            with broker.subscribe(group) as deliveries:
                broker.publish([message("orders", b"1")])
                held = receive(deliveries, 1, settle=False)[0]
                stale_since = eventually(lambda: held.is_stale and time.monotonic(), 20)
                again = receive(deliveries, 1)[0]
                took = time.monotonic() - stale_since
                held.ack()
                broker.publish([message("orders", b"2")])

                assert [b"2"] == bodies(receive(deliveries, 1))
            forget(own_rabbitmq.url, exchange, group)
    finally:
        own_rabbitmq.ctl("eval", "application:set_env(rabbit, consumer_timeout, 1800000).")
        own_rabbitmq.ctl("eval", "application:set_env(rabbit, channel_tick_interval, 60000).")

    assert b"1" == again.message.body
    assert again.redeliveries == 1
    assert took < 5.0


def test_a_silent_path_is_dropped(opener, group, proxy, rabbitmq_url, monkeypatch):
    """No side closes the connection: only the silence tells. An error reports it, and the subscription reconnects."""
    assert subscription._SILENCE_TIMEOUT * 1.25 < 20
    monkeypatch.setattr(subscription, "_SILENCE_TIMEOUT", 0.8)
    broker = opener(via(proxy, rabbitmq_url))
    with broker.subscribe(group) as deliveries:
        opener().publish([message("orders", b"1")])
        held = receive(deliveries, 1, settle=False)[0]
        proxy.freeze()
        with pytest.raises(BrokerUnavailable):
            eventually(lambda: deliveries.keep_alive() is not None, 10)
        assert held.is_stale
        proxy.drop()
        proxy.restore()

        again = eventually(lambda: patiently(deliveries), 20)
        assert (b"1", "orders", None) == facts(again)[:3]
        assert again.redeliveries


def test_an_idle_connection_is_kept(opener, group, proxy, rabbitmq_url, monkeypatch):
    """An idle subscription asks the broker, which answers. That works even if the I/O thread was blocked for long."""
    monkeypatch.setattr(subscription, "_SILENCE_TIMEOUT", 0.4)
    broker = opener(via(proxy, rabbitmq_url))
    with broker.subscribe(group) as deliveries:
        assert deliveries.receive(2.0) is None
        deliveries._thread.call_soon(lambda: threading.Event().wait(1.0))
        assert deliveries.receive(2.0) is None
        assert 1 == proxy.accepted


def test_connections_that_break_lose_nothing(opener, group, proxy, rabbitmq_url):
    """The connection breaks twenty times, with unsettled messages."""
    broker, publisher = opener(via(proxy, rabbitmq_url)), opener()
    seen: set[bytes] = set()
    with broker.subscribe(group) as deliveries:
        for turn in range(20):
            publisher.publish([message("orders", b"%d %d" % (turn, n)) for n in range(15)])
            begun = time.monotonic()
            while not {b"%d %d" % (turn, n) for n in range(15)} <= seen:
                assert time.monotonic() - begun < 80
                delivery = patiently(deliveries)
                if delivery is not None:
                    seen.add(delivery.message.body)
                    delivery.ack()
            assert proxy.drop() == 1
    assert 300 == len(seen)


def test_a_connection_closed_by_the_server_is_opened_again(own_rabbitmq: OwnRabbitMQ, exchange):
    """Operators close connections by hand."""
    group = Group("closed", ("orders",), prefetch=10)
    with contextlib.closing(RabbitMQBroker(own_rabbitmq.url, exchange=exchange)) as broker:
        with broker.subscribe(group) as deliveries:
            for n in range(3):
                broker.publish([message("orders", b"%d" % n)])
                held = receive(deliveries, 1, settle=False)[0]
                own_rabbitmq.close_all_connections()
                again = eventually(lambda: patiently(deliveries), 20)
                assert held.is_stale
                assert held.message.body == again.message.body
                again.ack()
        forget(own_rabbitmq.url, exchange, group)


# Topology


def test_topology_creates_nothing(broker, group):
    """Everything is missing, before and after."""
    looked = [broker.inspect_topology(group) for _ in range(2)]

    assert looked[0] == looked[1]
    assert {item.state for item in looked[1]} == {"missing"}
    assert {item.kind for item in looked[1]} == {"exchange", "queue", "binding"}


def test_a_queue_that_differs_is_explained(broker, group, exchange, rabbitmq_url):
    """The error has the argument and the way out. `subscribe` raises it at once."""
    broker.apply_topology(group)
    with opened(rabbitmq_url) as channel:
        channel.queue_delete(f"{exchange}.shop")
        channel.queue_declare(f"{exchange}.shop", durable=True)
    begun = time.monotonic()

    with pytest.raises(ConfigurationError, match=r"inequivalent arg 'x-.*shop.*delete it"):
        broker.subscribe(group)
    assert time.monotonic() - begun < 8
    different = [item for item in broker.inspect_topology(group) if item.state == "different"]
    assert [f"{exchange}.shop"] == [item.name for item in different]
    assert "inequivalent arg" in different[0].trouble
    assert different == [item for item in broker.apply_topology(group) if item.state == "different"]


def test_a_group_that_is_ordered_elsewhere_is_told_so(broker, group):
    """RabbitMQ's own words do not say what to change."""
    broker.apply_topology(group)

    with pytest.raises(ConfigurationError, match="give the group the same `ordered` everywhere"):
        broker.subscribe(attrs.evolve(group, ordered=False))


def test_without_declare_everything_must_exist(opener, group, exchange):
    """The error says what is missing. Another broker object may have created it."""
    careful = opener(declare=False)
    with pytest.raises(ConfigurationError, match=r"404 .*build it first"):
        careful.subscribe(group)

    opener().apply_topology(group)
    with careful.subscribe(group) as deliveries:
        careful.publish([message("orders", b"1")])
        assert [b"1"] == bodies(receive(deliveries, 1))


def test_without_declare_the_exchange_may_be_of_any_type(opener, group, exchange, rabbitmq_url):
    """It is not compared, and `build` creates everything else."""
    with opened(rabbitmq_url) as channel:
        channel.exchange_declare(exchange, exchange_type="direct", durable=True)

    assert "there" == opener(declare=False).apply_topology(group)[0].state
    assert "there" == opener(declare=False).inspect_topology(group)[0].state
    assert "different" == opener().inspect_topology(group)[0].state


def test_classic_queues_work(opener, group, exchange, rabbitmq_url):
    """Arguments that only quorum queues have are left out."""
    broker = opener(queue_arguments={"x-queue-type": "classic"})
    with broker.subscribe(group) as deliveries:
        broker.defer([IncomingMessage("orders", b"1")], group, after=0.2)
        receive(deliveries, 1, settle=False)[0].nack()

        assert 1 == receive(deliveries, 1)[0].redeliveries


@pytest.mark.parametrize("delay", [0.0001, 5_000_000])
def test_a_delay_that_rabbitmq_cannot_wait_is_refused(broker, group, delay):
    """Nothing is created."""
    with pytest.raises(ConfigurationError, match="waits between"):
        broker.subscribe(attrs.evolve(group, delays=(delay,)))


@pytest.mark.parametrize("name", ["shop.dead", "shop.retry.5", "x" * 250])
def test_a_group_cannot_have_the_name_of_another_groups_queue(broker, group, name):
    """It would receive the dead letters of the other group."""
    with pytest.raises(ConfigurationError, match="cannot be a group"):
        broker.subscribe(attrs.evolve(group, name=name))


def test_a_broker_that_is_away_is_reported_in_time(opener, group, proxy, rabbitmq_url, caplog):
    """One refuses connections, the other does not answer."""
    away = opener(f"amqp://127.0.0.1:{free_port()}/", publish_timeout=1)
    silent = opener(via(proxy, rabbitmq_url), publish_timeout=1)
    proxy.freeze()
    begun = time.monotonic()

    with pytest.raises(BrokerUnavailable, match="refused"):
        away.backlog(group)
    with pytest.raises(BrokerUnavailable, match="does not answer"):
        silent.inspect_topology(group)
    with pytest.raises(BrokerUnavailable, match="no answer"):
        silent.subscribe(group)
    assert time.monotonic() - begun < 15
    proxy.drop()
    # To close a connection before it is open is no failure.
    assert "Traceback" not in caplog.text


def test_a_request_to_a_silent_broker_can_be_interrupted(opener, group, proxy, rabbitmq_url, monkeypatch):
    """Ctrl-C raises KeyboardInterrupt and nothing else."""
    silent = opener(via(proxy, rabbitmq_url))
    proxy.freeze()
    run_once, turns = AdminConnection._run_once, []

    def interrupted(connection, timeout):
        run_once(connection, min(timeout, 0.1))
        turns.append(timeout)
        if len(turns) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(AdminConnection, "_run_once", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        silent.inspect_topology(group)

    assert caught.value.__context__ is None
    proxy.drop()


def facts(delivery):
    return delivery.message.body, delivery.message.topic, delivery.message.key, delivery.redeliveries


def patiently(deliveries, timeout=0.5):
    with contextlib.suppress(BrokerUnavailable):
        return deliveries.receive(timeout)


def published(broker: RabbitMQBroker, body: bytes) -> bool:
    with contextlib.suppress(PublishFailed):
        broker.publish([message("orders", body)], timeout=1)
        return True
    return False
