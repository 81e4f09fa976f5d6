"""What a client of Kafka does whichever it is: the same tests for both, and what they have in common."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from cqrs_sync.broker import MessageBroker
from cqrs_sync.context import deadline
from cqrs_sync.errors import BrokerUnavailable, Closed, ConfigurationError, MessageRejected, PublishFailed
from cqrs_sync.testing.contracts.broker import message, receive
from tests.brokers.scripted_kafka import INVALID_RECORD, NO_ERROR
from tests.servers import free_port
from tests.servers.kafka import bodies_in
from tests.waiting import eventually

#: How much later than its deadline a call may return on a busy machine.
LATE = 4.0
#: Seconds after the broker's return in which publishing has to work again.
BACK_IN = 8.0
_ROOT = Path(__file__).parents[2]
#: What is done to a broker or to the path to it, and how that is mended.
HARMS = {
    "path-cut": (lambda server, proxy: proxy.cut(), lambda server, proxy: proxy.restore()),
    "path-frozen": (lambda server, proxy: proxy.freeze(), lambda server, proxy: proxy.restore()),
    "broker-frozen": (lambda server, proxy: server.freeze(), lambda server, proxy: server.thaw()),
}


def failures_of(broker, messages, **options):
    with pytest.raises(PublishFailed) as caught:
        broker.publish(messages, **options)
    return caught.value.failures


def publish(broker, body=b"x", *, timeout=5.0, topic="orders"):
    """Publish one message; return why it failed, None where it did not, and the seconds it took."""
    started = time.monotonic()
    try:
        broker.publish([message(topic, body, key="k")], timeout=timeout)
    except PublishFailed as failed:
        return failed.failures[0][1], time.monotonic() - started
    return None, time.monotonic() - started


def seconds_until_it_works(broker):
    started = time.monotonic()
    eventually(lambda: publish(broker)[0] is None, timeout=30)
    return time.monotonic() - started


class Ledger:
    """What sixteen threads were told about the messages they published."""

    def __init__(self, broker: MessageBroker, timeout: float) -> None:
        self.confirmed: list[bytes] = []
        self.failed: list[bytes] = []
        self.latest = 0.0
        self._broker = broker
        self._timeout = timeout
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._publish_on, args=(name,)) for name in range(16)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._enough.set()
        for thread in self._threads:
            thread.join(20)

    def _publish_on(self, name: int) -> None:
        numbers = itertools.count()
        while not self._enough.is_set():
            batch = [message("orders", b"%d-%d" % (name, next(numbers)), key=str(name)) for _ in range(5)]
            started = time.monotonic()
            failed = self._publish(batch)
            self.latest = max(self.latest, time.monotonic() - started - self._timeout)
            self.failed += failed
            self.confirmed += [sent.body for sent in batch if sent.body not in failed]

    def _publish(self, batch):
        try:
            self._broker.publish(batch, timeout=self._timeout)
        except PublishFailed as error:
            return [sent.body for sent, _ in error.failures]
        return []


def run(script: str, *arguments: str, timeout: float = 100) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a script in an interpreter of its own, which complains about everything."""
    started = time.monotonic()
    completed = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *arguments],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return completed, time.monotonic() - started


def publish_texts(broker, topic, *texts):
    broker.publish([message(topic, text) for text in texts], timeout=10)


def bodies(deliveries):
    return [delivery.message.body for delivery in deliveries]


def is_unreachable(deliveries):
    try:
        assert deliveries.receive(timeout=0.2) is None
    except BrokerUnavailable:
        return True
    return False


class KafkaPublishing:
    broker_class: ClassVar[Any]
    #: Options with which each record has a request of its own, and the words for a port on which nobody listens.
    one_by_one: ClassVar[Mapping[str, Any]]
    refused: ClassVar[str]

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("topic", "no spaces, please"),
            ("topic", ""),
            ("topic", ".."),
            ("topic", "x" * 250),
            ("topic", None),
            ("topic", ["unhashable"]),
            ("key", "\ud800"),
            ("key", 7),
            ("attributes", {"id": None}),
            ("body", "text"),
            ("body", None),
        ],
    )
    def test_a_message_that_cannot_be_sent_fails_alone(self, broker, kafka_topic, field, value):
        """
        A bad topic, key, attribute or body is rejected with its reason, and its neighbours are confirmed.
        """
        bad = attrs.evolve(message(kafka_topic), **{field: value})

        failures = failures_of(broker, [message(kafka_topic), bad, message(kafka_topic)], timeout=10)

        assert [bad] == [failed for failed, _ in failures]
        assert isinstance(failures[0][1], MessageRejected)

    def test_what_the_broker_refuses_fails_alone(self, scripted, scripted_broker):
        """
        One record the broker will not take is named; all others are confirmed, in order, and so is what comes after.

        A client fails everything that is under way, or in the same request, with the same error.
        """
        scripted.judge = lambda bodies: INVALID_RECORD if b"bad" in bodies else NO_ERROR
        batch = [message("known", body, key="k") for body in (b"1", b"2", b"bad", b"3")]

        failures = failures_of(scripted_broker, batch)
        scripted_broker.publish([message("known", b"4", key="k")])

        assert [batch[2]] == [failed for failed, _ in failures]
        assert isinstance(failures[0][1], MessageRejected)
        assert [b"1", b"2", b"3", b"4"] == scripted.written

    def test_no_message_is_sent_again_after_its_successor(self, scripted):
        """
        Where a later message of its key has arrived, a refused one is reported instead of tried on its own.
        """
        refused_once = {b"1", b"2"}

        def judge(bodies):
            again = refused_once.isdisjoint(bodies)
            refused_once.difference_update(bodies)
            return NO_ERROR if again else INVALID_RECORD

        scripted.judge = judge
        broker = self.broker_class(scripted.servers, producer_config=self.one_by_one)
        batch = [message("known", b"1", key="k"), message("known", b"2"), message("known", b"3", key="k")]

        failures = failures_of(broker, batch)
        broker.close()

        assert [batch[0]] == [failed for failed, _ in failures]
        assert isinstance(failures[0][1], BrokerUnavailable)
        assert [b"3", b"2"] == scripted.written

    def test_a_topic_that_is_made_meanwhile_is_used(self, scripted):
        """
        Where the broker may make topics, a new one is waited for as long as there is time.
        """
        broker = self.broker_class(scripted.servers)
        timer = threading.Timer(0.5, scripted.topics.add, args=["late"])
        timer.start()

        broker.publish([message("late", b"1"), message("late", b"2")], timeout=10)
        broker.close()

        assert [b"1", b"2"] == scripted.written

    def test_an_unreachable_broker_fails_in_time(self):
        """
        With nobody there, the first call fails at its deadline with the reason, not after 30 or 60 seconds.
        """
        broker = self.broker_class(f"127.0.0.1:{free_port()}")
        started = time.monotonic()

        failures = failures_of(broker, [message("orders")], timeout=0.5)
        took = time.monotonic() - started
        broker.close(0.1)

        assert isinstance(failures[0][1], BrokerUnavailable)
        assert self.refused in str(failures[0][1])
        assert 0.5 + LATE > took

    def test_the_nearest_deadline_counts(self):
        """
        A deadline of the request ends the call before its own timeout does.
        """
        broker = self.broker_class(f"127.0.0.1:{free_port()}")
        started = time.monotonic()

        with deadline(0.3):
            failures_of(broker, [message("orders")], timeout=20)
        took = time.monotonic() - started
        broker.close(0.1)

        assert 0.3 + LATE > took

    def test_a_closed_broker_takes_nothing_more(self, kafka_servers, kafka_topic):
        """
        After `close`, publishing and subscribing are errors; a second `close` is none.
        """
        broker = self.broker_class(kafka_servers)
        broker.publish([message(kafka_topic)])
        broker.close()
        broker.close()

        with pytest.raises(Closed):
            broker.publish([])
        with pytest.raises(Closed):
            broker.subscribe(kafka_topic, group="late")

    def test_what_the_broker_refuses_fails_for_its_own_thread_only(self, scripted, scripted_broker):
        """
        A refused record of one thread costs no other thread a message.
        """
        scripted.judge = lambda bodies: INVALID_RECORD if b"bad" in bodies else NO_ERROR
        failed: list[object] = []

        def publish_good() -> None:
            try:
                for n in range(20):
                    scripted_broker.publish([message("known", b"%d" % n)], timeout=20)
            except PublishFailed as error:
                failed.append(error)

        threads = [threading.Thread(target=publish_good) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            failures_of(scripted_broker, [message("known", b"bad")], timeout=20)
        for thread in threads:
            thread.join(60)

        assert [] == failed
        assert 80 <= len(scripted.written)

    def test_a_connection_on_which_nobody_answers_is_given_up(self, scripted):
        """
        A path that has died without a word costs one call; the next one goes another way, long before any timeout.
        """
        broker = self.broker_class(scripted.servers, publish_timeout=30)
        broker.publish([message("known", b"1")])
        scripted.mute()

        failures_of(broker, [message("known", b"lost")], timeout=1.2)
        started = time.monotonic()
        broker.publish([message("known", b"2")])
        took = time.monotonic() - started
        broker.close(timeout=0.1)

        assert 1 + LATE > took

    def test_after_the_deadline_nothing_is_sent(self, scripted, scripted_broker):
        """
        A call that has no time left fails without sending: what it reports as failed does not arrive later.
        """
        scripted_broker.publish([message("known", b"1")])

        failures = failures_of(scripted_broker, [message("known", b"late"), message("known", b"late")], timeout=0)
        scripted_broker.publish([message("known", b"2")])

        assert 2 == len(failures)
        assert [b"1", b"2"] == scripted.written


class KafkaOutages:
    broker_class: ClassVar[Any]
    #: Messages that are confirmed between two harms.
    many: ClassVar[int]
    #: Whether the client has given up the message that a call left behind, with nobody looking.
    owes_nothing: ClassVar[Callable[[Any], bool]]

    @pytest.mark.parametrize("calls", [1, 4], ids=["one-call", "calls-all-the-time"])
    def test_publishing_works_again_after_a_freeze_longer_than_any_patience(self, own_kafka, broker, calls):
        """
        The broker answers nothing until the client has given up; two seconds after its return it confirms.
        """
        own_kafka.freeze()
        failures = [publish(broker, timeout=1.2) for _ in range(calls)]
        eventually(lambda: self.owes_nothing(broker))
        own_kafka.thaw()

        assert BACK_IN > seconds_until_it_works(broker)
        assert all(isinstance(error, BrokerUnavailable) and took < 1.2 + LATE for error, took in failures)

    def test_publishing_works_again_after_calls_that_had_little_time(self, own_kafka, broker):
        """
        Deadlines shorter than any timeout of the client leave nothing wedged behind.
        """
        own_kafka.freeze()
        failures = [publish(broker, timeout=0.1) for _ in range(5)]
        eventually(lambda: self.owes_nothing(broker))
        own_kafka.thaw()

        assert BACK_IN > seconds_until_it_works(broker)
        assert all(isinstance(error, BrokerUnavailable) and took < 0.1 + LATE for error, took in failures)

    @pytest.mark.parametrize(("harm", "mend"), HARMS.values(), ids=HARMS)
    def test_under_sixteen_threads_no_confirmed_message_is_missing(self, kafka_behind_proxy, harm, mend):
        """
        While the broker or the path to it comes and goes under thousands of messages: what was confirmed is there,
        everything else was reported as failed, and no call returns later than its deadline.
        """
        server, proxy = kafka_behind_proxy
        broker = self.broker_class(server.servers)
        publish(broker, timeout=10)

        with Ledger(broker, timeout=1.0) as ledger:
            for _ in range(3):
                confirmed = len(ledger.confirmed) + self.many
                eventually(lambda: len(ledger.confirmed) > confirmed, timeout=20)  # noqa: B023
                failed = len(ledger.failed)
                harm(server, proxy)
                eventually(lambda: len(ledger.failed) > failed, timeout=20)  # noqa: B023
                mend(server, proxy)
            eventually(lambda: len(ledger.confirmed) > 4 * self.many, timeout=20)
        broker.close()

        assert set() == set(ledger.confirmed) - set(bodies_in(server.servers, "orders"))
        assert set() == set(ledger.confirmed) & set(ledger.failed)
        assert LATE > ledger.latest

    def test_a_moment_without_answers_costs_no_producer(self, own_kafka, broker):
        """
        A freeze shorter than the deadline delays a call, and the same producer confirms it.
        """
        producer = broker._publisher.batching._producer
        own_kafka.freeze()
        thaw = threading.Timer(0.15, own_kafka.thaw)
        thaw.start()

        assert (None, True) == (publish(broker)[0], broker._publisher.batching._producer is producer)
        thaw.join()

    def test_publishing_works_again_after_the_broker_has_forgotten_everything(self, own_kafka, broker):
        """
        Killed and started empty, the broker knows no topic and no producer; two seconds later it confirms.
        """
        own_kafka.stop()
        error, took = publish(broker, timeout=1)
        own_kafka.start()

        assert BACK_IN > seconds_until_it_works(broker)
        assert isinstance(error, BrokerUnavailable)
        assert 1 + LATE > took

    def test_the_way_back_is_found_however_long_the_outage(self, own_kafka, broker):
        """
        Attempts to connect do not become rare: a broker that was away for long is found as soon as it is back.
        """
        own_kafka.stop()
        until = time.monotonic() + 8
        while time.monotonic() < until:
            publish(broker, timeout=0.5)
        own_kafka.start()

        assert BACK_IN > seconds_until_it_works(broker)


class KafkaProcesses:
    broker_class: ClassVar[Any]
    quick_groups: ClassVar[Mapping[str, Any]]
    refused: ClassVar[str]
    #: What logs that a connection was refused, and how many children there are.
    logger: ClassVar[str]
    children: ClassVar[int]

    def run(self, script: str, *arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
        """Run a script that knows the broker's class as `Broker`."""
        known = f"from {self.broker_class.__module__} import {self.broker_class.__name__} as Broker\n"
        return run(known + textwrap.dedent(script), *arguments)

    def test_a_process_whose_broker_is_gone_leaves_in_time(self):
        """
        An unreachable broker holds nobody up at exit, and there is no traceback.
        """
        completed, took = self.run(
            """
            import logging, sys
            from cqrs_sync.errors import PublishFailed
            from cqrs_sync.testing.contracts.broker import message
            logging.getLogger(sys.argv[2]).setLevel(logging.CRITICAL)
            try:
                Broker(sys.argv[1]).publish([message("orders")], timeout=0.5)
            except PublishFailed as error:
                print(error)
            """,
            f"127.0.0.1:{free_port()}",
            self.logger,
        )

        assert (0, "") == (completed.returncode, completed.stderr)
        assert self.refused in completed.stdout
        assert 20 > took

    def test_connecting_imports_nothing(self, kafka_servers, kafka_topic):
        """
        A child that is forked while a thread imports a module waits for that import for ever: there must be none.
        """
        completed, _ = self.run(
            """
            import json, sys
            from cqrs_sync.testing.contracts.broker import message
            servers, topic, quick = sys.argv[1:]
            before = set(sys.modules)
            broker = Broker(servers, consumer_config=json.loads(quick))
            broker.publish([message(topic, key="k")], timeout=10)
            broker.subscribe(topic, group="g").close()
            broker.close()
            assert set(sys.modules) == before, set(sys.modules) - before
            """,
            kafka_servers,
            kafka_topic,
            json.dumps(self.quick_groups),
        )

        assert (0, "") == (completed.returncode, completed.stderr)

    @pytest.mark.slow
    def test_children_publish_and_leave(self, kafka_servers, kafka_topic):
        """
        Forked after the broker was used, each child publishes and exits like any program within five seconds;
        the parent goes on publishing.
        """
        completed, _ = self.run(
            """
            import os, sys, time
            from cqrs_sync.testing.contracts.broker import message
            servers, topic, children = sys.argv[1:]
            broker = Broker(servers)
            broker.publish([message(topic, b"parent")], timeout=10)
            slowest = 0
            for number in range(int(children)):
                child = os.fork()
                if not child:
                    broker.publish([message(topic, b"%d" % number)], timeout=4)
                    sys.exit()
                started = time.monotonic()
                _, status = os.waitpid(child, 0)
                slowest = max(slowest, time.monotonic() - started)
                assert status == 0, status
                broker.publish([message(topic, b"parent")], timeout=10)
            broker.close()
            assert slowest < 5, slowest
            """,
            kafka_servers,
            kafka_topic,
            str(self.children),
        )

        assert (0, "") == (completed.returncode, completed.stderr)
        bodies = bodies_in(kafka_servers, kafka_topic)
        assert {b"%d" % number for number in range(self.children)} == set(bodies) - {b"parent"}
        assert self.children + 1 == bodies.count(b"parent")

    def test_children_come_and_go_while_threads_publish(self, kafka_servers, kafka_topic):
        """
        A fork at any moment, even while a producer is made, leaves neither parent nor child hanging.

        A child that is forked while its parent looks up a host inherits a lock of the C library that nobody will
        ever release, and is told that there is no broker: one of many, and in time.
        """
        completed, _ = self.run(
            """
            import os, sys, threading
            from cqrs_sync.errors import PublishFailed
            from cqrs_sync.testing.contracts.broker import message
            servers, topic = sys.argv[1:]
            broker = Broker(servers)
            enough, failed, statuses = threading.Event(), [], []
            def publish_on():
                while not enough.is_set():
                    try:
                        broker.publish([message(topic)], timeout=20)
                    except Exception as error:
                        failed.append(error)
            threads = [threading.Thread(target=publish_on) for _ in range(4)]
            for thread in threads: thread.start()
            for number in range(12):
                child = os.fork()
                if not child:
                    try:
                        broker.publish([message(topic, b"%d" % number)], timeout=10)
                        status = 0
                    except PublishFailed:
                        status = 3
                    except BaseException:
                        status = 4
                    os._exit(status)
                statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            enough.set()
            for thread in threads: thread.join()
            broker.close()
            assert not failed, failed
            assert statuses.count(0) >= 10 and {0, 3} >= set(statuses), statuses
            """,
            kafka_servers,
            kafka_topic,
        )

        assert (0, "") == (completed.returncode, completed.stderr)

    def test_a_process_that_leaves_without_closing_has_lost_nothing(self, kafka_servers, kafka_topic):
        """
        What `publish` returned for is there, and leaving is quick and quiet.
        """
        completed, took = self.run(
            """
            import sys
            from cqrs_sync.testing.contracts.broker import message
            servers, topic = sys.argv[1:]
            Broker(servers).publish([message(topic, b"%d" % number) for number in range(500)], timeout=10)
            """,
            kafka_servers,
            kafka_topic,
        )

        assert (0, "") == (completed.returncode, completed.stderr)
        assert {b"%d" % number for number in range(500)} == set(bodies_in(kafka_servers, kafka_topic))
        assert 25 > took

    def test_a_broker_nobody_refers_to_ends_its_thread(self, kafka_servers, kafka_topic):
        """
        A process that makes brokers and forgets them does not fill up with threads.
        """
        completed, _ = self.run(
            """
            import gc, sys, threading, time
            from cqrs_sync.testing.contracts.broker import message
            servers, topic = sys.argv[1:]
            for _ in range(3):
                Broker(servers).publish([message(topic)], timeout=10)
            gc.collect()
            until = time.monotonic() + 30
            while threading.active_count() > 1:
                assert time.monotonic() < until, threading.enumerate()
            """,
            kafka_servers,
            kafka_topic,
        )

        assert (0, "") == (completed.returncode, completed.stderr)

    def test_closing_while_others_publish_ends_them_in_time(self, kafka_servers, kafka_topic):
        """
        A thread that is publishing when the broker is closed gets its confirmation or an error of ours.
        """
        broker = self.broker_class(kafka_servers)
        broker.publish([message(kafka_topic)], timeout=10)
        results: list[object] = []

        def publish_on() -> None:
            while True:
                try:
                    broker.publish([message(kafka_topic)], timeout=5)
                except (Closed, PublishFailed) as error:
                    results.append(error)
                    return

        threads = [threading.Thread(target=publish_on) for _ in range(8)]
        for thread in threads:
            thread.start()
        started = time.monotonic()
        broker.close(timeout=3)
        took = time.monotonic() - started
        for thread in threads:
            thread.join(10)

        assert 8 == len(results)
        assert 3 + LATE > took


class KafkaReceiving:
    broker_class: ClassVar[Any]
    #: Options with which a group misses a member soon.
    quick_groups: ClassVar[Mapping[str, Any]]

    def test_what_is_unfinished_goes_to_the_next_member(self, group, broker, topic):
        """
        Whatever the order of finishing: the first unfinished message and all after it are delivered again.
        """
        with broker.subscribe(topic, group=group) as deliveries:
            publish_texts(broker, topic, b"1", b"2", b"3", b"4")
            first, _, third, _ = receive(deliveries, 4, settle=False)
            third.ack()
            first.ack()

        with broker.subscribe(topic, group=group) as deliveries:
            assert [b"2", b"3", b"4"] == bodies(receive(deliveries, 3))
        with broker.subscribe(topic, group=group) as deliveries:
            publish_texts(broker, topic, b"5")
            assert [b"5"] == bodies(receive(deliveries, 1))

    def test_a_message_that_is_given_back_comes_first(self, group, broker, topic):
        """
        A nack puts a message back at its place, as often as it takes; settling it twice does nothing.
        """
        with broker.subscribe(topic, group=group) as deliveries:
            publish_texts(broker, topic, b"1", b"2")
            for _ in range(3):
                delivery = receive(deliveries, 1, settle=False)[0]
                assert b"1" == delivery.message.body
                delivery.nack()
                delivery.ack()
            assert [b"1", b"2"] == bodies(receive(deliveries, 2))

    @pytest.mark.parametrize("topics", [(), ("no spaces, please",), (None,)])
    def test_subscribing_to_no_topic_or_an_illegal_one_is_an_error(self, broker, topics):
        """
        What cannot be a topic is refused as a wrong configuration.
        """
        with pytest.raises(ConfigurationError, match=r"(?i)topic"):
            broker.subscribe(*topics, group="g")

    def test_a_subscription_outlives_an_outage(self, group, kafka_behind_proxy):
        """
        After the path was cut and is there again, what was published meanwhile is received.
        """
        server, proxy = kafka_behind_proxy
        broker = self.broker_class(server.servers, consumer_config=self.quick_groups)
        deliveries = broker.subscribe("orders", group=group)
        publish_texts(broker, "orders", b"1")
        receive(deliveries, 1)

        proxy.cut()
        eventually(lambda: is_unreachable(deliveries), timeout=15)
        proxy.restore()
        eventually(lambda: not is_unreachable(deliveries), timeout=15)
        publish_texts(broker, "orders", b"2")

        assert [b"2"] == bodies(receive(deliveries, 1))
        deliveries.close()
        broker.close()
