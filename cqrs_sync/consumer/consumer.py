"""The consumer: receives a group's messages and runs the mediator's event handlers with them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Self

import attrs

from cqrs_sync.broker import PREFETCH, Group, ReceivingBroker, Subscription
from cqrs_sync.consumer.inflight import InFlightMessage, KeyedQueue
from cqrs_sync.consumer.processor import (
    DEFAULT_RETRY,
    INLINE_LIMIT,
    HandlerCircuitBreaker,
    MessageCounts,
    MessageFailurePolicy,
    MessageProcessor,
    OnUnknownType,
)
from cqrs_sync.consumer.threads import Receiver, Scheduler
from cqrs_sync.errors import ClosedError, ConfigurationError, InboxUnavailable, check_above_zero
from cqrs_sync.mediator import Mediator
from cqrs_sync.messages import publication_of
from cqrs_sync.retry import RetryPolicy

logger: logging.Logger = logging.getLogger(__name__)


@attrs.frozen
class Health:
    """The health of a consumer."""

    #: It makes progress or has nothing to do. If not, replace its process.
    is_alive: bool
    #: It receives, or stands by for another consumer of its group.
    is_ready: bool
    #: What is wrong; empty if nothing is.
    trouble: str = ""
    #: Whether the thread that receives hangs.
    is_receiver_hung: bool = False


class Consumer:
    """
    Receives what is published to a group's topics, and handles it with the mediator's event handlers.

    It handles one message of each key at a time, in order, and up to `concurrency` messages at once. It acks a
    message after its handlers commit. A failed message is retried as `retry` says and then becomes a dead letter of
    the group. If the mediator has an inbox, each handler has its effect once.

    - `group`: the name that all consumers of a service share.
    - `topics`: by default those of the events that are bound.
    - `concurrency`: by default the number of threads of the mediator's pool. `start` warns if it is larger.
    - `ordered`: whether the group keeps the order of keys with any number of consumers. By default it does if an
      event that is bound has a key.
    - `prefetch`: how many messages are in flight at most.
    - `retry`: when and how often a failed message is attempted again.
    - `inline_limit`: delays of up to so many seconds pass in the consumer, where the key waits and keeps its order.
      For longer delays the broker keeps the message, and later messages of its key overtake it.
    - `on_unknown`: what happens to messages of types that are not bound here.
    - `max_crashes`: a message becomes a dead letter after it has killed so many processes.
    - `circuit_threshold`: after so many failures in a row one message at a time is tried until one succeeds.

    `start` starts its threads, `close` ends them, and a `with` block does both. Close it before the mediator.
    """

    def __init__(
        self,
        mediator: Mediator,
        group: str,
        *,
        topics: Sequence[str] = (),
        concurrency: int | None = None,
        ordered: bool | None = None,
        prefetch: int = PREFETCH,
        retry: RetryPolicy = DEFAULT_RETRY,
        inline_limit: float = INLINE_LIMIT,
        on_unknown: OnUnknownType = OnUnknownType.PARK,
        max_crashes: int = 5,
        circuit_threshold: int = 10,
    ) -> None:
        check_above_zero(prefetch=prefetch, max_crashes=max_crashes, circuit_threshold=circuit_threshold)
        if concurrency is not None:
            check_above_zero(concurrency=concurrency)
        #: The mediator whose handlers run. The consumer does not close it.
        self.mediator = mediator
        self.broker: ReceivingBroker = broker_of(mediator)
        policy = MessageFailurePolicy(retry, inline_limit, on_unknown, max_crashes)
        #: The group it is a member of, with the delays for which the broker keeps messages.
        self.group: Group = group_of(
            mediator, group, topics=topics, ordered=ordered, prefetch=prefetch, retry=retry, inline_limit=inline_limit
        )
        self._inbox = mediator.wiring.inbox
        self._queue = KeyedQueue(prefetch)
        self._circuit = HandlerCircuitBreaker(circuit_threshold)
        processor = MessageProcessor(
            mediator.receive, self._inbox, self.broker, self.group, self._queue, policy, self._circuit
        )
        #: How many messages had which end.
        self.counts: MessageCounts = processor.counts
        self._scheduler = Scheduler(self._queue, processor, mediator.wiring.threads, concurrency)
        self._receiver = Receiver(self._join, self._queue, self._scheduler.schedule)
        self._concurrency = concurrency
        self._finishing, self._receiving = StallDetector(), StallDetector()

    @property
    def received(self) -> int:
        """How many messages it has received."""
        return self._receiver.received

    @property
    def in_flight_count(self) -> int:
        """How many messages it has received and not settled."""
        return len(self._queue)

    @property
    def is_connected(self) -> bool:
        """Whether the broker answers, as far as is known. The group may still have to let it in, see `health`."""
        return self._receiver.is_connected

    @property
    def fatal_error(self) -> ConfigurationError | None:
        """The error that ended it, which no retry can mend."""
        return self._receiver.fatal_error

    def running(self) -> Sequence[InFlightMessage]:
        """Return the messages whose handlers run now."""
        return self._queue.running()

    def rejoin(self) -> None:
        """Make a new subscription soon. Messages in flight stay in flight; some may be delivered once more."""
        self._receiver.rejoin()

    def start(self) -> None:
        """Start to receive, in a thread of its own. It waits for a broker that cannot be reached."""
        if self.mediator.is_closed:
            raise ClosedError("the mediator of this consumer is closed")
        limit = self._scheduler.limit
        if self._concurrency is not None and self._concurrency > limit:
            logger.warning(
                "concurrency is %d but the mediator has %d thread(s), so %d message(s) are handled at a time: use "
                "bootstrap(threads=%d), and allow as many connections to its database",
                self._concurrency,
                limit,
                limit,
                self._concurrency,
            )
        self._receiver.start()

    def close(self, timeout: float = 25.0) -> bool:
        """
        Receive nothing more, finish and ack what runs within `timeout` seconds, and give back the rest.

        Returns False if a handler still runs: the broker delivers its message again.
        """
        deadline = time.monotonic() + timeout
        self._queue.close()
        self._receiver.request_stop(timeout)
        # To close a subscription may take longer than the timeout.
        has_ended = self._receiver.join(timeout + 2.0)
        self._scheduler.close(max(0.1, deadline - time.monotonic()))
        return has_ended and not self._queue.running()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def health(self, stall: float = 300.0) -> Health:
        """
        Check whether some message in flight has been finished, or has failed, within `stall` seconds.

        The callers measure that time: call it every few seconds. If no call came for long, because the process was
        suspended or its machine slept, the time starts anew.
        """
        is_idle = not self._queue or self._queue.is_idle()
        unfinished = self._finishing.seconds_unchanged(object() if is_idle else self._scheduler.processed, stall)
        is_ready, silent = self._receiver.has_joined, self._receiving.seconds_unchanged(self._receiver.alive_at, stall)
        if self._receiver.fatal_error is not None:
            return Health(is_alive=False, is_ready=False, trouble=str(self._receiver.fatal_error))
        if silent > stall:
            words = f"the receiver hangs for {silent:.0f} s"
            return Health(is_alive=False, is_ready=False, trouble=words, is_receiver_hung=True)
        if unfinished > stall:
            words = f"no message finished for {unfinished:.0f} s, {len(self._queue)} in flight"
            return Health(is_alive=False, is_ready=is_ready, trouble=words)
        trouble = self._circuit.trouble if is_ready else self._why_not_ready()
        return Health(is_alive=True, is_ready=is_ready, trouble=trouble)

    def _join(self) -> Subscription:
        if self._inbox is not None:
            # Without this, the first message would be blamed for a table that is missing.
            try:
                self._inbox.counted_attempts("0")
            except InboxUnavailable as error:
                raise InboxUnavailable(f"the inbox cannot be reached: {error}") from error
            self._inbox.release_connection()
        return self.broker.subscribe(self.group)

    def _why_not_ready(self) -> str:
        if self.is_connected:
            return "connected, but not a member of the group yet"
        trouble = self._receiver.last_trouble
        return f"cannot receive messages: {trouble}" if trouble else "not connected to the broker"


def group_of(
    mediator: Mediator,
    name: str,
    *,
    topics: Sequence[str] = (),
    ordered: bool | None = None,
    prefetch: int = PREFETCH,
    retry: RetryPolicy = DEFAULT_RETRY,
    inline_limit: float = INLINE_LIMIT,
) -> Group:
    """Return the group of a consumer of this mediator. Raises ConfigurationError if no event is bound."""
    if not isinstance(name, str):
        raise ConfigurationError(f"a consumer takes the name of its group and topics=[...], not {name!r}")
    if not name or not name.isprintable() or name != name.strip():
        raise ConfigurationError(f"a group needs a name, such as that of the service, not {name!r}")
    if isinstance(topics, str):
        raise ConfigurationError(f"the topics of a group are a list: write topics=[{topics!r}]")
    publications = [publication_of(event) for event in mediator.wiring.event_map.types.values()]
    found = tuple(topics) or tuple(sorted({each.topic for each in publications if each.topic}))
    if not found:
        raise ConfigurationError(
            "no notification event is bound to a handler, so there is nothing to consume: bind one in the event map "
            "that you give bootstrap, and import the module that does so"
        )
    if not all(found):
        raise ConfigurationError("a topic needs a name, not ''")
    keyed = any(each.key is not None for each in publications if each.topic in found) or bool(topics)
    delays = MessageFailurePolicy(retry, inline_limit).broker_delays
    return Group(name, found, delays, keyed if ordered is None else ordered, prefetch)


def broker_of(mediator: Mediator) -> ReceivingBroker:
    """Return the broker of a mediator. Raises ConfigurationError if it cannot consume."""
    broker = mediator.wiring.broker
    if not isinstance(broker, ReceivingBroker):
        what = "has no broker" if broker is None else f"has a {type(broker).__qualname__}, which only publishes"
        raise ConfigurationError(
            f"this mediator {what}: give bootstrap(broker=...) one that receives as well, such as RabbitMQBroker, "
            "KafkaBroker or MemoryBroker"
        )
    return broker


#: If more seconds than this, or this share of the stall, pass between two calls, the process may not have run.
_DOUBTFUL, _SHARE = 1.0, 0.1


class StallDetector:
    """
    Measures for how long a value has not changed. Any thread may call it.

    After a long time without a call the process was probably suspended, so the count restarts, once per value.
    Further long gaps count a little, so that a handler that holds the GIL is still detected.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._called_at = time.monotonic()
        self._value: object = None
        self._seconds = 0.0
        self._has_restarted = False

    def seconds_unchanged(self, value: object, stall: float) -> float:
        """Return for how many seconds it has had this value. Call it at least ten times within `stall` seconds."""
        doubtful = max(_DOUBTFUL, stall * _SHARE)
        with self._lock:
            now = time.monotonic()
            passed, self._called_at = now - self._called_at, now
            if value != self._value:
                self._value, self._seconds, self._has_restarted = value, 0.0, False
            elif passed <= doubtful:
                self._seconds += passed
            elif self._has_restarted:
                self._seconds += doubtful
            else:
                self._seconds, self._has_restarted = 0.0, True
            return self._seconds
