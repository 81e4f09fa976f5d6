"""Publishing while RabbitMQ, its connections or the network fail."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import attrs
import pytest

from cqrs_sync.errors import BrokerUnavailable, DeliveryError, PublishFailed
from cqrs_sync.integrations.rabbitmq import RabbitMQBroker
from cqrs_sync.testing.contracts.broker import message
from tests.servers.proxy import TcpProxy
from tests.servers.rabbitmq import OwnRabbitMQ, bound_queue, drained, proxied, via
from tests.waiting import eventually

# A node boots before a test and within it, each time in up to a minute and a half on a busy machine.
pytestmark = [pytest.mark.broker, pytest.mark.timeout(400)]

_MESSAGES = 4_000
_THREADS = 16
_TIMEOUT = 2.0
#: What a busy machine may add before a thread that is woken gets its turn.
_SLACK = 4.0


@attrs.define
class Ledger:
    """Every publish with its outcome, checked at the end."""

    confirmed: set[str] = attrs.field(factory=set)
    failed: dict[str, DeliveryError] = attrs.field(factory=dict)
    slowest: float = 0.0
    _lock: threading.Lock = attrs.field(factory=threading.Lock)
    #: The faults are over.
    calm: threading.Event = attrs.field(factory=threading.Event)

    def publish(self, broker: RabbitMQBroker, count: int) -> None:
        """Publish while there are faults, and `count` messages after the last one."""
        left = count
        while left > 0:
            left -= self.calm.is_set()
            sent = message("meetings")
            started = time.monotonic()
            error = None
            try:
                broker.publish([sent], timeout=_TIMEOUT)
            except PublishFailed as failure:
                [(_, error)] = failure.failures
            self._note(sent.id, error, time.monotonic() - started)

    def _note(self, identity: str, error: DeliveryError | None, took: float) -> None:
        with self._lock:
            self.slowest = max(self.slowest, took)
            if error is None:
                self.confirmed.add(identity)
            else:
                self.failed[identity] = error


@attrs.define
class Scene:
    """Sixteen threads publish through a proxy to a server of our own."""

    node: OwnRabbitMQ
    proxy: TcpProxy
    ledger: Ledger
    queue: str

    def after(self, confirmed: int, fault: Callable[[], object]) -> None:
        """Let the fault happen once so many messages are confirmed. More messages follow."""
        eventually(lambda: len(self.ledger.confirmed) >= confirmed, 120)
        fault()

    def verify(self) -> None:
        """Compare confirmed, failed and received messages when every thread is done."""
        arrived = {properties.message_id for properties, _ in drained(self.node.url, self.queue)}

        assert len(self.ledger.confirmed) >= _MESSAGES
        assert set() == self.ledger.confirmed - arrived
        assert {BrokerUnavailable} >= {type(error) for error in self.ledger.failed.values()}
        assert self.ledger.slowest <= _TIMEOUT + _SLACK
        assert self.proxy.accepted >= 2, "the connection was never made again"


@pytest.fixture
def publishing(own_rabbitmq: OwnRabbitMQ, exchange: str) -> Callable[[], contextlib.AbstractContextManager[Scene]]:
    """Start the threads; the end of the block waits for the last publish."""

    @contextlib.contextmanager
    def scene() -> Iterator[Scene]:
        with (
            bound_queue(own_rabbitmq.url, exchange, "meetings") as queue,
            proxied(own_rabbitmq.url) as proxy,
            contextlib.closing(
                RabbitMQBroker(via(proxy, own_rabbitmq.url), exchange=exchange, publish_timeout=_TIMEOUT)
            ) as broker,
        ):
            ledger = Ledger()
            threads = [
                threading.Thread(target=ledger.publish, args=(broker, _MESSAGES // _THREADS)) for _ in range(_THREADS)
            ]
            for thread in threads:
                thread.start()
            yield (scene := Scene(own_rabbitmq, proxy, ledger, queue))
            ledger.calm.set()
            for thread in threads:
                thread.join(180)
                assert not thread.is_alive(), f"only {len(ledger.confirmed)} messages are confirmed"
            scene.verify()

    return scene


@pytest.mark.slow
def test_a_broker_that_is_stopped_and_started_loses_nothing_that_was_confirmed(publishing) -> None:
    """B1, B2: unconfirmed messages are reported as failed, and no call exceeds its deadline."""
    with publishing() as scene:
        scene.after(2_000, scene.node.stop)
        eventually(lambda: len(scene.ledger.failed) > 0, 20)
        scene.node.start()

    assert len(scene.ledger.failed) > 0


@pytest.mark.slow
def test_a_broker_that_is_killed_loses_nothing_that_was_confirmed(publishing) -> None:
    """B1: a confirm means that the message is on disk."""
    with publishing() as scene:
        scene.after(2_000, scene.node.kill)
        scene.node.start()


@pytest.mark.slow
def test_connections_closed_by_the_server_cost_nothing(publishing) -> None:
    """B2: messages in flight are sent again within the deadline."""
    with publishing() as scene:
        for confirmed in (1_000, 3_000):
            scene.after(confirmed, scene.node.close_all_connections)

    assert {} == scene.ledger.failed


@pytest.mark.slow
def test_a_path_that_is_cut_for_a_moment_costs_nothing(publishing) -> None:
    """B2: connections are refused for a while, then publishing continues."""
    with publishing() as scene:
        for confirmed in (1_000, 2_000, 4_000):
            scene.after(confirmed, scene.proxy.cut)
            scene.proxy.restore()

    assert scene.proxy.accepted >= 4


@pytest.mark.slow
def test_a_path_that_is_cut_for_longer_than_the_deadline_fails_in_time(publishing) -> None:
    """B2: each unconfirmed call fails at its deadline."""
    with publishing() as scene:
        scene.after(2_000, scene.proxy.cut)
        eventually(lambda: len(scene.ledger.failed) >= _THREADS, 20)
        scene.proxy.restore()

    assert len(scene.ledger.failed) >= _THREADS


def test_a_broker_that_is_slow_to_confirm_keeps_its_connection(own_rabbitmq: OwnRabbitMQ, exchange: str) -> None:
    """B2: it answers other requests, so no message is sent again, however long the confirm takes."""
    with (
        bound_queue(own_rabbitmq.url, exchange, "meetings") as queue,
        proxied(own_rabbitmq.url) as proxy,
        contextlib.closing(
            RabbitMQBroker(via(proxy, own_rabbitmq.url), exchange=exchange, publish_timeout=0.5)
        ) as broker,
    ):
        broker.publish([message("meetings")], timeout=10)
        own_rabbitmq.suspend_queue(queue)
        publishing = threading.Thread(target=broker.publish, args=([message("meetings")],), kwargs={"timeout": 30})
        publishing.start()
        publishing.join(3.0)
        assert publishing.is_alive()
        own_rabbitmq.resume_queue(queue)
        publishing.join(30)

        assert 1 == proxy.accepted
        assert 2 == len(drained(own_rabbitmq.url, queue))


@pytest.mark.slow
def test_a_silent_path_fails_in_time_and_is_dropped(publishing) -> None:
    """B2: no heartbeat is needed to notice it; when the path is back, publishing works."""
    with publishing() as scene:
        scene.after(2_000, scene.proxy.freeze)
        eventually(lambda: scene.proxy.accepted >= 2, 20)
        scene.proxy.restore()

    assert len(scene.ledger.failed) >= _THREADS
