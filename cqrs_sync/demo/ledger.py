"""What has happened so far: noted by any thread where it happens, read by whoever shows it."""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence

import attrs

#: Timings kept of a handler, and messages whose way is kept: enough to show, bounded however long it takes.
_TIMINGS = 1000
_JOURNEYS = 64


@attrs.frozen
class HandlerRuns:
    """What one handler has done; times in seconds, the median that of its last thousand runs."""

    name: str
    runs: int = 0
    failed: int = 0
    median: float = 0.0
    longest: float = 0.0
    total: float = 0.0
    threads: Sequence[str] = ()


@attrs.frozen
class Journey:
    """The way of one message through the broker; moments by `time.monotonic`."""

    body: bytes
    raised: float
    confirmed: float | None = None
    consumed: float | None = None


@attrs.frozen
class Snapshot:
    """The ledger at one moment."""

    #: From the first command until now, and until the last thing that happened.
    elapsed: float = 0.0
    busy: float = 0.0
    sent: int = 0
    answered: int = 0
    raised: int = 0
    confirmed: int = 0
    consumed: int = 0
    #: Confirmed and not consumed yet.
    open: int = 0
    #: Failures that were planned, and the last one's words.
    failed: int = 0
    last_failure: str | None = None
    handlers: Mapping[str, HandlerRuns] = attrs.field(factory=dict)
    journeys: Sequence[Journey] = ()
    #: What was not planned.
    problems: Sequence[str] = ()


class Ledger:
    """Counts of commands, handlers and messages, from the first command on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began: float | None = None
        self._last = 0.0
        self._sent = self._answered = self._failed = 0
        self._last_failure: str | None = None
        self._problems: list[str] = []
        self._pages: dict[str, _Page] = {}
        self._raised: set[str] = set()
        self._confirmed: set[str] = set()
        self._consumed: Counter[str] = Counter()
        self._open: set[str] = set()
        self._journeys: OrderedDict[str, Journey] = OrderedDict()

    def sent(self) -> None:
        """Note that a command is on its way."""
        with self._lock:
            self._now()
            self._sent += 1

    def answered(self) -> None:
        """Note that a command was answered."""
        with self._lock:
            self._now()
            self._answered += 1

    def failed(self, error: BaseException) -> None:
        """Note that a handler failed as planned."""
        with self._lock:
            self._failed += 1
            self._last_failure = str(error)

    def problem(self, what: str) -> None:
        """Note what was not planned."""
        with self._lock:
            self._problems.append(what)

    def handled(self, name: str, seconds: float, *, failed: bool) -> None:
        """Note that a handler has run in this thread."""
        thread = threading.current_thread().name
        with self._lock:
            self._now()
            if name not in self._pages:
                self._pages[name] = _Page()
            self._pages[name].note(seconds, thread, failed=failed)

    def raised(self, messages: Iterable[tuple[str, bytes]]) -> None:
        """Note that these messages, id and body, are given to the broker."""
        with self._lock:
            now = self._now()
            for message_id, body in messages:
                self._raised.add(message_id)
                self._journeys[message_id] = Journey(body, now)
            while len(self._journeys) > _JOURNEYS:
                self._journeys.popitem(last=False)

    def confirmed(self, message_ids: Iterable[str]) -> None:
        """Note that the broker has confirmed these messages."""
        with self._lock:
            now = self._now()
            for message_id in message_ids:
                self._confirmed.add(message_id)
                if message_id not in self._consumed:
                    self._open.add(message_id)
                if message_id in self._journeys:
                    self._journeys[message_id] = attrs.evolve(self._journeys[message_id], confirmed=now)

    def consumed(self, message_id: str) -> None:
        """Note that a message came back from the broker and was handled."""
        with self._lock:
            now = self._now()
            self._consumed[message_id] += 1
            self._open.discard(message_id)
            if message_id in self._journeys:
                self._journeys[message_id] = attrs.evolve(self._journeys[message_id], consumed=now)

    def lost(self) -> Sequence[str]:
        """Return the ids of messages that were raised and never consumed."""
        with self._lock:
            return sorted(self._raised - self._consumed.keys())

    def doubled(self) -> Sequence[str]:
        """Return the ids of messages that were consumed more than once."""
        with self._lock:
            return sorted(message_id for message_id, times in self._consumed.items() if times > 1)

    def snapshot(self) -> Snapshot:
        """Return how it stands."""
        with self._lock:
            began = self._began
            return Snapshot(
                elapsed=0.0 if began is None else time.monotonic() - began,
                busy=0.0 if began is None else self._last - began,
                sent=self._sent,
                answered=self._answered,
                raised=len(self._raised),
                confirmed=len(self._confirmed),
                consumed=self._consumed.total(),
                open=len(self._open),
                failed=self._failed,
                last_failure=self._last_failure,
                handlers={name: page.read(name) for name, page in self._pages.items()},
                journeys=tuple(self._journeys.values()),
                problems=tuple(self._problems),
            )

    def _now(self) -> float:
        self._last = time.monotonic()
        if self._began is None:
            self._began = self._last
        return self._last


class _Page:
    """What one handler has done; under the ledger's lock."""

    def __init__(self) -> None:
        self._runs = self._failed = 0
        self._longest = self._total = 0.0
        self._timings: deque[float] = deque(maxlen=_TIMINGS)
        self._threads: set[str] = set()

    def note(self, seconds: float, thread: str, *, failed: bool) -> None:
        self._runs += 1
        self._failed += failed
        self._total += seconds
        self._longest = max(self._longest, seconds)
        self._timings.append(seconds)
        self._threads.add(thread)

    def read(self, name: str) -> HandlerRuns:
        return HandlerRuns(
            name=name,
            runs=self._runs,
            failed=self._failed,
            median=statistics.median(self._timings),
            longest=self._longest,
            total=self._total,
            threads=tuple(self._threads),
        )
