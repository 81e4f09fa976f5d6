"""
The promises of each socket as test classes: subclass one and give it the fixture it asks for.

```python
class TestMyBroker(BrokerContract):
    @pytest.fixture
    def broker(self):
        broker = MyBroker(...)
        yield broker
        broker.close()

    @pytest.fixture
    def topic(self):
        return "a-topic-that-exists"
```

Where a backend cannot do something, it says so in `features`; it skips no test by hand.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest

from cqrs_sync.broker import MessageBroker, OutgoingMessage, ReceivingBroker
from cqrs_sync.errors import Closed, MessageRejected, PublishFailed
from cqrs_sync.serializer import uuid7


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

    #: A topic that nobody made is refused (RabbitMQ with `mandatory`; not a broker that makes topics).
    refuses_unknown_topics: bool = True
    #: A message above this many bytes is refused; None where there is no limit to reach in a test.
    max_bytes: int | None = 1_048_576
    #: A child forked after the broker was used can publish to the same place.
    reaches_the_same_place_after_fork: bool = True


class BrokerContract:
    """What every MessageBroker promises: B1 and B2."""

    features = BrokerFeatures()

    def test_publish_returns_when_every_message_is_confirmed(self, broker: MessageBroker, topic: str) -> None:
        """A batch is confirmed as a whole, and an empty one is no work."""
        broker.publish([message(topic, b'{"n": %d}' % n) for n in range(100)], timeout=10)
        broker.publish([], timeout=10)

    def test_a_bad_message_does_not_hold_back_its_neighbours(self, broker: MessageBroker, topic: str) -> None:
        """Exactly the message that is at fault is named, with the reason."""
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
        """What reaches nobody was not delivered."""
        if not self.features.refuses_unknown_topics:
            return
        with pytest.raises(PublishFailed, match="no-such-topic"):
            broker.publish([message("no-such-topic")], timeout=10)

    def test_a_message_over_the_limit_is_refused(self, broker: MessageBroker, topic: str) -> None:
        """And the broker can be used afterwards."""
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
        """A child makes its own connection, and the parent keeps its own."""
        broker.publish([message(topic)], timeout=10)

        assert 0 == in_forked_child(lambda: broker.publish([message(topic)], timeout=5), timeout=10)

        broker.publish([message(topic)], timeout=10)

    def test_a_closed_broker_refuses(self, broker: MessageBroker, topic: str) -> None:
        """Closing twice is fine, publishing afterwards is not."""
        broker.publish([message(topic)], timeout=10)
        broker.close()
        broker.close()

        with pytest.raises(Closed):
            broker.publish([message(topic)], timeout=10)

    def _bad(self, topic: str) -> OutgoingMessage | None:
        if self.features.max_bytes is not None:
            return message(topic, b'"' + b"x" * self.features.max_bytes + b'"')
        if self.features.refuses_unknown_topics:
            return message("no-such-topic")
        return None


class ReceivingBrokerContract(BrokerContract):
    """What every ReceivingBroker promises on top."""

    def test_what_is_published_arrives_as_it_was(self, broker: ReceivingBroker, topic: str) -> None:
        """Body, content type, key and attributes survive the way."""
        sent = message(topic, '{"name": "Zoë"}'.encode(), key="k-1", correlationid="c-1")
        with broker.subscribe(topic, group="contract") as deliveries:
            broker.publish([sent], timeout=10)
            received = receive(deliveries, 1)[0].message

        assert sent.body == received.body
        assert sent.content_type == received.content_type
        assert sent.topic == received.topic
        assert dict(sent.attributes) == dict(received.attributes)
        assert sent.key == received.key

    def test_order_is_kept_per_key(self, broker: ReceivingBroker, topic: str) -> None:
        """Messages of one key arrive in the order they were published."""
        batch = [message(topic, b"%d" % n, key=f"k{n % 3}") for n in range(60)]
        with broker.subscribe(topic, group="order") as deliveries:
            broker.publish(batch, timeout=10)
            received = receive(deliveries, 60)

        for key in ("k0", "k1", "k2"):
            wanted = [sent.body for sent in batch if sent.key == key]
            assert wanted == [delivery.message.body for delivery in received if delivery.message.key == key]

    def test_what_is_not_done_comes_again(self, broker: ReceivingBroker, topic: str) -> None:
        """A nack gives the message back, an ack does not."""
        with broker.subscribe(topic, group="again") as deliveries:
            broker.publish([message(topic, b"1")], timeout=10)
            receive(deliveries, 1, settle=False)[0].nack()
            again = receive(deliveries, 1)[0]

            assert b"1" == again.message.body
            assert deliveries.receive(timeout=0.2) is None

    def test_many_are_received_at_once_in_their_order_and_never_more_than_wanted(
        self, broker: ReceivingBroker, topic: str
    ) -> None:
        """What is there comes without waiting for more of it."""
        with broker.subscribe(topic, group="many") as deliveries:
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

    def test_each_group_receives_everything(self, broker: ReceivingBroker, topic: str) -> None:
        """Groups do not take messages from each other."""
        with broker.subscribe(topic, group="one") as one, broker.subscribe(topic, group="two") as two:
            broker.publish([message(topic, b"1")], timeout=10)

            assert b"1" == receive(one, 1)[0].message.body
            assert b"1" == receive(two, 1)[0].message.body


def receive(deliveries: Any, count: int, *, timeout: float = 30.0, settle: bool = True) -> list[Any]:
    """Receive `count` deliveries within `timeout` seconds, and ack them unless told otherwise."""
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


def in_forked_child(action: Callable[[], object], *, timeout: float) -> int | None:
    """Run `action` in a forked child; its exit status, None where it had to be killed after `timeout` seconds."""
    child = multiprocessing.get_context("fork").Process(target=action)
    child.start()
    child.join(timeout)
    if child.is_alive():
        child.kill()
        child.join()
        return None
    return child.exitcode


__all__: Sequence[str] = [
    "BrokerContract",
    "BrokerFeatures",
    "ReceivingBrokerContract",
    "in_forked_child",
    "message",
    "receive",
]
