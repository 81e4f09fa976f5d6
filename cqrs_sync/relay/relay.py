"""The threads that deliver what the outbox keeps."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from cqrs_sync.dispatch.dispatcher import EventDispatcher
from cqrs_sync.errors import ConfigurationError, OutboxUnavailable
from cqrs_sync.lifecycle import close_at_exit, reset_in_child
from cqrs_sync.relay.durable import DurableHandlerWorker
from cqrs_sync.relay.poller import NotificationListener, Poller
from cqrs_sync.relay.publisher import OutboxPublisher
from cqrs_sync.relay.settlement import Claims, InFlightDelivery
from cqrs_sync.retry import Backoff
from cqrs_sync.wiring import Wiring

logger = logging.getLogger(__name__)

#: Seconds after which the fast path looks for what nobody has told it of, such as what a dead process has left.
_SWEEP = 20.0
#: Seconds that leaving the interpreter may take longer.
_AT_EXIT = 3.0


class Relay:
    """
    Delivers what an outbox keeps: to the broker, and to durable handlers on the mediator's pool.

    As the *fast path* it starts by itself with the first commit it is told of, in the process
    that made it, and delivers within milliseconds. `start` makes it a relay that looks for
    work of all processes.

    Threads are started by the first commit or by `start`, anew in a forked child. The
    mediator closes it; at exit it is closed within seconds.
    """

    def __init__(self, wiring: Wiring, dispatcher: EventDispatcher) -> None:
        if wiring.outbox is None:
            raise ConfigurationError("a relay needs an outbox: give bootstrap one")
        self.outbox = wiring.outbox
        self._wiring = wiring
        self._dispatcher = dispatcher
        self._lease, self._batch = 30.0, 500
        self._closed = False
        self.reset_in_child()

    def reset_in_child(self) -> None:
        """Start over: the parent's threads are not in the child."""
        self._claims = Claims(self.outbox)
        self._threads: Sequence[RelayThread] = ()
        self._starting = threading.Lock()

    @property
    def delivered(self) -> int:
        """How many deliveries this process has made."""
        return self._claims.delivered

    def wake(self) -> None:
        """Look for work now; starts the fast path. Never raises: what is not delivered now is by somebody, later."""
        if not self._threads and self._wiring.fast_path and not self._closed:
            try:
                self._start([*self._tasks(publishers=1)], _SWEEP)
            except Exception:
                logger.exception("the fast path cannot be started; what was committed waits for a relay")
        self._wake_all()

    def start(
        self, *, publishers: int = 2, poll: tuple[float, float] = (0.05, 4.0), lease: float = 30.0, batch: int = 500
    ) -> None:
        """
        Look for work of all processes until `stop`.

        `publishers` publish side by side: while one waits for the broker, another one talks to
        the database. Without a hint the outbox is asked after `poll` seconds, the first while
        there is work and up to the second while there is none. Claims last `lease` seconds:
        what a process that died had claimed is delivered by others after that. They take
        `batch` messages at most. Raises ConfigurationError for numbers that cannot be.
        """
        self._lease, self._batch = _checked(lease, batch)
        self._claims.outbox = self.outbox
        poller = Poller(
            self.outbox, self._wiring.event_map, self._wake_all, self._claims, shortest=poll[0], longest=poll[1]
        )
        tasks = [
            *self._tasks(publishers),
            ("poller", poller),
            ("listener", NotificationListener(self.outbox, self._wake_all)),
        ]
        self.stop(0)
        self._closed = False
        self._start(tasks, max(60.0, poll[1]))

    def stop(self, timeout: float = 5.0, *, drain: bool = False) -> bool:
        """
        Deliver what is under way, with `drain` also what waits, and end the threads within `timeout` seconds.

        What is not delivered then stays in the outbox. False where a handler still runs; it goes on.
        """
        self._closed = True
        return self._end(timeout, drain=drain)

    def quiesce(self, timeout: float = 5.0) -> bool:
        """
        Deliver what waits and end the threads within `timeout` seconds, until the next commit; False as for `stop`.

        For a process that has used its mediator and is about to fork: no child then inherits a
        connection that is in the middle of something, which SQLite takes for a lock held for ever.
        """
        return self._end(timeout, drain=True)

    def _end(self, timeout: float, *, drain: bool) -> bool:
        with self._starting:
            threads, self._threads = self._threads, ()
        until = time.monotonic() + timeout
        for thread in threads:
            thread.stop(until, drain=drain)
        # A thread that is ending does nothing that takes long, unless its database does.
        ended = [thread.join(until + 0.5) for thread in threads]
        return all(ended) and self.running == 0

    def next_due(self) -> float | None:
        """Return the seconds until something may be delivered here, None where nothing waits."""
        return self.outbox.next_due(self._wiring.event_map.durable_names)

    @property
    def running(self) -> int:
        """How many durable handlers run that this relay has started, as of its last look."""
        return self._claims.running

    def in_flight(self) -> Sequence[InFlightDelivery]:
        """Return what this relay has claimed and not settled, as long as the leases last."""
        return self._claims.in_flight()

    def is_drained(self) -> bool:
        """
        Ask the outbox whether anything may be delivered now; True where nothing is in flight either.

        A message that did not reach the broker counts as in flight until shortly after it is due again.
        """
        before = self._claims.idle_mark()
        due = self.next_due()
        return before is not None and due != 0 and before == self._claims.idle_mark()

    def close_at_exit(self) -> None:
        """Deliver what waits, within a time that a leaving process can spare."""
        self.stop(_AT_EXIT, drain=True)

    def _tasks(self, publishers: int) -> Sequence[tuple[str, RelayTask]]:
        tasks: list[tuple[str, RelayTask]] = []
        if self._wiring.broker is not None:
            for number in range(publishers):
                publisher = OutboxPublisher(
                    self.outbox,
                    self._wiring.emitter,
                    self._wiring.retries,
                    lease=self._lease,
                    batch=self._batch,
                    claims=self._claims,
                )
                tasks.append((f"publisher-{number + 1}", publisher))
        worker = DurableHandlerWorker(
            self.outbox,
            self._dispatcher,
            self._wiring.event_map,
            serializer=self._wiring.serializer,
            retries=self._wiring.retries,
            lease=self._lease,
            claims=self._claims,
        )
        # Also where nothing durable is bound yet: it asks the outbox for nothing then.
        return [*tasks, ("durable", worker)]

    def _start(self, tasks: Sequence[tuple[str, RelayTask]], longest: float) -> None:
        with self._starting:
            if self._threads or self._closed:
                return
            threads = [RelayThread(f"cqrs-relay-{name}", task, longest) for name, task in tasks]
            for thread, (_, task) in zip(threads, tasks, strict=True):
                if isinstance(task, DurableHandlerWorker):
                    task.wake = thread.wake
                thread.start()
            self._threads = threads
        reset_in_child(self)
        # It needs the threads and the broker for that.
        close_at_exit(self, first=True)

    def _wake_all(self) -> None:
        for thread in self._threads:
            thread.wake()


def _checked(lease: float, batch: int) -> tuple[float, int]:
    if not 1 <= lease <= threading.TIMEOUT_MAX:
        raise ConfigurationError(f"a lease is a number of seconds, 1 at least, not {lease!r}")
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ConfigurationError(f"batch must be a whole number above 0, not {batch!r}")
    return lease, batch


logger = logging.getLogger(__name__)

#: Seconds between attempts to reach a database, at first and at most.
_FIRST, _CEILING = 0.2, 5.0
#: Who sleeps for longer than these seconds gives up his database connection.
_NAP = 10.0


class RelayTask(Protocol):
    """Delivers, one step at a time; `deliver` is called by one thread."""

    def deliver(self) -> float | None:
        """
        Deliver what there is.

        Returns the seconds after which to call it again: 0 where there may be more, None where
        it has nothing to do until it is woken.
        """

    def finish(self, *, drain: bool) -> None:
        """Claim only what can be delivered at once, or, without `drain`, nothing more; called by any thread."""

    def release_connection(self) -> None:
        """Give up the database connection of this thread, until it needs one again."""


class RelayThread:
    """
    Calls a task in a thread of its own, and whatever goes wrong there, calls it again.

    `longest` is the number of seconds it sleeps at most: it looks then without being woken.
    """

    def __init__(self, name: str, task: RelayTask, longest: float) -> None:
        self._task = task
        self._longest = longest
        self._woken = threading.Event()
        self._until: float | None = None
        self._trouble = Backoff(logger, _FIRST, _CEILING)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread. Raises RuntimeError where the system gives none."""
        self._thread.start()

    def wake(self) -> None:
        """Let it look for work now."""
        self._woken.set()

    def stop(self, until: float, *, drain: bool) -> None:
        """Let it end when it has nothing left to do, at the latest at a moment by `time.monotonic`."""
        self._task.finish(drain=drain)
        self._until = until
        self._woken.set()

    def join(self, until: float) -> bool:
        """Wait for its end until a moment by `time.monotonic`."""
        if self._thread is not threading.current_thread():
            self._thread.join(max(0.0, until - time.monotonic()))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            self._woken.clear()
            pause = self._step()
            longest = self._longest
            if self._until is not None:
                longest = self._until - time.monotonic()
                if pause is None or longest <= 0:
                    break
            if pause != 0:
                self._sleep(longest if pause is None else min(pause, longest))
        self._task.release_connection()

    def _step(self) -> float | None:
        try:
            pause = self._task.deliver()
        except OutboxUnavailable as error:
            pause = self._failed(f"the outbox cannot be reached: {error}", None)
        except ConfigurationError as error:
            pause = self._failed(str(error), None)
        except BaseException as error:  # noqa: BLE001 -- a thread that ends would be noticed by nobody
            pause = self._failed("a relay failed, and goes on", error)
        else:
            if self._trouble.is_over():
                logger.warning("%s goes on", self._thread.name)
        return pause

    def _failed(self, words: str, error: BaseException | None) -> float:
        return self._trouble.failed(logging.ERROR, "%s: %s", self._thread.name, words, exc_info=error)

    def _sleep(self, seconds: float) -> None:
        if self._woken.wait(min(seconds, _NAP)):
            return
        if seconds > _NAP:
            self._task.release_connection()
            self._woken.wait(seconds - _NAP)
