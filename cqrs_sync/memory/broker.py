"""Receiving from a broker in memory."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import attrs

from cqrs_sync.broker import Delivery, Group, GroupBacklog, IncomingMessage, OutgoingMessage, Piece, Subscription
from cqrs_sync.errors import Closed, ConfigurationError, DeliveryError, MessageRejected, PublishFailed
from cqrs_sync.lifecycle import reset_in_child


@attrs.define(eq=False)
class Places:
    """Where the messages of a group are; under the broker's lock."""

    #: By topic.
    queues: dict[str, deque[IncomingMessage]] = attrs.field(factory=dict)
    #: With the moment they are due, by `time.monotonic`, earliest first.
    delayed: list[tuple[float, IncomingMessage]] = attrs.field(factory=list)
    #: Those whose time is over, of whatever topic.
    again: deque[IncomingMessage] = attrs.field(factory=deque)
    dead: deque[IncomingMessage] = attrs.field(factory=deque)
    #: How often each message was taken and given back, by identity.
    returned: Counter[int] = attrs.field(factory=Counter)
    #: Who has messages of a key in hand.
    holders: dict[tuple[str, str], MemorySubscription] = attrs.field(factory=dict)


class MemorySubscription(Subscription):
    """The deliveries of one subscriber of a MemoryBroker."""

    def __init__(
        self, changed: threading.Condition, places: Places, topics: Sequence[str], name: str, *, ordered: bool
    ) -> None:
        self.name = name
        self._changed = changed
        self._places = places
        self._topics = topics
        self._ordered = ordered
        self._unsettled: dict[int, MemoryDelivery] = {}

    def receive(self, timeout: float) -> Delivery | None:
        """Wait at most `timeout` seconds for the next message; None where none came."""
        until = time.monotonic() + timeout
        with self._changed:
            while True:
                now = time.monotonic()
                for queue, message in self._candidates(now):
                    return self._hand_out(message, queue)
                wait = until - now
                if self._places.delayed:
                    wait = min(wait, max(0.0, self._places.delayed[0][0] - now))
                if until <= now:
                    return None
                self._changed.wait(wait)

    def close(self) -> None:
        """Give back what was not settled."""
        with self._changed:
            for delivery in reversed(list(self._unsettled.values())):
                self._give_back(delivery)
            self._unsettled.clear()
            self._changed.notify_all()

    def settle(self, delivery: MemoryDelivery, *, done: bool) -> None:
        """Settle a delivery once; a second time changes nothing."""
        with self._changed:
            if self._unsettled.pop(id(delivery), None) is None:
                return
            if done:
                self._places.returned.pop(id(delivery.message), None)
                self._let_go(delivery.message)
            else:
                self._give_back(delivery)
            self._changed.notify_all()

    def holds(self, delivery: MemoryDelivery) -> bool:
        """Tell whether a delivery is still to be settled."""
        return id(delivery) in self._unsettled

    def _candidates(self, now: float) -> Iterator[tuple[deque[IncomingMessage], IncomingMessage]]:
        """Yield what may be handed out: of each key the first one, and only to whom has its others."""
        delayed = self._places.delayed
        while delayed and delayed[0][0] <= now:
            self._places.again.append(delayed.pop(0)[1])
        for queue in (*(self._places.queues.get(topic, ()) for topic in self._topics), self._places.again):
            passed: set[str | None] = set()
            for message in queue:
                if message.key not in passed and self._may_have(message):
                    yield cast("deque[IncomingMessage]", queue), message
                passed.add(message.key)

    def _may_have(self, message: IncomingMessage) -> bool:
        if not self._ordered or message.key is None:
            return True
        return self._places.holders.get((message.topic, message.key), self) is self

    def _hand_out(self, message: IncomingMessage, queue: deque[IncomingMessage]) -> Delivery:
        for place, each in enumerate(queue):
            if each is message:
                del queue[place]
                break
        if self._ordered and message.key is not None:
            self._places.holders[message.topic, message.key] = self
        delivery = MemoryDelivery(message, queue, self, self._places.returned[id(message)])
        self._unsettled[id(delivery)] = delivery
        return delivery

    def _let_go(self, message: IncomingMessage) -> None:
        """Let others have messages of a key of which none is in hand here any more."""
        if message.key is not None and not any(
            (each.message.topic, each.message.key) == (message.topic, message.key) for each in self._unsettled.values()
        ):
            self._places.holders.pop((message.topic, message.key), None)

    def _give_back(self, delivery: MemoryDelivery) -> None:
        self._places.returned[id(delivery.message)] += 1
        delivery.queue.appendleft(delivery.message)
        if delivery.message.key is not None:
            self._places.holders.pop((delivery.message.topic, delivery.message.key), None)


class MemoryDelivery:
    """One message taken from a MemoryBroker."""

    def __init__(
        self, message: IncomingMessage, queue: deque[IncomingMessage], subscription: MemorySubscription, returned: int
    ) -> None:
        self.message = message
        self.queue = queue
        self.redeliveries = returned
        self._subscription = subscription

    @property
    def origin(self) -> str:
        """The group it was received by."""
        return self._subscription.name

    @property
    def lapsed(self) -> bool:
        """Whether it was settled, or given back when its subscription was closed."""
        return not self._subscription.holds(self)

    def ack(self) -> None:
        """It is done: never deliver it again."""
        self._subscription.settle(self, done=True)

    def nack(self) -> None:
        """It is not done: deliver it again."""
        self._subscription.settle(self, done=False)


class MemoryBroker:
    """
    A broker for tests, demos and single processes: messages live as long as the process.

    `published` holds every message in order, the newest `keep` of them. `fail_with`
    may be set to an error that the next publishes fail with. Topics exist when
    `topics` is None, else only those named: others are refused, as a real broker does.
    """

    def __init__(self, *, topics: Sequence[str] | None = None, max_bytes: int = 1_048_576, keep: int = 100_000) -> None:
        self.published: deque[OutgoingMessage] = deque(maxlen=keep)
        self.fail_with: DeliveryError | None = None
        self._topics = None if topics is None else frozenset(topics)
        self._max_bytes = max_bytes
        self._groups: dict[str, Places] = {}
        self._closed = False
        self._changed = threading.Condition()
        reset_in_child(self)

    def publish(self, messages: Sequence[OutgoingMessage], /, *, timeout: float | None = None) -> None:
        """Publish a batch; messages are confirmed as they are taken in."""
        del timeout
        failures: list[tuple[OutgoingMessage, DeliveryError]] = []
        with self._changed:
            self._check_open()
            for message in messages:
                error = self._refusal(message)
                if error is None:
                    self._take_in(message)
                else:
                    failures.append((message, error))
            self._changed.notify_all()
        if failures:
            raise PublishFailed(failures)

    def subscribe(self, *topics: str, group: str) -> MemorySubscription:
        """Receive what is published to these topics from now on."""
        return self._subscribe(Group(group, topics, ordered=False))

    def join(self, group: Group, /) -> MemorySubscription:
        """Receive what is published to the group's topics from now on, and what it has set aside for a while."""
        if self._topics is not None and (missing := set(group.topics) - self._topics):
            raise ConfigurationError(f"there is no topic {min(missing)!r}")
        return self._subscribe(group)

    def set_aside(
        self,
        messages: Sequence[IncomingMessage],
        group: Group,
        /,
        *,
        after: float | None,
        timeout: float | None = None,
    ) -> None:
        """Keep messages for the group, with their notes."""
        del timeout
        if after not in {None, 0, *group.delays}:
            raise ValueError(f"{group.name} has no delay of {after} s: {', '.join(map(str, group.delays)) or 'none'}")
        with self._changed:
            self._check_open()
            if self.fail_with is not None:
                raise PublishFailed([(_outgoing(message), self.fail_with) for message in messages])
            places = self._places(group.name)
            if after is None:
                places.dead.extend(messages)
            else:
                due = time.monotonic() + after
                places.delayed.extend((due, message) for message in messages)
                places.delayed.sort(key=lambda each: each[0])
            self._changed.notify_all()

    def dead(self, group: Group, /) -> MemorySubscription:
        """Receive the group's dead letters, oldest first."""
        with self._changed:
            self._check_open()
            letters = Places({"": self._places(group.name).dead})
        return MemorySubscription(self._changed, letters, [""], f"{group.name} (dead)", ordered=False)

    def backlog(self, group: Group, /) -> GroupBacklog:
        """Count what waits for the group."""
        with self._changed:
            places = self._places(group.name)
            waiting = {topic: len(places.queues.get(topic, ())) for topic in group.topics}
            return GroupBacklog(waiting, len(places.delayed) + len(places.again), len(places.dead))

    def topology(self, group: Group, /) -> Sequence[Piece]:
        """Look at what the group needs: its queues."""
        with self._changed:
            there = self._places(group.name).queues
            return [
                Piece("queue", f"{group.name}: {topic}", state="there" if topic in there else "missing")
                for topic in group.topics
            ]

    def build(self, group: Group, /) -> Sequence[Piece]:
        """Make the group's queues."""
        self.join(group).close()
        return self.topology(group)

    def close(self, timeout: float = 5.0) -> None:
        """Refuse further messages."""
        del timeout
        with self._changed:
            self._closed = True

    def reset_in_child(self) -> None:
        """Replace the lock, which another thread of the parent may have held."""
        self._changed = threading.Condition()

    def _subscribe(self, group: Group) -> MemorySubscription:
        with self._changed:
            self._check_open()
            places = self._places(group.name)
            for topic in group.topics:
                places.queues.setdefault(topic, deque())
        return MemorySubscription(self._changed, places, group.topics, group.name, ordered=group.ordered)

    def _places(self, group: str) -> Places:
        return self._groups.setdefault(group, Places())

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("this MemoryBroker is closed")

    def _refusal(self, message: OutgoingMessage) -> DeliveryError | None:
        if self.fail_with is not None:
            return self.fail_with
        if self._topics is not None and message.topic not in self._topics:
            return MessageRejected(f"there is no topic {message.topic!r}")
        if len(message.body) > self._max_bytes:
            return MessageRejected(f"the body has {len(message.body)} bytes, {self._max_bytes} are allowed")
        return None

    def _take_in(self, message: OutgoingMessage) -> None:
        self.published.append(message)
        incoming = IncomingMessage(
            topic=message.topic,
            body=message.body,
            content_type=message.content_type,
            key=message.key,
            attributes=dict(message.attributes),
        )
        for places in self._groups.values():
            if message.topic in places.queues:
                places.queues[message.topic].append(incoming)


def _outgoing(message: IncomingMessage) -> OutgoingMessage:
    known: Mapping[str, str] = message.attributes
    return OutgoingMessage(known.get("id", ""), message.topic, known.get("type", ""), message.body)
