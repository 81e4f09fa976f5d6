"""What was raised and waits for its commit, and what is to be done with it then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.context import Flow, Lineage
from cqrs_sync.dispatch.handler_call import Invocation
from cqrs_sync.handlers import EventHandler
from cqrs_sync.messages import Event


class Staged:
    """
    Events that were raised and are to be dispatched once their transaction has committed.

    All that can fail without other threads or a broker has been done.
    """

    __slots__ = ("commit", "committed", "events", "flow", "lineage", "outgoing")

    def __init__(self, events: list[Event], flow: Flow, lineage: Lineage | None) -> None:
        self.events = events
        #: The messages of notification events, by the identity of the event.
        self.outgoing: dict[int, OutgoingMessage] | None = None
        #: What messages that follow from these events carry.
        self.flow = flow
        #: The event whose handler raised these, None for those of a request.
        self.lineage = lineage
        self.committed = True

    commit: Callable[[], object]

    def await_commit(self) -> Callable[[], object]:
        """Return what is to be called at the commit; `commit` may be replaced until then."""
        self.committed = False
        self.commit = self._note_commit
        # Looked up at the commit.
        return lambda: self.commit()  # noqa: PLW0108

    def _note_commit(self) -> None:
        self.committed = True


class Target(NamedTuple):
    """A handler that runs after the commit, ready to be called."""

    name: str
    invoke: Invocation[Staged]
    #: Where `invoke` would only build the handler, call it and stage what it raised: builds it.
    build: Callable[[], EventHandler[Any]] | None = None


class InlineTarget(NamedTuple):
    """A handler that runs inside the transaction, ready to be called."""

    name: str
    invoke: Invocation[list[Event]]


class Route(NamedTuple):
    """What is to be done with events of a type."""

    targets: tuple[Target, ...]
    inline: tuple[InlineTarget, ...]
    #: Durable handlers, by their stable names.
    durable: tuple[str, ...]
    notification: bool
    #: Nothing is to be done inside the transaction.
    plain: bool
