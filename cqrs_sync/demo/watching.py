"""Watch the example from outside: subclasses of its handlers, and middlewares around the broker."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import attrs

from cqrs_sync.broker import IncomingMessage, OutgoingMessage
from cqrs_sync.demo.ledger import Ledger
from cqrs_sync.errors import PublishFailed
from cqrs_sync.middleware import CallNext
from cqrs_sync.registry import EventMap, RequestMap


def watched_requests(requests: RequestMap, ledger: Ledger) -> RequestMap:
    """Bind the same handlers once more, each in a subclass that notes its runs."""
    watched = RequestMap()
    for binding in requests:
        watched.bind(binding.message_type, _watched(binding.handler, ledger))
    return watched


def watched_events(events: EventMap, ledger: Ledger) -> EventMap:
    """Bind the same handlers once more, each in a subclass that notes its runs."""
    watched = EventMap()
    for binding in events:
        watched.bind(binding.message_type, _watched(binding.handler, ledger), phase=binding.phase)
    return watched


@attrs.frozen
class OwnTopic:
    """Around publishing: gives each run of the demo a topic of its own, so that runs do not hear each other."""

    topic: str

    def __call__(self, messages: Sequence[OutgoingMessage], call_next: CallNext, /) -> Any:
        """Publish under another topic."""
        return call_next(tuple(attrs.evolve(message, topic=self.topic) for message in messages))


@attrs.frozen
class WatchPublishing:
    """Around publishing: notes what is given to the broker, and what the broker has confirmed."""

    ledger: Ledger

    def __call__(self, messages: Sequence[OutgoingMessage], call_next: CallNext, /) -> Any:
        """Publish, and take note."""
        ids = [message.id for message in messages]
        self.ledger.raised((message.id, message.body) for message in messages)
        try:
            published = call_next(messages)
        except PublishFailed as error:
            failed = {message.id for message, _ in error.failures}
            self.ledger.confirmed(message_id for message_id in ids if message_id not in failed)
            raise
        self.ledger.confirmed(ids)
        return published


@attrs.frozen
class WatchReceiving:
    """Around receiving: notes each message that was handled."""

    ledger: Ledger

    def __call__(self, message: IncomingMessage, call_next: CallNext, /) -> Any:
        """Handle it, and take note."""
        handled = call_next(message)
        self.ledger.consumed(message.attributes["id"])
        return handled


def _watched(handler: Any, ledger: Ledger) -> Any:
    def handle(self: Any, message: Any) -> Any:
        begin = time.perf_counter()
        failed = True
        try:
            answer = handler.handle(self, message)
            failed = False
            return answer
        finally:
            ledger.handled(handler.__name__, time.perf_counter() - begin, failed=failed)

    return type(handler.__name__, (handler,), {"__module__": handler.__module__, "handle": handle})
