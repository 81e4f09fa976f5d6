"""One run of the demo: threads send commands, the caller receives from the broker, and each number is counted twice."""

from __future__ import annotations

import functools
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import punq

import cqrs_sync as cqrs
from cqrs_sync.broker import Group, ReceivingBroker, Subscription
from cqrs_sync.demo import meetings
from cqrs_sync.middleware import CallNext

_SENDERS, _MEETINGS = 4, [f"meeting-{number}" for number in range(10)]
#: Seconds without a message after which none is on its way, and seconds to close in.
_QUIET, _CLOSE = 0.25, 5.0


@attrs.define
class HandlerRuns:
    """What one handler has done."""

    runs: int = 0
    failed: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    threads: set[str] = attrs.field(factory=set)


@attrs.frozen
class Check:
    """Counts that must be equal, and what is wrong with them."""

    title: str
    sum: str
    wrong: Sequence[str]


class DemoRun:
    """
    Plays the example once. Any thread may read the counts meanwhile.

    `patience` is how many seconds `play` waits for a message that does not arrive.
    """

    def __init__(self, broker: ReceivingBroker, events: int, *, topic: str | None = None, patience: float = 15) -> None:
        self.events = events
        self.sent = self.answered = self.failed = self.consumed = 0
        self.raised: set[str] = set()
        self.confirmed: set[str] = set()
        self.handlers: dict[str, HandlerRuns] = {}
        self.last_failure: str = ""
        self.began: float = time.monotonic()
        self.ended: float = self.began
        self._copies: Counter[str] = Counter()
        self._problems: list[str] = []
        self._name = uuid.uuid4().hex[:8]
        # A topic of its own: runs do not receive each other's messages.
        self._topic = topic or f"meetings-{self._name}"
        self._broker, self._patience = broker, patience
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._participants = meetings.Participants()
        container = punq.Container()
        container.register(meetings.Participants, instance=self._participants)
        container.register(meetings.Directory, instance=meetings.Directory())
        self._meetings = cqrs.bootstrap(
            self._counted(cqrs.RequestMap(), meetings.requests),
            self._counted(cqrs.EventMap(), meetings.events),
            source="meetings",
            container=container,
            broker=broker,
            threads=8,
            middleware=cqrs.MiddlewareChain().add(self._count_published, cqrs.OutgoingMessage),
        )
        self._directory = cqrs.bootstrap(
            meetings.directory_requests,
            self._counted(cqrs.EventMap(), meetings.directory_events),
            container=container,
            threads=cqrs.SameThread(),
        )

    def play(self, log: Callable[[str], object] = lambda _: None) -> None:
        """
        Send all commands, receive all messages, and close the broker; `log` gets the progress once a second.

        Raises CqrsError if the broker cannot be reached. What goes wrong later is in `checks`.
        """
        senders = [threading.Thread(target=self._send, args=(number,), daemon=True) for number in range(_SENDERS)]
        try:
            # First of all: a broker may refuse messages while there is no queue for them.
            with self._broker.subscribe(Group(f"demo-{self._name}", [self._topic])) as subscription:
                self.began = time.monotonic()
                for sender in senders:
                    sender.start()
                self._receive(subscription, senders, log)
        finally:
            self._stopped.set()
            for sender in senders:
                if sender.ident is not None:
                    sender.join(_CLOSE)
            self._meetings.close(_CLOSE)

    def progress(self) -> str:
        """Say how far it is."""
        counts = f"{self.answered} of {self.events} commands answered, {len(self.confirmed)} events confirmed"
        return f"{counts}, {self.consumed} consumed"

    def checks(self) -> Sequence[Check]:
        """Compare each count with one that was made elsewhere."""
        planned, off = self.events, self.events // meetings.SWITCHED_OFF
        runs = sum(each.runs for name, each in self.handlers.items() if name != "add_to_directory")
        copies = Counter(dict.fromkeys(self.raised, 1))
        joined = _pairs(self._participants.users_in)
        listed = _pairs(lambda meeting: self._directory.send(meetings.ListParticipants(meeting)))
        counts = {"raised": len(self.raised), "confirmed": len(self.confirmed), "consumed": self.consumed}
        return [
            _check("commands", planned, {"sent": self.sent, "responses": self.answered}),
            _check("handlers", 3 * planned, {"due": 3 * planned, "runs": runs}),
            _check("failures", off, {"of text_the_user": self.failed, "phones switched off": off}, self._problems),
            _compare("messages", planned, counts, copies, self._copies),
            _compare("read model", planned, {"joined": joined.total(), "listed": listed.total()}, joined, listed),
        ]

    def _counted(self, target: Any, source: Any) -> Any:
        for binding in source:
            runs = self.handlers.setdefault(binding.handler.__name__, HandlerRuns())
            target.bind(binding.message_type, self._counting(binding.handler, runs))
        return target

    def _counting(self, handler: Callable[..., Any], runs: HandlerRuns) -> Callable[..., Any]:
        @functools.wraps(handler)
        def call(message: Any, **services: Any) -> Any:
            begun, failed = time.monotonic(), True
            try:
                answer = handler(message, **services)
                failed = False
                return answer
            finally:
                with self._lock:
                    self.ended = time.monotonic()
                    runs.runs += 1
                    runs.failed += failed
                    runs.seconds += self.ended - begun
                    runs.longest = max(runs.longest, self.ended - begun)
                    runs.threads.add(threading.current_thread().name)

        return call

    def _count_published(self, messages: Sequence[cqrs.OutgoingMessage], call_next: CallNext, /) -> Any:
        ids = {message.id for message in messages}
        with self._lock:
            self.raised |= ids
        published = call_next(tuple(attrs.evolve(message, topic=self._topic) for message in messages))
        with self._lock:
            self.confirmed |= ids
        return published

    def _send(self, first: int) -> None:
        for number in range(first, self.events, _SENDERS):
            if self._stopped.is_set():
                return
            with self._lock:
                self.sent += 1
            failures: list[BaseException] = []
            try:
                self._meetings.send(meetings.JoinMeeting(f"user-{number + 1:04}", _MEETINGS[number % 10]))
                answered = True
            except cqrs.EventsFailed as error:
                # The user is in the meeting all the same: the error has the response.
                failures, answered = [failure.error for failure in error.failures], error.response is not None
            except Exception as error:  # noqa: BLE001 -- the summary shows it
                failures, answered = [error], False
            with self._lock:
                self.answered += answered
                for failure in failures:
                    if isinstance(failure, meetings.PhoneSwitchedOff):
                        self.failed, self.last_failure = self.failed + 1, str(failure)
                    else:
                        self._problems.append(f"not planned: {failure}")
                        self._stopped.set()

    def _receive(
        self, subscription: Subscription, senders: list[threading.Thread], log: Callable[[str], object]
    ) -> None:
        """Handle messages until all have arrived, or none has for `patience` seconds."""
        until, next_log = 0.0, 0.0
        while True:
            if time.monotonic() >= next_log:
                next_log = time.monotonic() + 1
                log(self.progress())
            sending = any(sender.is_alive() for sender in senders)
            delivery = None
            try:
                delivery = subscription.receive(timeout=_QUIET)
                if delivery is not None:
                    self._directory.receive(delivery.message)
                    delivery.ack()
                    self.consumed += 1
                    self._copies[delivery.message.attributes["id"]] += 1
            except cqrs.BrokerUnavailable:
                # It may come back.
                threading.Event().wait(_QUIET)
            except Exception as error:  # noqa: BLE001 -- the summary shows it
                self._problems.append(f"the consumer stopped: {error}")
                return
            if sending or delivery is not None:
                until = time.monotonic() + self._patience
            elif not self.confirmed - self._copies.keys() or time.monotonic() > until:
                return


def _pairs(users_in: Callable[[str], Sequence[str]]) -> Counter[str]:
    return Counter(f"{user} in {meeting}" for meeting in _MEETINGS for user in users_in(meeting))


def _check(title: str, planned: int, counts: Mapping[str, int], problems: Iterable[str] = ()) -> Check:
    text, before = "", None
    for label, count in counts.items():
        text += ("" if before is None else " = " if count == before else " != ") + f"{count} {label}"
        before = count
    wrong = [f"{count} {label}, not {planned}" for label, count in counts.items() if count != planned]
    return Check(title, text, [*wrong, *problems])


def _compare(title: str, planned: int, counts: Mapping[str, int], due: Counter[str], found: Counter[str]) -> Check:
    lost, doubled = sorted((due - found).elements()), sorted((found - due).elements())
    problems = [*(f"lost: {each}" for each in lost), *(f"doubled: {each}" for each in doubled)]
    check = _check(title, planned, counts, problems)
    return attrs.evolve(check, sum=f"{check.sum}, {len(lost)} lost, {len(doubled)} doubled")
