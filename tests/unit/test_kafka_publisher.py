"""How a batch is published over any client of Kafka, and when its producer is replaced, without a Kafka."""

from __future__ import annotations

import threading

import pytest

from cqrs_sync.errors import BrokerUnavailable, ClosedError, ConfigurationError, MessageRejected
from cqrs_sync.kafka.client import (
    ErrorAction,
    ProducerClient,
    ProducerConnector,
    ProducerRetired,
    RecordBatch,
    TopicNotKnown,
)
from cqrs_sync.kafka.publisher import KafkaPublisher
from cqrs_sync.kafka.supervisor import ProducerSupervisor
from cqrs_sync.testing.contracts.broker import message
from tests.waiting import eventually

#: What a producer may answer; anything else is sent, and confirmed.
REFUSED, LOST, SILENT = "refused", "lost", "silent"
ACTIONS = {REFUSED: ErrorAction.SEND_ALONE, LOST: ErrorAction.SEND_AGAIN}


class Producer(ProducerClient):
    """Answers each body as `script` says, once; takes `room` records, and knows `topics`."""

    def __init__(self, script=None, *, room=1000, topics=("orders",)):
        self.script = dict(script or {})
        self.room = room
        self.topics = set(topics)
        self.sent = []
        self.ends = []

    def new_batch(self, timeout):
        return Batch(self)

    def find_topics(self, topics, timeout):
        for topic in topics:
            self.topics.add(topic)
            yield topic, MessageRejected("no such topic") if topic == "missing" else None

    def action_after(self, error):
        return ACTIONS[error]

    def delivery_error(self, error):
        return error if isinstance(error, Exception) else MessageRejected(error)

    def finish(self, timeout):
        self.ends.append("finish")

    def abandon(self):
        self.ends.append("abandon")

    def close(self, timeout):
        self.ends.append("close")


class Batch(RecordBatch):
    def __init__(self, producer):
        self.producer = producer
        self.known = {}

    def send(self, index, sent, key, headers):
        if not self.producer.room:
            raise ProducerRetired
        if sent.topic not in self.producer.topics:
            raise TopicNotKnown
        self.producer.room -= 1
        self.producer.sent.append(sent.body)
        answer = self.producer.script.pop(sent.body, None)
        if answer != SILENT:
            self.known[index] = answer

    def wait(self, timeout):
        pass

    def answers(self):
        return self.known


class Connector(ProducerConnector):
    def __init__(self, *producers, blocks=False):
        self.producers = list(producers)
        self.made = []
        self.blocks = blocks

    def connect(self, on_failure):
        made = self.producers.pop(0)
        if isinstance(made, Exception):
            raise made
        self.made.append(made)
        return made

    def is_final(self, error):
        return isinstance(error, ConfigurationError)

    def unreachable(self, error):
        return error if isinstance(error, ConfigurationError) else BrokerUnavailable(f"no way: {error}")


def supervisor(*producers, blocks=False):
    return ProducerSupervisor(Connector(*producers, blocks=blocks), grace=1)


def publish(messages, *producers, single=()):
    publisher = KafkaPublisher(supervisor(*producers), supervisor(*single))
    return [(failed.body, type(error)) for failed, error in publisher.publish(messages, 5)]


def orders(*bodies, key="k"):
    return [message("orders", body, key=key) for body in bodies]


class RoomForOne(Producer):
    """A producer that another thread retires after its first record."""

    def __init__(self):
        super().__init__(room=1)


def test_a_batch_goes_on_through_the_next_producer():
    """When another thread's failure retires the producer in the middle of a batch, the rest follows in its order."""
    sent = []
    producers = [RoomForOne() for _ in range(5)]

    class Next(ProducerSupervisor):
        def producer(self, timeout):
            sent.append(producers.pop(0))
            return sent[-1]

    publisher = KafkaPublisher(Next(Connector(), grace=1), supervisor())

    assert [] == publisher.publish(orders(b"0", b"1", b"2", b"3", b"4"), 5)
    assert [b"0", b"1", b"2", b"3", b"4"] == [body for producer in sent for body in producer.sent]


@pytest.mark.parametrize("blocks", [True, False])
def test_a_producer_that_fails_while_it_is_made_is_replaced(blocks):
    """The connector has reported it before the supervisor knew it."""

    class Failing(Connector):
        def connect(self, on_failure):
            producer = super().connect(on_failure)
            if not producer.room and blocks:
                on_failure(producer, "the topic 'orders' was created anew")
            return producer

    first, second = Producer(room=0), Producer()
    publisher = KafkaPublisher(ProducerSupervisor(Failing(first, second, blocks=blocks), grace=1), supervisor())

    assert [] == publisher.publish(orders(b"1"), 5)
    assert [] == publisher.publish(orders(b"2"), 5)
    assert [b"1", b"2"] == second.sent


def test_what_its_producer_has_lost_is_sent_by_the_next_one():
    """In the order of the batch; the producer that failed is abandoned."""
    first, second = Producer({b"2": LOST, b"3": LOST}), Producer()

    assert [] == publish(orders(b"1", b"2", b"3"), first, second)
    assert (["abandon"], [b"2", b"3"]) == (first.ends, second.sent)


def test_nothing_is_sent_again_after_a_later_message_of_its_key():
    """Neither by the next producer nor alone: it is reported, and whether it arrived is unknown."""
    first, second, single = Producer({b"1": LOST, b"2": REFUSED}), Producer(), Producer()

    assert [(b"1", BrokerUnavailable), (b"2", BrokerUnavailable)] == publish(
        orders(b"1", b"2", b"3"), first, second, single=[single]
    )
    assert ([], []) == (second.sent, single.sent)


def test_what_was_refused_in_company_is_sent_once_more_alone():
    """And the answer to that counts."""
    first, single = Producer({b"1": REFUSED, b"2": REFUSED}), Producer({b"2": REFUSED})

    assert [(b"2", MessageRejected)] == publish(orders(b"1", b"2", key=None), first, single=[single])
    assert [b"1", b"2"] == single.sent


def test_messages_wait_for_a_topic_that_is_not_known_in_their_order():
    """Others are sent before it is found, and those of a topic that does not exist fail."""
    producer = Producer()
    batch = [
        *(message("new", b"1"), message("orders", b"2"), message("missing", b"3")),
        *(message("new", b"4"), message("missing", b"5")),
    ]

    assert [(b"3", MessageRejected), (b"5", MessageRejected)] == publish(batch, producer)
    assert [b"2", b"1", b"4"] == producer.sent


@pytest.mark.parametrize(("abandoned", "end"), [(False, "finish"), (True, "abandon")])
def test_a_producer_that_owes_an_answer_and_is_silent_is_replaced(monkeypatch, abandoned, end):
    """With the next call, in the way that the client needs."""
    monkeypatch.setattr("cqrs_sync.kafka.supervisor._PATIENCE", 0.0)
    monkeypatch.setattr(Producer, "abandoned_when_silent", abandoned)
    first, second = Producer({b"1": SILENT}), Producer()
    publisher = KafkaPublisher(supervisor(first, second), supervisor())
    ((_, error),) = publisher.publish(orders(b"1"), 5)

    assert [] == publisher.publish(orders(b"2"), 5)
    assert "not confirmed in time" in str(error)
    assert ([end], [b"2"]) == (first.ends, second.sent)


def test_an_answer_that_comes_late_costs_no_producer():
    """A record that is confirmed after its call has returned settles what the producer owes."""
    producer = Producer({b"1": SILENT})
    keeper = supervisor(producer)
    batch = producer.new_batch(1)
    keeper.producer(1)
    keeper.record_unanswered(producer, batch, 0, 0.0)
    batch.known[0] = None

    assert producer is keeper.producer(1)
    assert [] == producer.ends


def test_connecting_goes_on_while_a_caller_waits():
    """Each caller gets the producer, or waits no longer than it may."""
    producer = Producer()
    keeper = supervisor(OSError("refused"), OSError("refused"), producer, blocks=True)

    assert producer is keeper.producer(5)
    with pytest.raises(BrokerUnavailable, match="no way"):
        supervisor(OSError("refused"), blocks=True).producer(0)


def test_an_error_that_will_not_pass_ends_the_wait():
    """Wrong options or credentials are told at once."""
    keeper = supervisor(ConfigurationError("wrong"), blocks=True)

    with pytest.raises(ConfigurationError, match="wrong"):
        keeper.producer(60)


def test_closing_ends_those_who_wait_and_what_is_made_meanwhile():
    """A producer that is made after `close` is closed at once."""
    made, closed = threading.Event(), threading.Event()
    producer = Producer()

    class Slow(Connector):
        def connect(self, on_failure):
            made.set()
            closed.wait(10)
            return super().connect(on_failure)

    keeper = ProducerSupervisor(Slow(producer, blocks=True), grace=1)
    errors = []

    def wait():
        try:
            keeper.producer(30)
        except ClosedError as error:
            errors.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    made.wait(10)
    keeper.close(1)
    waiting.join(10)
    closed.set()

    assert 1 == len(errors)
    eventually(lambda: ["close"] == producer.ends)
