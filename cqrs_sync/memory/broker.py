"""A broker in memory, and the reference for real ones: groups, order per key, retries and dead letters."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import attrs

from cqrs_sync.broker import (
    Delivery,
    Group,
    GroupBacklog,
    IncomingMessage,
    OutgoingMessage,
    Subscription,
    TopologyItem,
    check_group,
)
from cqrs_sync.errors import ClosedError, ConfigurationError, DeliveryError, MessageRejected, PublishFailed
from cqrs_sync.lifecycle import reset_in_child


@attrs.define(eq=False)
class GroupQueues:
    """The messages of a group, guarded by the broker's lock."""

    #: By topic.
    by_topic: dict[str, deque[IncomingMessage]] = attrs.field(factory=dict)
    #: With the moment each is due, by `time.monotonic`, the earliest first.
    delayed: list[tuple[float, IncomingMessage]] = attrs.field(factory=list)
    #: Delayed messages that are due, of all topics.
    retries: deque[IncomingMessage] = attrs.field(factory=deque)
    dead: deque[IncomingMessage] = attrs.field(factory=deque)
    #: How often each message was delivered and given back, by identity.
    returned: Counter[int] = attrs.field(factory=Counter)
    #: The subscription that has unsettled messages of a topic and key.
    holders: dict[tuple[str, str], MemorySubscription] = attrs.field(factory=dict)


class MemoryBroker:
    """
    A broker for tests, demos and single processes: messages live as long as the process.

    `published` has the newest `keep` messages, in order. While `fail_with` is an error, every publish fails with it.
    Without `topics` every topic exists; otherwise other topics are refused, as a real broker does.
    """

    def __init__(self, *, topics: Sequence[str] | None = None, max_bytes: int = 1_048_576, keep: int = 100_000) -> None:
        self.published: deque[OutgoingMessage] = deque(maxlen=keep)
        self.fail_with: DeliveryError | None = None
        self._topics = None if topics is None else frozenset(topics)
        self._max_bytes = max_bytes
        self._groups: dict[str, GroupQueues] = {}
        self._closed = False
        self._changed = threading.Condition()
        reset_in_child(self)

    def publish(self, messages: Sequence[OutgoingMessage], /, *, timeout: float | None = None) -> None:
        """Publish a batch. Each message is confirmed at once."""
        del timeout
        failures: list[tuple[OutgoingMessage, DeliveryError]] = []
        with self._changed:
            self._check_open()
            for message in messages:
                error = self._refusal(message)
                if error is None:
                    self._enqueue(message)
                else:
                    failures.append((message, error))
            self._changed.notify_all()
        if failures:
            raise PublishFailed(failures)

    def subscribe(self, group: Group, /) -> MemorySubscription:
        """Receive what is published to the group's topics from now on, and what it has deferred."""
        check_group(group)
        if self._topics is not None and (missing := set(group.topics) - self._topics):
            raise ConfigurationError(f"there is no topic {min(missing)!r}")
        with self._changed:
            self._check_open()
            queues = self._queues(group.name)
            for topic in group.topics:
                queues.by_topic.setdefault(topic, deque())
        return MemorySubscription(self._changed, queues, group.topics, group.name, ordered=group.ordered)

    def defer(
        self, messages: Sequence[IncomingMessage], group: Group, /, *, after: float, timeout: float | None = None
    ) -> None:
        """Keep messages for the group, with their notes, for `after` seconds."""
        del timeout
        if after not in {0, *group.delays}:
            known = ", ".join(f"{delay:g}" for delay in group.delays) or "none"
            raise ValueError(f"{group.name} has no delay of {after:g} s, only: {known}")
        due = time.monotonic() + after
        with self._kept(messages, group) as queues:
            queues.delayed.extend((due, message) for message in messages)
            queues.delayed.sort(key=lambda each: each[0])

    def add_dead_letters(
        self, messages: Sequence[IncomingMessage], group: Group, /, *, timeout: float | None = None
    ) -> None:
        """Keep messages as dead letters of the group, with their notes."""
        del timeout
        with self._kept(messages, group) as queues:
            queues.dead.extend(messages)

    def read_dead_letters(self, group: Group, /) -> MemorySubscription:
        """Receive the group's dead letters, oldest first."""
        with self._changed:
            self._check_open()
            dead_letters = GroupQueues({"": self._queues(group.name).dead})
        return MemorySubscription(self._changed, dead_letters, [""], f"{group.name} (dead)", ordered=False)

    def backlog(self, group: Group, /) -> GroupBacklog:
        """Count the messages that wait for the group."""
        with self._changed:
            queues = self._queues(group.name)
            waiting = {topic: len(queues.by_topic.get(topic, ())) for topic in group.topics}
            return GroupBacklog(waiting, len(queues.delayed) + len(queues.retries), len(queues.dead))

    def inspect_topology(self, group: Group, /) -> Sequence[TopologyItem]:
        """Return the group's queues; create nothing."""
        with self._changed:
            there = self._queues(group.name).by_topic
            return [
                TopologyItem("queue", f"{group.name}: {topic}", state="there" if topic in there else "missing")
                for topic in group.topics
            ]

    def apply_topology(self, group: Group, /) -> Sequence[TopologyItem]:
        """Create the group's queues."""
        self.subscribe(group).close()
        return self.inspect_topology(group)

    def close(self, timeout: float = 5.0) -> None:
        """Refuse further messages."""
        del timeout
        with self._changed:
            self._closed = True

    def reset_in_child(self) -> None:
        """Replace the lock: another thread of the parent may have held it."""
        self._changed = threading.Condition()

    @contextmanager
    def _kept(self, messages: Sequence[IncomingMessage], group: Group) -> Iterator[GroupQueues]:
        """Give the queues of a group that keeps messages."""
        with self._changed:
            self._check_open()
            if self.fail_with is not None:
                raise PublishFailed([(_outgoing(message), self.fail_with) for message in messages])
            yield self._queues(group.name)
            self._changed.notify_all()

    def _queues(self, group: str) -> GroupQueues:
        return self._groups.setdefault(group, GroupQueues())

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this MemoryBroker is closed")

    def _refusal(self, message: OutgoingMessage) -> DeliveryError | None:
        if self.fail_with is not None:
            return self.fail_with
        if self._topics is not None and message.topic not in self._topics:
            return MessageRejected(f"there is no topic {message.topic!r}")
        if len(message.body) > self._max_bytes:
            return MessageRejected(f"the body has {len(message.body)} bytes, {self._max_bytes} are allowed")
        return None

    def _enqueue(self, message: OutgoingMessage) -> None:
        self.published.append(message)
        incoming = IncomingMessage(
            topic=message.topic,
            body=message.body,
            content_type=message.content_type,
            key=message.key,
            attributes=dict(message.attributes),
        )
        for group in self._groups.values():
            if message.topic in group.by_topic:
                group.by_topic[message.topic].append(incoming)


def _outgoing(message: IncomingMessage) -> OutgoingMessage:
    known: Mapping[str, str] = message.attributes
    return OutgoingMessage(known.get("id", ""), message.topic, known.get("type", ""), message.body)


class MemorySubscription(Subscription):
    """One subscription of a group; the subscriptions of a group share its messages."""

    def __init__(
        self, changed: threading.Condition, queues: GroupQueues, topics: Sequence[str], name: str, *, ordered: bool
    ) -> None:
        self.name = name
        self._changed = changed
        self._queues = queues
        self._topics = topics
        self._ordered = ordered
        self._unsettled: dict[int, MemoryDelivery] = {}

    def receive(self, timeout: float) -> Delivery | None:
        """Wait at most `timeout` seconds for the next message; return None if none came."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                now = time.monotonic()
                for queue, message in self._candidates(now):
                    return self._deliver(message, queue)
                wait = deadline - now
                if self._queues.delayed:
                    wait = min(wait, max(0.0, self._queues.delayed[0][0] - now))
                if deadline <= now:
                    return None
                self._changed.wait(wait)

    def close(self) -> None:
        """Give unsettled messages back to the group."""
        with self._changed:
            for delivery in reversed(list(self._unsettled.values())):
                self._requeue(delivery)
            self._unsettled.clear()
            self._changed.notify_all()

    def settle(self, delivery: MemoryDelivery, *, done: bool) -> None:
        """Settle a delivery. A second call does nothing."""
        with self._changed:
            if self._unsettled.pop(id(delivery), None) is None:
                return
            if done:
                self._queues.returned.pop(id(delivery.message), None)
                self._release_key(delivery.message)
            else:
                self._requeue(delivery)
            self._changed.notify_all()

    def is_unsettled(self, delivery: MemoryDelivery) -> bool:
        """Tell whether a delivery is not settled yet."""
        return id(delivery) in self._unsettled

    def _candidates(self, now: float) -> Iterator[tuple[deque[IncomingMessage], IncomingMessage]]:
        """Yield what may be delivered here: of each key the first message, unless another subscription has the key."""
        delayed = self._queues.delayed
        while delayed and delayed[0][0] <= now:
            self._queues.retries.append(delayed.pop(0)[1])
        queues = [self._queues.by_topic[topic] for topic in self._topics if topic in self._queues.by_topic]
        for queue in (*queues, self._queues.retries):
            passed: set[str | None] = set()
            for message in queue:
                if message.key not in passed and self._may_receive(message):
                    yield queue, message
                passed.add(message.key)

    def _may_receive(self, message: IncomingMessage) -> bool:
        if not self._ordered or message.key is None:
            return True
        return self._queues.holders.get((message.topic, message.key), self) is self

    def _deliver(self, message: IncomingMessage, queue: deque[IncomingMessage]) -> Delivery:
        # By identity: equal messages are different ones.
        del queue[next(index for index, each in enumerate(queue) if each is message)]
        if self._ordered and message.key is not None:
            self._queues.holders[message.topic, message.key] = self
        delivery = MemoryDelivery(message, queue, self, self._queues.returned[id(message)])
        self._unsettled[id(delivery)] = delivery
        return delivery

    def _release_key(self, message: IncomingMessage) -> None:
        """Let other subscriptions have a key when no unsettled message of it is left here."""
        if message.key is not None and not any(
            (each.message.topic, each.message.key) == (message.topic, message.key) for each in self._unsettled.values()
        ):
            self._queues.holders.pop((message.topic, message.key), None)

    def _requeue(self, delivery: MemoryDelivery) -> None:
        self._queues.returned[id(delivery.message)] += 1
        delivery.queue.appendleft(delivery.message)
        if delivery.message.key is not None:
            self._queues.holders.pop((delivery.message.topic, delivery.message.key), None)


@attrs.define(eq=False)
class MemoryDelivery:
    """A message from a MemoryBroker."""

    message: IncomingMessage
    queue: deque[IncomingMessage]
    _subscription: MemorySubscription
    redeliveries: int

    @property
    def origin(self) -> str:
        """The name of the group."""
        return self._subscription.name

    @property
    def is_stale(self) -> bool:
        """Whether it is settled, or was given back when its subscription was closed."""
        return not self._subscription.is_unsettled(self)

    def ack(self) -> None:
        """The message is done: do not deliver it again."""
        self._subscription.settle(self, done=True)

    def nack(self) -> None:
        """The message is not done: deliver it again."""
        self._subscription.settle(self, done=False)
