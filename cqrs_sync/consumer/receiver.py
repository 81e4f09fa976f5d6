"""The thread that talks to the broker: it takes messages in, and settles those that are done."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from cqrs_sync.broker import Delivery, Subscription
from cqrs_sync.consumer.inflight import KeyedQueue
from cqrs_sync.consumer.processor import in_flight
from cqrs_sync.errors import LONGEST_ERROR, Closed, ConfigurationError, CqrsError, describe_error, printable
from cqrs_sync.retry import Backoff

logger = logging.getLogger(__name__)

#: Seconds it waits for a message where something is in hand, and where nothing is.
_BUSY, _IDLE = 0.05, 0.5
#: Seconds between two signs of life where enough is in hand.
_SIGN = 0.2
#: Messages it takes in before it looks at what is done.
_RUN = 64
#: Seconds between attempts to reach the broker, at first and at most.
_FIRST, _CEILING = 0.25, 5.0
#: Seconds without trouble after which it is over although nothing came: longer than any client takes to notice.
_CALM = 1.5


class Receiver:
    """
    Receives from one subscription in a thread of its own, never more than `most` messages at a time.

    Handlers never keep it: heartbeats and polls go on while they work. A subscription that is lost is made again.
    """

    def __init__(self, join: Callable[[], Subscription], most: int) -> None:
        self._join = join
        #: What is in hand.
        self.queue = KeyedQueue(self.settle_soon)
        self._most = most
        # So many are done before it looks for more.
        self._enough = max(1, min(_RUN, most // 4))
        #: Called when there may be something to be taken from the queue.
        self.serve: Callable[[], object] = lambda: None
        self._subscription: Subscription | None = None
        self._finished: deque[Delivery] = deque()
        self._news = threading.Event()
        self._ending = self._is_to_rejoin = False
        self._until = 0.0
        self._trouble = Backoff(logger, _FIRST, _CEILING)
        self._calm_since: float | None = None
        #: Why nothing is received, where that is so.
        self.why = ""
        self._waits = False
        self._thread = threading.Thread(target=self._run, name="cqrs-receiver", daemon=True)
        #: Why it cannot go on, where that is for good.
        self.hopeless: ConfigurationError | None = None
        #: When it last heard from the broker, and when it was last seen alive; by `time.monotonic`.
        self.heard_at = self.alive_at = time.monotonic()
        #: Messages that came in.
        self.received = 0

    @property
    def is_connected(self) -> bool:
        """Whether the broker answers, as far as it knows."""
        return self._subscription is not None and not self._trouble.failures

    @property
    def has_joined(self) -> bool:
        """Whether the broker has let it in as well."""
        subscription = self._subscription
        return subscription is not None and subscription.has_joined and self.is_connected

    def start(self) -> None:
        """Start the thread. Raises RuntimeError where the system gives none."""
        self._thread.start()

    def settle_soon(self, delivery: Delivery) -> None:
        """Let a message be settled; called by any thread."""
        self._finished.append(delivery)
        if self._waits and self._is_enough():
            self._news.set()

    def rejoin(self) -> None:
        """Leave the subscription, and make a new one; called by any thread."""
        self._is_to_rejoin = True
        self._news.set()

    def end(self, until: float) -> None:
        """Receive nothing more; settle what is done by then, and leave, at the latest at that moment."""
        self._until = until
        self._ending = True
        self._news.set()

    def join(self, until: float) -> bool:
        """Wait for its end until a moment by `time.monotonic`."""
        # One that was never started has ended.
        if self._thread.ident is not None:
            self._thread.join(max(0.0, until - time.monotonic()))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not (self._ending and self._is_over()):
            self.alive_at = time.monotonic()
            try:
                self._step()
            except ConfigurationError as error:
                logger.error("the consumer cannot go on: %s", error)  # noqa: TRY400 -- it says all
                self.hopeless = error
                break
            except CqrsError as error:
                self._lost(error)
            except BaseException:
                logger.exception("the receiver failed, and goes on with a new subscription")
                self._leave()
                self._lost(None)
        self._leave()

    def _is_over(self) -> bool:
        return (not self.queue.running() and not self._finished) or time.monotonic() >= self._until

    def _step(self) -> None:
        self._news.clear()
        if self._is_to_rejoin:
            self._is_to_rejoin = False
            self._leave()
        if self._subscription is None and not self._ending:
            self._subscription = self._join()
        self._settle()
        room, before = self._most - len(self.queue), self.received
        # While threads have enough to do, a message or two would cost more than they bring.
        if self._ending or room <= 0 or (room < self._enough and self.queue.ready):
            self._rest()
        else:
            self._take_in()
        self.heard_at = time.monotonic()
        if self._trouble.failures:
            self._note_calm(came=self.received > before)
        self.serve()

    def _settle(self) -> None:
        finished = self._finished
        while finished:
            delivery = finished.popleft()
            delivery.ack()

    def _rest(self) -> None:
        if self._subscription is not None:
            self._subscription.keep_alive()
        self._waits = True
        if not self._is_enough():
            self._news.wait(_SIGN)
        self._waits = False

    def _is_enough(self) -> bool:
        """Tell whether so many are done that it is worth coming: one, where threads have nothing left to do."""
        done = len(self._finished)
        return done >= self._enough or (done > 0 and (self._ending or not self.queue.ready))

    def _take_in(self) -> None:
        assert self._subscription is not None
        room, patience = min(_RUN, self._most - len(self.queue)), _BUSY if len(self.queue) else _IDLE
        came = self._subscription.receive_many(room, patience)
        if came:
            self.received += len(came)
            for done in self.queue.put([in_flight(delivery) for delivery in came]):
                done.ack()

    def _note_calm(self, *, came: bool) -> None:
        """Take trouble for over once something came, or long enough after it: resting hears of none."""
        self._calm_since = self._calm_since or self.heard_at
        if came or self.heard_at - self._calm_since >= _CALM:
            self._trouble.is_over()
            self.why = ""
            logger.warning("messages are received again")

    def _lost(self, error: CqrsError | None) -> None:
        self._calm_since = None
        self.why = (
            "the receiver failed, see the log" if error is None else printable(describe_error(error))[:LONGEST_ERROR]
        )
        if isinstance(error, Closed):
            self._leave()
        pause = self._trouble.failed(logging.WARNING, "nothing is received, it is tried again: %s", error)
        until = time.monotonic() + pause
        # What is in hand goes on meanwhile.
        while (left := until - time.monotonic()) > 0 and not self._news.is_set():
            self.serve()
            self._news.wait(min(left, _SIGN))

    def _leave(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            try:
                self._settle()
                subscription.close()
            except Exception as error:  # noqa: BLE001 -- it is left all the same
                logger.warning("the subscription was not closed well: %s", error)
