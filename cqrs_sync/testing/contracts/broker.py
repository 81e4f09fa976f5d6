"""
The promises of a broker as test classes, each with those of the one before it.

`BrokerContract` is for brokers that publish, `ReceivingBrokerContract` for those that deliver as well. They need the
fixtures `broker` and `topic`.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import attrs
import pytest

from cqrs_sync.broker import (
    Delivery,
    Group,
    GroupBacklog,
    IncomingMessage,
    MessageBroker,
    OutgoingMessage,
    ReceivingBroker,
    Subscription,
)
from cqrs_sync.errors import ClosedError, MessageRejected, PublishFailed
from cqrs_sync.serializer import uuid7
from cqrs_sync.testing.waiting import in_forked_child


def message(topic: str, body: bytes = b"{}", *, key: str | None = None, **attributes: str) -> OutgoingMessage:
    """Make an outgoing message that is a valid CloudEvent."""
    identity = uuid7()
    extra = {} if key is None else {"partitionkey": key}
    return OutgoingMessage(
        id=identity,
        topic=topic,
        type="contract.happened",
        body=body,
        key=key,
        attributes={
            "specversion": "1.0",
            "id": identity,
            "source": "contract",
            "type": "contract.happened",
            "time": "2026-11-23T12:00:00Z",
            **extra,
            **attributes,
        },
    )


@attrs.frozen
class BrokerFeatures:
    """What a broker can do."""

    #: The broker refuses a topic that does not exist, and does not create it.
    refuses_unknown_topics: bool = True
    #: The broker refuses a message above this many bytes; None where a test cannot reach the limit.
    max_bytes: int | None = 1_048_576
    #: A child forked after the broker was used can publish to the same place.
    reaches_the_same_place_after_fork: bool = True


class BrokerContract:
    """What every MessageBroker promises: B1 and B2."""

    features: BrokerFeatures = BrokerFeatures()

    def test_publish_returns_when_every_message_is_confirmed(self, broker: MessageBroker, topic: str) -> None:
        """`publish` confirms a batch as a whole, and does nothing for an empty one."""
        broker.publish([message(topic, b'{"n": %d}' % n) for n in range(100)], timeout=10)
        broker.publish([], timeout=10)

    def test_a_bad_message_does_not_hold_back_its_neighbours(self, broker: MessageBroker, topic: str) -> None:
        """`publish` confirms the other messages, and raises PublishFailed with the bad one and the reason."""
        bad = self._bad(topic)
        if bad is None:
            return
        batch = [message(topic), bad, message(topic)]

        with pytest.raises(PublishFailed) as caught:
            broker.publish(batch, timeout=10)

        assert [bad] == [failed for failed, _ in caught.value.failures]
        assert isinstance(caught.value.failures[0][1], MessageRejected)
        broker.publish([message(topic)], timeout=10)

    def test_an_unknown_topic_is_an_error_that_names_it(self, broker: MessageBroker) -> None:
        """A message that no queue receives was not delivered."""
        if not self.features.refuses_unknown_topics:
            return
        with pytest.raises(PublishFailed, match="no-such-topic"):
            broker.publish([message("no-such-topic")], timeout=10)

    def test_a_message_over_the_limit_is_refused(self, broker: MessageBroker, topic: str) -> None:
        """The broker refuses the message, and can be used afterwards."""
        if self.features.max_bytes is None:
            return
        with pytest.raises(PublishFailed) as caught:
            broker.publish([message(topic, b'"' + b"x" * self.features.max_bytes + b'"')], timeout=10)

        assert isinstance(caught.value.failures[0][1], MessageRejected)
        broker.publish([message(topic)], timeout=10)

    def test_any_thread_may_publish(self, broker: MessageBroker, topic: str) -> None:
        """Sixteen threads share one broker."""
        errors: list[BaseException] = []

        def publish() -> None:
            try:
                for _ in range(20):
                    broker.publish([message(topic)], timeout=20)
            except BaseException as error:  # noqa: BLE001 -- shown by the assertion below
                errors.append(error)

        threads = [threading.Thread(target=publish) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

        assert [] == errors

    def test_a_forked_child_publishes(self, broker: MessageBroker, topic: str) -> None:
        """The child makes its own connection, and the parent keeps its own."""
        broker.publish([message(topic)], timeout=10)

        assert 0 == in_forked_child(lambda: broker.publish([message(topic)], timeout=5), timeout=10)

        broker.publish([message(topic)], timeout=10)

    def test_a_closed_broker_refuses(self, broker: MessageBroker, topic: str) -> None:
        """A broker may be closed twice; publishing after that raises ClosedError."""
        broker.publish([message(topic)], timeout=10)
        broker.close()
        broker.close()

        with pytest.raises(ClosedError):
            broker.publish([message(topic)], timeout=10)

    def _bad(self, topic: str) -> OutgoingMessage | None:
        if self.features.max_bytes is not None:
            return message(topic, b'"' + b"x" * self.features.max_bytes + b'"')
        if self.features.refuses_unknown_topics:
            return message("no-such-topic")
        return None


class ReceivingBrokerContract(BrokerContract):
    """What every ReceivingBroker promises on top of that."""

    #: Seconds for which messages are deferred here.
    delay: float = 1.0

    @pytest.fixture
    def group(self, topic: str) -> Group:
        """A group that no other test has; override the fixture to remove its queues or topics afterwards."""
        return self.new_group(topic)

    def new_group(self, topic: str) -> Group:
        """Make the group of a test."""
        return Group(f"contract-{uuid7()[-12:]}", (topic,), delays=(self.delay,), prefetch=50)

    def test_what_is_published_arrives_as_it_was(self, broker: ReceivingBroker, topic: str, group: Group) -> None:
        """Body, content type, key and attributes arrive unchanged."""
        sent = message(topic, '{"name": "Zoë"}'.encode(), key="k-1", correlationid="c-1")
        with broker.subscribe(group) as deliveries:
            broker.publish([sent], timeout=10)
            received = receive(deliveries, 1)[0].message

        assert sent.body == received.body
        assert sent.content_type == received.content_type
        assert sent.topic == received.topic
        assert dict(sent.attributes) == dict(received.attributes)
        assert sent.key == received.key

    def test_order_is_kept_per_key(self, broker: ReceivingBroker, topic: str, group: Group) -> None:
        """Messages of one key arrive in the order in which they were published."""
        batch = [message(topic, b"%d" % n, key=f"k{n % 3}") for n in range(60)]
        with broker.subscribe(group) as deliveries:
            broker.publish(batch, timeout=10)
            received = receive(deliveries, 60)

        for key in ("k0", "k1", "k2"):
            wanted = [sent.body for sent in batch if sent.key == key]
            assert wanted == [delivery.message.body for delivery in received if delivery.message.key == key]

    def test_a_nack_delivers_again(self, broker: ReceivingBroker, topic: str, group: Group) -> None:
        """After a nack the message is delivered again, after an ack it is not."""
        with broker.subscribe(group) as deliveries:
            broker.publish([message(topic, b"1")], timeout=10)
            receive(deliveries, 1, settle=False)[0].nack()
            again = receive(deliveries, 1)[0]

            assert b"1" == again.message.body
            assert deliveries.receive(timeout=0.2) is None

    def test_many_are_received_at_once_in_their_order(self, broker: ReceivingBroker, topic: str, group: Group) -> None:
        """`receive_many` returns what is there, and does not wait for more."""
        with broker.subscribe(group) as deliveries:
            broker.publish([message(topic, b"%d" % n, key="a") for n in range(10)], timeout=10)
            received: list[Any] = []
            until = time.monotonic() + 30
            while len(received) < 10 and time.monotonic() < until:
                came = deliveries.receive_many(4, timeout=5)
                assert len(came) <= 4
                for delivery in came:
                    delivery.ack()
                received += came

            assert [b"%d" % n for n in range(10)] == [delivery.message.body for delivery in received]
            assert not deliveries.receive_many(4, timeout=0.2)

    def test_each_group_receives_everything(self, broker: ReceivingBroker, topic: str, group: Group) -> None:
        """Groups do not take messages from each other."""
        other = attrs.evolve(group, name=f"{group.name}-other")
        with broker.subscribe(group) as one, broker.subscribe(other) as two:
            broker.publish([message(topic, b"1")], timeout=10)

            assert b"1" == receive(one, 1)[0].message.body
            assert b"1" == receive(two, 1)[0].message.body

    def test_messages_wait_for_a_group_from_its_first_subscription_on(
        self, broker: ReceivingBroker, topic: str, group: Group
    ) -> None:
        """Messages also wait while the group has no subscription."""
        broker.subscribe(group).close()
        broker.publish([message(topic, b"1")], timeout=10)

        with broker.subscribe(group) as deliveries:
            assert b"1" == receive(deliveries, 1)[0].message.body

    def test_a_group_may_get_delays_and_a_prefetch_later(
        self, broker: ReceivingBroker, topic: str, group: Group
    ) -> None:
        """What a loop with a plain group has left, a consumer with retries receives."""
        broker.subscribe(Group(group.name, [topic])).close()
        broker.publish([message(topic, b"1")], timeout=10)

        with broker.subscribe(group) as deliveries:
            assert b"1" == receive(deliveries, 1)[0].message.body

    def test_a_deferred_message_comes_back_after_its_delay(
        self, broker: ReceivingBroker, topic: str, group: Group
    ) -> None:
        """A deferred message comes back with its notes, and not before its delay is over."""
        with broker.subscribe(group) as deliveries:
            broker.publish([message(topic, b'{"n": 1}', key="k", correlationid="c-1")], timeout=10)
            delivery = receive(deliveries, 1, settle=False)[0]
            noted = attrs.evolve(delivery.message, notes={"attempts": "1", "reason": "Zoë is away"})
            begun = time.monotonic()
            broker.defer([noted], group, after=self.delay, timeout=10)
            delivery.ack()
            again = receive(deliveries, 1)[0]

        assert time.monotonic() - begun >= self.delay * 0.9
        assert_same(noted, again.message)

    def test_a_message_that_is_deferred_for_no_time_comes_back_at_once(
        self, broker: ReceivingBroker, topic: str, group: Group
    ) -> None:
        """A deferred message keeps its first topic, however often it is deferred."""
        with broker.subscribe(group) as deliveries:
            first = IncomingMessage(topic, b"1", "application/json", "k", {"id": "1"}, {"attempts": "1"})
            broker.defer([first], group, after=0, timeout=10)
            second = attrs.evolve(receive(deliveries, 1)[0].message, notes={"attempts": "2"})
            broker.defer([second], group, after=0, timeout=10)
            third = receive(deliveries, 1)[0].message

        assert_same(attrs.evolve(first, notes={"attempts": "2"}), third)

    def test_what_a_group_defers_is_its_own(self, broker: ReceivingBroker, topic: str, group: Group) -> None:
        """Another group of the same topic does not receive it."""
        other = attrs.evolve(group, name=f"{group.name}-other")
        with broker.subscribe(group) as mine, broker.subscribe(other) as others:
            broker.defer([IncomingMessage(topic, b"1")], group, after=0, timeout=10)
            broker.publish([message(topic, b"2")], timeout=10)

            assert {b"1", b"2"} == {each.message.body for each in receive(mine, 2)}
            assert [b"2"] == [each.message.body for each in receive(others, 1)]

    def test_a_group_has_only_its_own_delays(self, broker: ReceivingBroker, topic: str, group: Group) -> None:
        """Deferring by any other delay raises ValueError."""
        broker.subscribe(group).close()

        with pytest.raises(ValueError, match=r"77"):
            broker.defer([IncomingMessage(topic, b"1")], group, after=77, timeout=10)

    def test_dead_letters_stay_until_they_are_removed(self, broker: ReceivingBroker, topic: str, group: Group) -> None:
        """Looking leaves dead letters there, in their order; an ack removes one."""
        letters = [IncomingMessage(topic, b"%d" % n, "text/x", None, {"id": "x"}, {"reason": "bad"}) for n in range(3)]
        broker.subscribe(group).close()
        broker.add_dead_letters(letters, group, timeout=10)
        assert 3 == broker.backlog(group).dead

        with broker.read_dead_letters(group) as dead:
            looked_at = receive(dead, 3, settle=False)
        for letter, delivery in zip(letters, looked_at, strict=True):
            assert_same(letter, delivery.message)
        with broker.read_dead_letters(group) as dead:
            receive(dead, 1)
        with broker.read_dead_letters(group) as dead:
            left = receive(dead, 2, settle=False)

        assert [b"1", b"2"] == [delivery.message.body for delivery in left]
        assert 2 == self.eventual_backlog(broker, group, dead=2).dead

    def test_the_backlog_of_a_group_is_counted(self, broker: ReceivingBroker, topic: str, group: Group) -> None:
        """The backlog counts what was not received yet, what is deferred, and what is dead."""
        broker.subscribe(group).close()
        broker.publish([message(topic) for _ in range(3)], timeout=10)
        broker.add_dead_letters([IncomingMessage(topic, b"1")], group, timeout=10)

        backlog = self.eventual_backlog(broker, group, waiting=3, dead=1)

        assert (3, 0, 1) == (sum(backlog.waiting.values()), backlog.delayed, backlog.dead)

    def test_a_redelivered_message_says_so(self, broker: ReceivingBroker, topic: str, group: Group) -> None:
        """A redelivered message says so: a subscription that did not settle it may have died of it."""
        with broker.subscribe(group) as deliveries:
            broker.publish([message(topic, b"1")], timeout=10)
            delivery = receive(deliveries, 1, settle=False)[0]
            assert not delivery.is_stale
        with broker.subscribe(group) as deliveries:
            again = receive(deliveries, 1)[0]

        assert delivery.is_stale
        assert again.redeliveries >= 1
        assert again.origin

    def test_a_subscription_that_is_kept_alive_receives_nothing(
        self, broker: ReceivingBroker, topic: str, group: Group
    ) -> None:
        """A subscription that is kept alive keeps its messages, and receives no more."""
        with broker.subscribe(group) as deliveries:
            broker.publish([message(topic, b"%d" % n) for n in range(20)], timeout=10)
            held = receive(deliveries, 2, settle=False)
            until = time.monotonic() + 1.5
            while time.monotonic() < until:
                deliveries.keep_alive()
            for delivery in held:
                assert not delivery.is_stale
                delivery.ack()
            received = held + receive(deliveries, 18)

        assert {b"%d" % n for n in range(20)} == {delivery.message.body for delivery in received}

    def test_a_key_keeps_its_order_however_many_receive(
        self, broker: ReceivingBroker, topic: str, group: Group
    ) -> None:
        """What one subscription leaves unsettled reaches the other one before later messages of the key."""
        with broker.subscribe(group) as one, broker.subscribe(group) as other:
            broker.publish([message(topic, b"%d" % n, key="k") for n in range(4)], timeout=10)
            first, holder, heir = first_of(one, other)
            assert b"0" == first.message.body
            assert heir.receive(timeout=0.3) is None
            first.ack()
            holder.keep_alive()
            holder.close()
            bodies = [each.message.body for each in receive(heir, 3)]

        # The ack may have come too late.
        assert [b"1", b"2", b"3"] == [body for body in bodies if body != b"0"][:3] or [b"0", b"1", b"2"] == bodies

    def test_a_header_that_is_too_large_is_cut(self, broker: ReceivingBroker, topic: str, group: Group) -> None:
        """Huge headers or a long error never lose a dead letter."""
        body = b"x" * 100_000
        attributes = {"id": "1", "source": "s", "huge": "h" * 120_000, **{f"many{n}": "v" * 500 for n in range(100)}}
        huge = IncomingMessage(
            topic, body, "text/plain", "k" * 300, attributes, {"reason": "why", "error": "é" * 50_000}
        )
        broker.subscribe(group).close()

        broker.add_dead_letters([huge], group, timeout=10)

        with broker.read_dead_letters(group) as dead:
            kept = receive(dead, 1)[0].message
        assert body == kept.body
        assert "why" == kept.notes["reason"]
        assert kept.notes["error"].startswith("ééé")
        assert topic == kept.topic

    def test_the_topology_of_a_group_is_created_once_and_seen(self, broker: ReceivingBroker, group: Group) -> None:
        """Looking creates nothing, and creating twice is as good as once."""
        assert "missing" in {item.state for item in broker.inspect_topology(group)}

        broker.apply_topology(group)
        built = broker.apply_topology(group)

        assert {item.state for item in built} <= {"there", "unknown"}
        assert {item.state for item in broker.inspect_topology(group)} <= {"there", "unknown"}
        assert {item.name for item in built} == {item.name for item in broker.inspect_topology(group)}

    def test_messages_wait_for_a_group_that_was_built(self, broker: ReceivingBroker, topic: str, group: Group) -> None:
        """Messages wait before the first subscription; building again does not disturb those that exist."""
        broker.apply_topology(group)
        broker.publish([message(topic, b"1")], timeout=10)

        with broker.subscribe(group) as deliveries:
            assert b"1" == receive(deliveries, 1)[0].message.body
            broker.apply_topology(group)
            broker.publish([message(topic, b"2")], timeout=10)
            assert b"2" == receive(deliveries, 1)[0].message.body

    def eventual_backlog(
        self, broker: ReceivingBroker, group: Group, *, waiting: int | None = None, dead: int | None = None
    ) -> GroupBacklog:
        """Return the backlog when it is as expected, or after ten seconds: brokers count late."""
        until = time.monotonic() + 10
        while True:
            backlog = broker.backlog(group)
            is_there = waiting in {None, sum(backlog.waiting.values())} and dead in {None, backlog.dead}
            if is_there or time.monotonic() > until:
                return backlog


def receive(deliveries: Any, count: int, *, timeout: float = 30.0, settle: bool = True) -> list[Any]:
    """Receive `count` deliveries within `timeout` seconds, and ack them unless `settle` is false."""
    until = time.monotonic() + timeout
    received: list[Any] = []
    while len(received) < count:
        left = until - time.monotonic()
        assert left > 0, f"{len(received)} of {count} messages came within {timeout} s"
        delivery = deliveries.receive(timeout=left)
        if delivery is not None:
            received.append(delivery)
            if settle:
                delivery.ack()
    return received


def first_of(one: Subscription, other: Subscription) -> tuple[Delivery, Subscription, Subscription]:
    """Receive from the first of two that gets something; return the delivery, its subscription, and the other one."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        for holder, heir in ((one, other), (other, one)):
            delivery = holder.receive(timeout=0.2)
            if delivery is not None:
                return delivery, holder, heir
    raise AssertionError("nothing came within 30 s")


def assert_same(sent: IncomingMessage, received: IncomingMessage) -> None:
    """Assert that a message came back as it was deferred."""
    assert sent.topic == received.topic
    assert sent.body == received.body
    assert sent.key == received.key
    assert sent.content_type == received.content_type
    assert dict(sent.attributes) == dict(received.attributes)
    assert dict(sent.notes) == {name: received.notes[name] for name in sent.notes}
