"""Play the example: several threads send commands, another one consumes what comes back from the broker."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Protocol

import attrs

import cqrs_sync as cqrs
from cqrs_sync.broker import Delivery, ReceivingBroker, Subscription
from cqrs_sync.demo.directory import ListParticipants
from cqrs_sync.demo.ledger import Ledger, Snapshot
from cqrs_sync.demo.meetings import JoinMeeting, MeetingJoined
from cqrs_sync.demo.wiring import directory_service, meetings_service, services_of_meetings
from cqrs_sync.demo.world import Meetings, Phones, PhoneSwitchedOff
from cqrs_sync.messages import publication_of

#: Seconds between two looks at the ledger.
_TICK = 0.1
#: Seconds without a message, once all are in, which show that there is no copy of one on its way.
_SILENCE = 0.25
#: Seconds for threads and broker to end.
_GOODBYE = 5.0


@attrs.frozen
class Plan:
    """What is to be played; the same numbers always give the same commands."""

    events: int = 1000
    #: Threads for event handlers; with 0 they run in the thread that sends the command.
    pool: int = 8
    senders: int = 4
    #: Seconds to wait for a message that does not come.
    patience: float = 15.0
    #: A topic that exists; without one the run has a topic of its own.
    existing_topic: str | None = None
    #: Keeps this run apart from others on the same broker.
    run: str = attrs.field(factory=lambda: uuid.uuid4().hex[:8])

    @property
    def topic(self) -> str:
        """Where events are published in this run."""
        return self.existing_topic or f"{publication_of(MeetingJoined).topic}-{self.run}"

    @property
    def commands(self) -> Sequence[JoinMeeting]:
        """The commands to send; each raises one notification event."""
        return [JoinMeeting(user, f"meeting-{number % 10}") for number, user in enumerate(self._users)]

    @property
    def switched_off(self) -> Sequence[str]:
        """The users whose phone is switched off: every 25th, and the last."""
        return sorted({*self._users[24::25], self._users[-1]})

    @property
    def _users(self) -> Sequence[str]:
        return [f"user-{number:04}" for number in range(1, self.events + 1)]


@attrs.frozen
class Outcome:
    """What there is to be added up in the end."""

    plan: Plan
    snapshot: Snapshot
    #: Ids of messages.
    lost: Sequence[str]
    doubled: Sequence[str]
    #: Who is in which meeting, as the service that takes commands knows and as the one that listens answers.
    joined: Mapping[str, Sequence[str]]
    listed: Mapping[str, Sequence[str]]


class Screen(Protocol):
    """Where one can see how it goes."""

    def show(self, snapshot: Snapshot) -> None:
        """Show how it stands now; called ten times a second by one thread."""


class Play:
    """One run of the demo; it closes the broker."""

    def __init__(self, plan: Plan, broker: ReceivingBroker) -> None:
        self.ledger = Ledger()
        self._plan = plan
        self._broker = broker
        self._joined = Meetings()
        services = services_of_meetings(self._joined, Phones(plan.switched_off))
        self._meetings = meetings_service(broker, services, pool=plan.pool, topic=plan.topic, ledger=self.ledger)
        self._directory = directory_service(ledger=self.ledger)
        self._stopped = threading.Event()
        self._all_in = threading.Event()

    def perform(self, screen: Screen) -> Outcome:
        """
        Play from the first command to the last message.

        Raises CqrsError where the broker cannot be reached at all. What goes wrong
        later is in the outcome.
        """
        listening: Future[None] = Future()
        consumer = threading.Thread(target=self._consume, args=(listening,), name="consumer", daemon=True)
        threads = [consumer]
        try:
            consumer.start()
            # Commands come after the subscription: a broker may refuse a message that nobody waits for.
            while not listening.done():
                self._look(screen)
            listening.result()
            senders = self._start_senders()
            threads += senders
            self._watch(screen, senders, consumer)
        finally:
            self._stopped.set()
            self._all_in.set()
            _join(threads)
            self._meetings.close(_GOODBYE)
        screen.show(self.ledger.snapshot())
        return self._outcome()

    def _start_senders(self) -> list[threading.Thread]:
        commands, count = self._plan.commands, self._plan.senders
        senders = [
            threading.Thread(target=self._send, args=(commands[number::count],), name=f"sender_{number}", daemon=True)
            for number in range(count)
        ]
        for sender in senders:
            sender.start()
        return senders

    def _send(self, commands: Sequence[JoinMeeting]) -> None:
        for command in commands:
            if self._stopped.is_set():
                return
            self.ledger.sent()
            try:
                present: int | None = self._meetings.send(command)
            except cqrs.EventsFailed as error:
                # The user is in the meeting all the same: here is the response.
                present = error.response
                for failure in error.failures:
                    self._judge(failure.error)
            except Exception as error:  # noqa: BLE001 -- it is shown in the end
                present = None
                self._judge(error)
            if present is not None:
                self.ledger.answered()

    def _judge(self, error: BaseException) -> None:
        if isinstance(error, PhoneSwitchedOff):
            self.ledger.failed(error)
        else:
            self.ledger.problem(str(error))
            self._stopped.set()

    def _consume(self, listening: Future[None]) -> None:
        try:
            subscription = self._broker.subscribe(self._plan.topic, group=f"demo-{self._plan.run}")
        except Exception as error:  # noqa: BLE001 -- it is raised where the demo is played
            listening.set_exception(error)
            return
        listening.set_result(None)
        try:
            consume(subscription, self._directory.events, self._all_in)
        except Exception as error:  # noqa: BLE001 -- it is shown in the end
            self.ledger.problem(f"the consumer stopped: {error}")

    def _watch(self, screen: Screen, senders: Sequence[threading.Thread], consumer: threading.Thread) -> None:
        """Return when everything is sent and has come back, or nothing comes any more."""
        consumed, until = -1, 0.0
        while consumer.is_alive():
            sending = any(sender.is_alive() for sender in senders)
            snapshot = self._look(screen)
            if sending or snapshot.consumed != consumed:
                consumed, until = snapshot.consumed, time.monotonic() + self._plan.patience
            elif snapshot.open == 0 or time.monotonic() > until:
                return

    def _look(self, screen: Screen) -> Snapshot:
        self._all_in.wait(_TICK)
        snapshot = self.ledger.snapshot()
        screen.show(snapshot)
        return snapshot

    def _outcome(self) -> Outcome:
        meetings = self._joined.names()
        return Outcome(
            plan=self._plan,
            snapshot=self.ledger.snapshot(),
            lost=self.ledger.lost(),
            doubled=self.ledger.doubled(),
            joined={meeting: self._joined.users_in(meeting) for meeting in meetings},
            listed={meeting: self._directory.send(ListParticipants(meeting)) for meeting in meetings},
        )


def consume(subscription: Subscription, events: cqrs.EventMediator, all_in: threading.Event) -> None:
    """Bring what a broker delivers to its handlers, until all is in and it is silent: a whole consumer."""
    with subscription as deliveries:
        while True:
            try:
                delivery = deliveries.receive(timeout=_SILENCE)
            except cqrs.BrokerUnavailable:
                # It may come back; how long to wait for it is for others to say.
                delivery = None
                all_in.wait(_SILENCE)
            if delivery is not None:
                handle(delivery, events)
            elif all_in.is_set():
                return


def handle(delivery: Delivery, events: cqrs.EventMediator) -> None:
    """Handle a message and settle it: done, or to be delivered again."""
    try:
        events.receive(delivery.message)
    except BaseException:
        delivery.nack()
        raise
    delivery.ack()


def _join(threads: Sequence[threading.Thread]) -> None:
    until = time.monotonic() + _GOODBYE
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
