"""kafka-python's producer: a `send` that never waits, topics that are not known yet, and an end in time."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from kafka import KafkaProducer
from kafka.errors import IllegalStateError, KafkaTimeoutError

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.errors import BrokerUnavailable, ConfigurationError, DeliveryError, MessageRejected
from cqrs_sync.integrations.kafka.client import KafkaConnections, connection_error, delivery_error, is_final, is_passing
from cqrs_sync.kafka.client import (
    ErrorAction,
    HeaderList,
    OnFailure,
    ProducerClient,
    ProducerConnector,
    ProducerRetired,
    RecordBatch,
    TopicNotKnown,
)
from cqrs_sync.lifecycle import reset_in_child

logger: logging.Logger = logging.getLogger(__name__)

#: Seconds in which a broker that does not create topics may tell about one that was created a moment ago.
_NEW_TOPIC = 1.0
#: Seconds between two looks at a topic while others are missing as well.
_LOOK = 0.1


class KafkaPythonProducer(KafkaProducer, ProducerClient):  # type: ignore[misc]  # kafka-python has no types
    """
    A KafkaProducer whose `send` never waits, and that ends at any time.

    kafka-python's own waits up to `max_block_ms` in `send` for a new topic, and its `close` raises instead of closing
    while records are stuck. Making one blocks until a broker has answered, `bootstrap_timeout_ms` at most.

    It fails when a topic turns out to be another one than before: the broker has forgotten this producer along with
    the topic, and kafka-python would offer the same record again and again, under an id that the broker does not know.
    """

    #: After any failure it may never send again.
    replaced_after_errors = True

    def __init__(self, connections: KafkaConnections, on_failure: OnFailure) -> None:
        #: When the broker last told about its topics, by `time.monotonic`.
        self._refreshed_at = time.monotonic()
        self._connections = connections
        self._on_failure = on_failure
        self._topic_ids: dict[str, Any] = {}
        try:
            super().__init__(**connections.options)
        except BaseException as error:
            connections.close()
            raise connections.explain(error) from error
        connections.complete()
        connections.cluster.add_listener(self._refreshed)
        # The supervisor closes it when the interpreter leaves.
        self._unregister_cleanup()
        reset_in_child(self)

    def new_batch(self, timeout: float) -> RecordBatch:
        del timeout
        return _FutureBatch(self)

    def knows(self, topic: str) -> bool:
        """Tell whether records can be sent to this topic right now."""
        return self._metadata.partitions_for_topic(topic) is not None

    def find_topics(self, topics: Collection[str], timeout: float) -> Iterator[tuple[str, DeliveryError | None]]:
        """Wait for all topics together: one that does not exist holds up no other."""
        started = time.monotonic()
        until = started + timeout
        missing = list(topics)
        look = 0.0
        while missing:
            for topic in list(missing):
                error: DeliveryError | None = None
                try:
                    super()._wait_on_metadata(topic, max(0.0, min(until - time.monotonic(), look)) * 1000)
                except KafkaTimeoutError:
                    error = self._give_up_topic(topic, started, until)
                    if error is None:
                        continue
                except Exception as vendor:  # noqa: BLE001 -- an illegal name, missing rights: it concerns this topic
                    error = delivery_error(vendor)
                missing.remove(topic)
                yield topic, error
            look = _LOOK

    def action_after(self, error: Any) -> ErrorAction:
        # What is not passing may be the error of another record: an idempotent producer fails all it has in flight.
        return ErrorAction.FAIL if is_passing(error) else ErrorAction.SEND_ALONE

    delivery_error: Callable[[BaseException], DeliveryError] = staticmethod(delivery_error)

    def finish(self, timeout: float) -> None:
        threading.Thread(target=self.close, args=(timeout,), name="cqrs-kafka-retire", daemon=True).start()

    def close(self, timeout: float | None = None, null_logger: bool = False) -> None:
        """Send what waits, for `timeout` seconds at most, fail the rest, and end. A second call does nothing."""
        del null_logger  # kafka-python would silence its module for the rest of the process
        if getattr(self, "_closed", True):
            return
        self._closed = True
        self._sender.initiate_close()
        self._sender.join(timeout)
        if self._sender.is_alive():
            self._sender.force_close()

    def abandon(self) -> None:
        """End without sending anything more; what is in flight fails."""
        self._closed = True
        self._sender.force_close()

    def reset_in_child(self) -> None:
        """Keep the parent's producer: collecting it would end it. KafkaConnections sees to its descriptors."""
        self._closed = True
        _inherited.append(self)

    def _wait_on_metadata(self, topic: str, max_wait_ms: float) -> None:
        # Called by `send` for a topic that is not known.
        del max_wait_ms
        raise TopicNotKnown(topic)

    def _give_up_topic(self, topic: str, started: float, until: float) -> DeliveryError | None:
        """Return what is wrong with a topic that the broker has not told about; None while that is not certain."""
        now = time.monotonic()
        waited = now - started
        if now < until and (self.config["allow_auto_create_topics"] or waited < _NEW_TOPIC):
            return None
        # kafka-python would ask about it without end, ten times a second. It reads the set in another thread, so it is
        # changed there; a RuntimeError says that the thread has ended.
        with contextlib.suppress(RuntimeError):
            self._connections.client._manager.call_soon(self._metadata._topics.discard, topic)  # noqa: SLF001
        if waited >= _NEW_TOPIC and self._refreshed_at > started:
            return MessageRejected(f"there is no topic {topic!r} on the broker: create it")
        return BrokerUnavailable(f"the broker has not told about the topic {topic!r} in time")

    def _refreshed(self, cluster: Any) -> None:
        self._refreshed_at = time.monotonic()
        for topic in cluster.topics():
            identity = cluster.topic_id(topic)
            # Brokers before 2.8 have no ids of topics.
            if identity is not None and self._topic_ids.setdefault(topic, identity) != identity:
                self._topic_ids[topic] = identity
                if not self._closed:
                    self._on_failure(self, f"the topic {topic!r} was created anew")


class KafkaPythonConnector(ProducerConnector):
    """Makes producers of kafka-python, which blocks until a broker has answered."""

    blocks = True

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._servers = ",".join(options["bootstrap_servers"])
        #: Those of the `connect` that waits.
        self._connections: KafkaConnections | None = None

    def connect(self, on_failure: OnFailure) -> KafkaPythonProducer:
        _warn_without_crc32c()
        self._connections = connections = KafkaConnections(self._options)
        try:
            return KafkaPythonProducer(connections, on_failure)
        finally:
            self._connections = None

    def cancel(self) -> None:
        connections = self._connections
        if connections is not None:
            connections.cancel()

    def reset_in_child(self) -> None:
        self._connections = None

    is_final: Callable[[BaseException | None], bool] = staticmethod(is_final)

    def unreachable(self, error: BaseException | None) -> BrokerUnavailable | ConfigurationError:
        connections = self._connections
        reason = (connections and connections.why) or error
        if reason is None:
            return BrokerUnavailable(f"kafka at {self._servers} cannot be reached in time")
        return connection_error(reason, self._servers)


class _FutureBatch(RecordBatch):
    def __init__(self, producer: KafkaPythonProducer) -> None:
        self._producer = producer
        self._futures: dict[int, Any] = {}

    def send(self, index: int, message: OutgoingMessage, key: bytes | None, headers: HeaderList) -> None:
        try:
            self._futures[index] = self._producer.send(message.topic, message.body, key, headers)
        except IllegalStateError as error:
            raise ProducerRetired from error
        except ValueError as error:
            # Between two looks of kafka-python's `send`, the broker has lost a topic it had.
            if self._producer.knows(message.topic):
                raise
            raise TopicNotKnown(message.topic) from error

    def wait(self, timeout: float) -> None:
        until = time.monotonic() + timeout
        for future in self._futures.values():
            if not future.is_done:
                try:  # noqa: SIM105 -- this costs least
                    future.get(max(0.0, until - time.monotonic()))
                except Exception:  # noqa: BLE001, S110 -- the future itself keeps what became of the record
                    pass

    def answers(self) -> dict[int, Any]:
        return {index: future.exception for index, future in self._futures.items() if future.is_done}


#: Producers of a parent process: collecting them would run their finalizers.
_inherited: list[KafkaPythonProducer] = []


@functools.cache
def _warn_without_crc32c() -> None:
    if importlib.util.find_spec("crc32c") is None:
        logger.warning("checksums in pure Python take half the time of publishing: pip install 'cqrs-sync[kafka]'")
