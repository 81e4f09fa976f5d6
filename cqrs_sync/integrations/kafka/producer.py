"""kafka-python's producer, and the few places where we reach below its public surface."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from kafka import KafkaProducer

from cqrs_sync.integrations.kafka.client import Network


class TopicNotKnown(Exception):
    """The producer would have to ask the broker about this topic first."""


class SharedProducer(KafkaProducer):  # type: ignore[misc]  # kafka-python has no types
    """
    A KafkaProducer whose `send` never waits and that can be let go of at any time.

    kafka-python's own waits up to `max_block_ms` in `send` where a topic is new, and
    its `close` raises instead of closing while records are stuck. Making one blocks
    until a broker has answered, `bootstrap_timeout_ms` at most.

    `lost` is called, in a thread of kafka-python, when a topic turns out to be another one
    than before: the broker has forgotten this producer along with it, and kafka-python
    would offer the same record again and again, under an id that nobody knows.
    """

    def __init__(self, network: Network, lost: Callable[[SharedProducer, str], None]) -> None:
        #: When the broker last told about its topics, by `time.monotonic`.
        self.refreshed_at = time.monotonic()
        self._network = network
        self._lost = lost
        self._topic_ids: dict[str, Any] = {}
        try:
            super().__init__(**network.options)
        except BaseException as error:
            network.hang_up()
            raise network.explain(error) from error
        network.completed()
        network.cluster.add_listener(self._refreshed)
        # The doctor closes it when the interpreter leaves.
        self._unregister_cleanup()

    def knows(self, topic: str) -> bool:
        """Tell whether records can be sent to this topic right now."""
        return self._metadata.partitions_for_topic(topic) is not None

    def await_topic(self, topic: str, timeout: float) -> None:
        """
        Wait at most `timeout` seconds until the broker has told about this topic.

        Raises KafkaTimeoutError, ValueError for an illegal name, and what the broker answers.
        """
        super()._wait_on_metadata(topic, timeout * 1000)

    def forget_topic(self, topic: str) -> None:
        """Ask no more about a topic that does not exist; kafka-python would for ever, ten times a second."""
        # In the thread that reads the set; a RuntimeError says that it has ended.
        with contextlib.suppress(RuntimeError):
            self._network.client._manager.call_soon(self._metadata._topics.discard, topic)  # noqa: SLF001

    def close(self, timeout: float | None = None, null_logger: bool = False) -> None:
        """
        Send what is waiting, for `timeout` seconds at most, fail the rest, and end.

        A second call does nothing.
        """
        del null_logger  # kafka-python would silence its module for the rest of the process
        if getattr(self, "_closed", True):
            return
        self._closed = True
        self._sender.initiate_close()
        self._sender.join(timeout)
        if self._sender.is_alive():
            self._sender.force_close()

    def abandon(self) -> None:
        """End without sending anything more; what is under way fails."""
        self._closed = True
        self._sender.force_close()

    def disown(self) -> None:
        """In a forked child: this is the parent's. Its descriptors are taken care of by Descriptors."""
        self._closed = True

    def _wait_on_metadata(self, topic: str, max_wait_ms: float) -> None:
        # Called by `send`, for a topic that is not known.
        del max_wait_ms
        raise TopicNotKnown(topic)

    def _refreshed(self, cluster: Any) -> None:
        self.refreshed_at = time.monotonic()
        for topic in cluster.topics():
            identity = cluster.topic_id(topic)
            # Brokers before 2.8 tell none.
            if identity is not None and self._topic_ids.setdefault(topic, identity) != identity:
                self._topic_ids[topic] = identity
                self._lost(self, f"the topic {topic!r} was made anew")
