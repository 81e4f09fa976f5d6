"""Record which events a mediator dispatches and publishes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import attrs

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.emitter import EventEmitter
from cqrs_sync.mediator import Mediator
from cqrs_sync.memory import MemoryBroker
from cqrs_sync.messages import Event, NotificationEvent
from cqrs_sync.threads.executor import SameThread

M = TypeVar("M", bound=Event)


class Recorder:
    """The events a mediator dispatched and published while it was recorded, in order."""

    def __init__(self) -> None:
        #: Each event whose handlers ran, or would have after the commit.
        self.dispatched: list[Event] = []
        #: Each notification event that the outbox or the broker would have got.
        self.published: list[NotificationEvent] = []
        #: The same as messages.
        self.messages: list[OutgoingMessage] = []

    def clear(self) -> None:
        """Forget what was recorded."""
        self.dispatched.clear()
        self.published.clear()
        self.messages.clear()

    def assert_dispatched(self, expected: Event | type[M], /, *, times: int | None = None, **fields: Any) -> None:
        """
        Assert that an event was dispatched: an equal one, or one of this type with these fields.

        With `times`, exactly so many; otherwise at least one.
        """
        _assert_seen("dispatched", self.dispatched, expected, times, fields)

    def assert_published(self, expected: Event | type[M], /, *, times: int | None = None, **fields: Any) -> None:
        """Assert the same of what was published."""
        _assert_seen("published", self.published, expected, times, fields)

    def assert_nothing_dispatched(self) -> None:
        """Assert that no event was dispatched."""
        assert not self.dispatched, f"no event was expected, but these were dispatched: {_shown(self.dispatched)}"

    def assert_nothing_published(self) -> None:
        """Assert that no event was published."""
        assert not self.published, f"no event was expected, but these were published: {_shown(self.published)}"


@contextmanager
def record(mediator: Mediator, /) -> Iterator[Recorder]:
    """
    Record what a mediator does in this block.

    Event handlers, durable ones too, run in the thread that sends, one after the other. Notification events
    stay in memory and reach neither outbox nor broker. At the end of the block the mediator is as before. Events that
    were sent in the block are recorded even if their transaction commits after it: commit inside the block.
    Only for tests: the recorder sees all threads that use the mediator meanwhile.
    """
    recorder = Recorder()
    dispatcher = mediator.dispatcher
    wiring = dispatcher.wiring
    dispatcher.use(
        attrs.evolve(
            wiring,
            broker=MemoryBroker(),
            emitter=_RecordingEmitter(recorder, wiring.emitter),
            outbox=None,
            threads=SameThread(),
            observer=recorder.dispatched.extend,
        )
    )
    try:
        yield recorder
    finally:
        dispatcher.use(wiring)


class _RecordingEmitter(EventEmitter):
    """Prepares events as the real emitter does, and keeps what it would publish."""

    def __init__(self, recorder: Recorder, emitter: EventEmitter) -> None:
        super().__init__(MemoryBroker(), serializer=emitter.serializer)
        self._recorder = recorder
        self._emitter = emitter
        self._prepared: dict[str, NotificationEvent] = {}

    def to_message(self, event: Event, /) -> OutgoingMessage:
        message = self._emitter.to_message(event)
        if isinstance(event, NotificationEvent):
            self._prepared[message.id] = event
        return message

    def publish(self, messages: Sequence[OutgoingMessage], /) -> None:
        self._recorder.messages.extend(messages)
        self._recorder.published.extend(self._prepared.pop(message.id) for message in messages)


def _assert_seen(
    done: str, seen: Sequence[Event], expected: Event | type[Event], times: int | None, fields: dict[str, Any]
) -> None:
    if isinstance(expected, type):
        matching = [event for event in seen if isinstance(event, expected) and _has(event, fields)]
        wanted = f"{expected.__qualname__}({', '.join(f'{name}={value!r}' for name, value in fields.items())})"
    elif fields:
        raise TypeError("fields go with an event type; an event has its own")
    else:
        matching = [event for event in seen if event == expected]
        wanted = repr(expected)
    found = len(matching) == times if times is not None else bool(matching)
    how = f"was not {done}" if times is None else f"was {done} {len(matching)} time(s), not {times}"
    assert found, f"{wanted} {how}; {done} were: {_shown(seen)}"


def _has(event: Event, fields: dict[str, Any]) -> bool:
    missing = object()
    return all(getattr(event, name, missing) == value for name, value in fields.items())


def _shown(events: Sequence[Event]) -> str:
    return ", ".join(map(repr, events)) or "none"
