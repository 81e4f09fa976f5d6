"""The consumer: what a group receives is handled by the mediator's event handlers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

import attrs

from cqrs_sync.consumer.group import broker_of, check_above_zero, group_of
from cqrs_sync.consumer.handling import Counts, Handling, Rules
from cqrs_sync.consumer.intake import Intake
from cqrs_sync.consumer.lanes import InHand
from cqrs_sync.consumer.outage import Outage
from cqrs_sync.consumer.tiers import Tiers, Unknown
from cqrs_sync.errors import Closed, ConfigurationError
from cqrs_sync.executor import Call, Executor
from cqrs_sync.mediator import RequestMediator
from cqrs_sync.threads import SameThread, ThreadPool

logger = logging.getLogger(__name__)

#: Seconds a handler takes on average from which on more threads are worth waking.
_WORTH_A_THREAD = 0.0005
#: Seconds after which a message that could be taken waits too long.
_WAITS_TOO_LONG = 0.005
#: A thread serves so many messages, or for so many seconds, until what is around calls is entered anew.
_SERVED, _SERVED_FOR = 200, 1.0


@attrs.frozen
class Health:
    """Whether a consumer is well."""

    #: It makes progress, or has nothing to do; where not, its process should be replaced.
    is_alive: bool
    #: It receives.
    is_ready: bool
    #: What is wrong, empty where nothing is.
    trouble: str = ""


class Consumer:
    """
    Receives what is published to a group's topics, and handles it with the mediator's event handlers.

    Of each key one message at a time is handled, in order; others side by side, as many as `concurrency`. A message
    is settled when its handlers have committed. One that fails is tried again as `tiers` say, then
    it is a dead letter of the group. With an inbox in the mediator each handler has its effect once.

    - `group` names who receives: all consumers of a service.
    - `topics` are those of the events that are bound, unless others are named.
    - `concurrency` is the number of threads of the mediator's pool, or fewer.
    - `ordered`: whether the group keeps the order of keys, whatever the number of its consumers;
      it does where an event that is bound has a key.
    - `prefetch`: messages in hand at a time, at most.
    - `unknown`: what becomes of messages of types that are not bound here.
    - `crashes`: a message that was begun so often by processes that died is a dead letter.
    - `outage_after`: after so many failures in a row one message at a time is tried until one succeeds.

    `start` starts its threads, `stop` ends them, and a `with` block does both; whoever made it stops it, before
    the mediator is closed.
    """

    def __init__(  # noqa: PLR0913 -- all but two are keywords
        self,
        mediator: RequestMediator,
        group: str,
        *,
        topics: Sequence[str] = (),
        concurrency: int | None = None,
        ordered: bool | None = None,
        prefetch: int = 200,
        tiers: Tiers | None = None,
        unknown: Unknown = Unknown.PARK,
        crashes: int = 5,
        outage_after: int = 10,
    ) -> None:
        for name, number in (("prefetch", prefetch), ("crashes", crashes), ("outage_after", outage_after)):
            check_above_zero(name, number)
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
        self._threads, self._own = _threads_of(mediator.events.dispatcher.threads)
        most = int(getattr(self._threads, "max_workers", 1))
        self._concurrency = most if concurrency is None else min(most, check_above_zero("concurrency", concurrency))
        self._outage = Outage(outage_after)
        self._intake = Intake(lambda: self.broker.join(self.group), prefetch, self._serve_what_waits)
        self._lanes = self._intake.lanes
        self._handling = Handling(
            mediator.events.receive,
            self._lanes,
            broker=self.broker,
            group=self.group,
            rules=rules,
            outage=self._outage,
            inbox=mediator.events.inbox,
            counts=self.counts,
        )
        self._lock = threading.Lock()
        self._serving = 0
        #: Seconds that handling one message takes, on average.
        self._average = 1.0
        self._attempts = 0
        self._seen = (0, time.monotonic())

    @property
    def received(self) -> int:
        """How many messages came in."""
        return self._intake.received

    @property
    def in_hand(self) -> int:
        """How many messages came in and are neither handled nor set aside."""
        return len(self._lanes)

    @property
    def trouble(self) -> ConfigurationError | None:
        """Why it cannot go on, where no waiting mends that."""
        return self._intake.hopeless

    def running(self) -> Sequence[InHand]:
        """Return the messages whose handlers run now."""
        return self._lanes.running()

    def rejoin(self) -> None:
        """Receive through a new subscription, soon: what is in hand stays there, and comes once more at most."""
        self._intake.rejoin()

    def start(self) -> None:
        """Begin to receive, in a thread of its own; a broker that cannot be reached is waited for."""
        if self._events.is_closed:
            raise Closed("the mediator of this consumer is closed")
        self._intake.start()

    def stop(self, timeout: float = 25.0) -> bool:
        """
        Receive nothing more, finish and settle what runs within `timeout` seconds, and give back the rest.

        False where a handler still runs: its message comes again, to somebody else.
        """
        until = time.monotonic() + timeout
        self._lanes.close()
        self._intake.end(until)
        # Closing a subscription may take longer than a broker that is well takes.
        ended = self._intake.join(until + 2.0)
        if self._own:
            self._threads.close(max(0.1, until - time.monotonic()))
        return ended and not self._lanes.running()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def health(self, stall: float = 300.0) -> Health:
        """Look whether it is well: of what is in hand something is finished, or has failed, within `stall` seconds."""
        now = time.monotonic()
        attempts, since = self._seen
        if self._attempts != attempts or not self._lanes:
            attempts, since = self._seen = self._attempts, now
        is_ready, silent = self._intake.is_connected, now - self._intake.alive_at
        if self._intake.hopeless is not None:
            return Health(is_alive=False, is_ready=False, trouble=str(self._intake.hopeless))
        if silent > stall:
            return Health(is_alive=False, is_ready=False, trouble=f"the intake hangs for {silent:.0f} s")
        if now - since > stall:
            words = f"of {len(self._lanes)} messages in hand none was finished for {now - since:.0f} s"
            return Health(is_alive=False, is_ready=is_ready, trouble=words)
        return Health(is_alive=True, is_ready=is_ready, trouble="" if is_ready else "the broker cannot be reached")

    @property
    def _room(self) -> int:
        """How many messages may be handled at a time now."""
        return 1 if self._outage.is_on else self._concurrency

    def _serve_what_waits(self) -> None:
        """Let threads serve: one where none does, more where what could be taken waits for too long."""
        lanes = self._lanes
        if not lanes.may_take(self._room):
            return
        if self._serving == 0:
            self._start_serving(1)
        elif time.monotonic() - lanes.taken_at > _WAITS_TOO_LONG:
            self._start_serving(lanes.ready)

    def _start_serving(self, wanted: int) -> None:
        with self._lock:
            wanted = min(wanted, self._concurrency - self._serving)
            self._serving += max(0, wanted)
        for _ in range(wanted):
            # Not waited for.
            if self._threads.run(_Serving(self._serve, self._served), until=time.monotonic(), helping=False):
                self._served()

    def _serve(self) -> None:
        """Handle messages until there are none, for a while at most; on the pool."""
        lanes = self._lanes
        until = time.monotonic() + _SERVED_FOR
        for _ in range(_SERVED):
            item = lanes.take(self._room)
            if item is None:
                break
            if self._average > _WORTH_A_THREAD and lanes.ready and self._serving < self._concurrency:
                self._start_serving(1)
            item.thread = threading.get_ident()
            self._attend(item)
            now = time.monotonic()
            self._attempts += 1
            self._average += (now - item.begun - self._average) * 0.1
            if now > until:
                break

    def _attend(self, item: InHand) -> None:
        try:
            pause = self._handling.attend(item)
        except BaseException:
            logger.exception("a message could not be attended to, it is tried again")
            pause = 1.0
        if pause is not None:
            self._lanes.again(item, pause)
            return
        self._lanes.done(item)

    def _served(self) -> None:
        with self._lock:
            self._serving -= 1
        if self._lanes.may_take(self._room):
            self._start_serving(1)


class _Serving:
    """One call for an executor: a thread serves for a while."""

    def __init__(self, serve: Callable[[], object], served: Callable[[], object]) -> None:
        self._call: Call | None = (serve,)
        self._served = served

    def next_call(self) -> Call | None:
        call, self._call = self._call, None
        return call

    def call_failed(self, call: Call, error: BaseException, /) -> None:
        """Note that what is around calls could not be entered: the intake looks again in a moment."""
        del call
        logger.warning("a thread could not serve, it is tried again: %s", error)

    def finished_late(self) -> None:
        """It has served."""
        self._served()


def _threads_of(threads: Executor) -> tuple[Executor, bool]:
    """Return where messages are handled, and whether that is the consumer's own."""
    if isinstance(threads, SameThread):
        # The thread that receives is not to be kept.
        return ThreadPool(1, name="cqrs-consumer"), True
    return threads, False
