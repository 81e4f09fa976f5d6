"""The consumer: what a group receives is handled by the mediator's event handlers."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Self

import attrs

from cqrs_sync.broker import PREFETCH, Group, GroupBroker, Subscription
from cqrs_sync.consumer.inflight import InFlightMessage
from cqrs_sync.consumer.outage import Outage
from cqrs_sync.consumer.processor import Counts, MessageProcessor, Rules
from cqrs_sync.consumer.receiver import Receiver
from cqrs_sync.consumer.scheduler import Scheduler
from cqrs_sync.consumer.stall import StallDetector
from cqrs_sync.consumer.tiers import Tiers, Unknown
from cqrs_sync.errors import Closed, ConfigurationError, InboxUnavailable
from cqrs_sync.mediator import RequestMediator
from cqrs_sync.messages import publication_of

logger = logging.getLogger(__name__)


@attrs.frozen
class Health:
    """Whether a consumer is well."""

    #: It makes progress, or has nothing to do; where not, its process should be replaced.
    is_alive: bool
    #: It receives, or stands by for others of its group.
    is_ready: bool
    #: What is wrong, empty where nothing is.
    trouble: str = ""
    #: The thread that receives hangs.
    is_receiver_hung: bool = False


class Consumer:
    """
    Receives what is published to a group's topics, and handles it with the mediator's event handlers.

    Of each key one message at a time is handled, in order; others side by side, as many as `concurrency`. A message
    is settled when its handlers have committed. One that fails is tried again as `tiers` say, then
    it is a dead letter of the group. With an inbox in the mediator each handler has its effect once.

    - `group` names who receives: all consumers of a service.
    - `topics` are those of the events that are bound, unless others are named.
    - `concurrency` is the number of threads of the mediator's pool, or fewer; `start` warns of more.
    - `ordered`: whether the group keeps the order of keys, whatever the number of its consumers;
      it does where an event that is bound has a key.
    - `prefetch`: messages in hand at a time, at most.
    - `unknown`: what becomes of messages of types that are not bound here.
    - `crashes`: a message that was begun so often by processes that died is a dead letter.
    - `outage_after`: after so many failures in a row one message at a time is tried until one succeeds.

    `start` starts its threads, `stop` ends them, and a `with` block does both; whoever made it stops it, before
    the mediator is closed.
    """

    def __init__(
        self,
        mediator: RequestMediator,
        group: str,
        *,
        topics: Sequence[str] = (),
        concurrency: int | None = None,
        ordered: bool | None = None,
        prefetch: int = PREFETCH,
        tiers: Tiers | None = None,
        unknown: Unknown = Unknown.PARK,
        crashes: int = 5,
        outage_after: int = 10,
    ) -> None:
        check_above_zero(
            prefetch=prefetch,
            crashes=crashes,
            outage_after=outage_after,
            concurrency=1 if concurrency is None else concurrency,
        )
        #: Whose handlers are run; whoever made it closes it.
        self.mediator = mediator
        self.broker = broker_of(mediator)
        rules = Rules(tiers or Tiers(), unknown, crashes)
        #: Who receives, and where it sets things aside.
        self.group = group_of(
            mediator, group, topics=topics, ordered=ordered, prefetch=prefetch, delays=rules.tiers.delays
        )
        self.counts = Counts()
        self._events = mediator.events
        self._receiver = Receiver(self._join, prefetch)
        self._queue = self._receiver.queue
        self._outage = Outage(outage_after)
        processor = MessageProcessor(self, mediator.events, self._queue, rules, self._outage)
        threads = mediator.wiring.threads
        self._scheduler = Scheduler(self._queue, processor.process, threads, concurrency, self._outage)
        self._receiver.serve = self._scheduler.serve_what_waits
        self._concurrency = concurrency
        self._finishing, self._receiving = StallDetector(), StallDetector()

    @property
    def received(self) -> int:
        """How many messages came in."""
        return self._receiver.received

    @property
    def in_flight_count(self) -> int:
        """How many messages came in and are neither handled nor set aside."""
        return len(self._queue)

    @property
    def is_connected(self) -> bool:
        """Whether the broker answers, as far as is known; a group may still have to let it in, see `health`."""
        return self._receiver.is_connected

    @property
    def trouble(self) -> ConfigurationError | None:
        """Why it cannot go on, where no waiting mends that."""
        return self._receiver.hopeless

    def running(self) -> Sequence[InFlightMessage]:
        """Return the messages whose handlers run now."""
        return self._queue.running()

    def rejoin(self) -> None:
        """Receive through a new subscription, soon: what is in hand stays there, and comes once more at most."""
        self._receiver.rejoin()

    def start(self) -> None:
        """Begin to receive, in a thread of its own; a broker that cannot be reached is waited for."""
        if self._events.is_closed:
            raise Closed("the mediator of this consumer is closed")
        room = self._scheduler.room
        if self._concurrency is not None and self._concurrency > room:
            logger.warning(
                "concurrency is %d and the mediator has %d thread(s), so %d message(s) are handled at a time: give it "
                "bootstrap(threads=%d), and as many connections to its database",
                *(self._concurrency, room, room, self._concurrency),
            )
        self._receiver.start()

    def stop(self, timeout: float = 25.0) -> bool:
        """
        Receive nothing more, finish and settle what runs within `timeout` seconds, and give back the rest.

        False where a handler still runs: its message comes again, to somebody else.
        """
        until = time.monotonic() + timeout
        self._queue.close()
        self._receiver.end(until)
        # Closing a subscription may take longer than a broker that is well takes.
        ended = self._receiver.join(until + 2.0)
        self._scheduler.close(max(0.1, until - time.monotonic()))
        return ended and not self._queue.running()

    def _join(self) -> Subscription:
        inbox = self._events.wiring.inbox
        if inbox is not None:
            # A table that is not there would be the fault of whatever comes first.
            try:
                inbox.attempts_at("0")
            except InboxUnavailable as error:
                raise InboxUnavailable(f"the inbox cannot be reached: {error}") from error
            inbox.release_connection()
        return self.broker.join(self.group)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def health(self, stall: float = 300.0) -> Health:
        """
        Look whether it is well: of what is in hand something is finished, or has failed, within `stall` seconds.

        Those seconds are told by those who look: ask every few seconds. Where nobody could, for the process was
        stopped, or its machine slept, they begin anew.
        """
        is_idle = not self._queue or self._queue.waits()
        unfinished = self._finishing.look(object() if is_idle else self._scheduler.processed, stall)
        is_ready, silent = self._receiver.has_joined, self._receiving.look(self._receiver.alive_at, stall)
        if self._receiver.hopeless is not None:
            return Health(is_alive=False, is_ready=False, trouble=str(self._receiver.hopeless))
        if silent > stall:
            words = f"the receiver hangs for {silent:.0f} s"
            return Health(is_alive=False, is_ready=False, trouble=words, is_receiver_hung=True)
        if unfinished > stall:
            words = f"of {len(self._queue)} messages in hand none was finished for {unfinished:.0f} s"
            return Health(is_alive=False, is_ready=is_ready, trouble=words)
        return Health(is_alive=True, is_ready=is_ready, trouble=self._outage.trouble if is_ready else self._absence())

    def _absence(self) -> str:
        """Tell why nothing is received."""
        if self.is_connected:
            return "the group has not let it in yet"
        return f"nothing is received: {self._receiver.why}" if self._receiver.why else "not connected to the broker"


def group_of(
    mediator: RequestMediator,
    name: str,
    *,
    topics: Sequence[str] = (),
    ordered: bool | None = None,
    prefetch: int = PREFETCH,
    delays: Sequence[float] = (),
) -> Group:
    """Return the group that a consumer of this mediator is one of. Raises ConfigurationError where nothing is bound."""
    if not name or not name.isprintable() or name != name.strip():
        raise ConfigurationError(f"a group has a name, such as that of the service, not {name!r}")
    if isinstance(topics, str):
        topics = (topics,)
    publications = [publication_of(event) for event in mediator.wiring.event_map.types.values()]
    found = tuple(topics) or tuple(sorted({each.topic for each in publications if each.topic}))
    if not found:
        raise ConfigurationError(
            "no notification event is bound to a handler, so there is nothing to consume: bind one in the event map "
            "that bootstrap is given, and import the module that does so"
        )
    if not all(found):
        raise ConfigurationError("a topic has a name, not ''")
    keyed = any(each.key is not None for each in publications if each.topic in found) or bool(topics)
    return Group(name, found, tuple(delays), keyed if ordered is None else ordered, prefetch)


def broker_of(mediator: RequestMediator) -> GroupBroker:
    """Return the broker of a mediator. Raises ConfigurationError where it is none to consume from."""
    broker = mediator.wiring.broker
    if not isinstance(broker, GroupBroker):
        what = "has no broker" if broker is None else f"has a {type(broker).__qualname__}, which receives nothing"
        raise ConfigurationError(f"this mediator {what}: give bootstrap(broker=...) one to consume from")
    return broker


def check_above_zero(**numbers: int) -> None:
    """Raise ConfigurationError for what is no whole number above 0."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ConfigurationError(f"{name} must be a whole number above 0, not {number!r}")
