"""Before the commit: inline handlers run, notification events become messages, the outbox gets its rows."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from cqrs_sync import context
from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.context import Flow, Lineage
from cqrs_sync.dispatch.handler_call import HandlerCall
from cqrs_sync.dispatch.routing import Prepared, Route
from cqrs_sync.errors import BrokerNotConfigured, ConfigurationError, EventCycle
from cqrs_sync.messages import Event
from cqrs_sync.transactions import NoTransactions
from cqrs_sync.wiring import Wiring

if TYPE_CHECKING:
    from cqrs_sync.outbox import OutboxEntry

logger: logging.Logger = logging.getLogger(__name__)

_get, _enter, _leave = context.current.get, context.current.set, context.current.reset


class PendingEvents:
    """
    Staged events that wait for the commit of their transaction.

    Everything that can fail without other threads or a broker is done.
    """

    __slots__ = ("at_commit", "committed", "events", "flow", "has_calls", "lineage", "outgoing", "version")

    #: Called in the transaction's thread when it commits.
    at_commit: Callable[[], object]

    def __init__(self, events: list[Event], flow: Flow, lineage: Lineage | None) -> None:
        self.events: list[Event] = events
        #: The attributes that messages which follow from these events carry.
        self.flow: Flow = flow
        #: The event whose handler raised these, None for events of a request.
        self.lineage: Lineage | None = lineage
        #: The messages of notification events, by the identity of the event.
        self.outgoing: dict[int, OutgoingMessage] | None = None
        #: Whether a handler runs after the commit; if not, `version` is that of the event map which says so.
        self.has_calls: bool = True
        self.version: int = 0
        self.committed: bool = True

    def commit_callback(self) -> Callable[[], object]:
        """Return the callback for the commit. It calls `at_commit`, which may be replaced until then."""
        self.committed = False
        self.at_commit = self._note_commit
        return lambda: self.at_commit()  # noqa: PLW0108 -- looked up at the commit

    def _note_commit(self) -> None:
        self.committed = True


class Staging:
    """
    Stages events inside the transaction of the handler that raised them.

    An error here fails that handler.
    """

    def __init__(self, wiring: Wiring, routes: Prepared[type, Route], wake_relay: Callable[[], object]) -> None:
        self._wiring = wiring
        self._routes = routes
        self._wake_relay = wake_relay
        self._event_map = wiring.event_map
        self._transactions = wiring.transactions
        if wiring.outbox is not None:
            from cqrs_sync.outbox import OutboxEntry  # noqa: PLC0415 -- only an outbox needs it

            self._make_entry = OutboxEntry
        self._has_transactions = not isinstance(wiring.transactions, NoTransactions)

    def stage(self, raised: list[Event], *, emit: bool = True) -> PendingEvents:
        """Stage the events that one handler has raised."""
        _, flow, lineage = _get() or (raised, {}, None)
        if lineage is not None:
            self._check_depth(lineage)
        pending = PendingEvents(raised, flow, lineage)
        routes = self._routes
        if routes.version != self._event_map.version:
            routes.refresh()
        if len(raised) > 1 and len(set(map(id, raised))) < len(raised):
            pending.events = list({id(event): event for event in raised}.values())
        for event in pending.events:
            if not routes[type(event)].only_after_commit:
                self._stage_each(pending, emit=emit)
                pending.version = routes.version
                pending.has_calls = any(routes[type(each)].after_commit for each in pending.events)
                break
        if self._has_transactions and self._transactions.active():
            self._transactions.on_commit(pending.commit_callback())
        return pending

    def transaction_is_open(self) -> bool:
        """Return whether the calling thread is inside a transaction."""
        return self._has_transactions and self._transactions.active()

    def _stage_each(self, pending: PendingEvents, *, emit: bool) -> None:
        """Stage events one by one: some have inline or durable handlers, are notifications, or have no handler."""
        waiting = deque((event, pending.lineage, pending.flow) for event in pending.events)
        events: dict[int, Event] = {}
        outgoing: dict[int, OutgoingMessage] = {}
        entries: list[OutboxEntry] = []
        while waiting:
            event, parent, flow = waiting.popleft()
            if id(event) in events:
                continue
            events[id(event)] = event
            route = self._routes[type(event)]
            publish = emit and route.is_notification
            if publish or route.durable:
                message = outgoing[id(event)] = self._message(event, route, flow)
                flow = {**flow, "causationid": message.id}
                # A handler may raise its own event again: the outbox has it from the first time.
                if self._wiring.outbox is not None and not _contains(parent, event):
                    entries.append(self._make_entry(message, publish=publish, handlers=route.durable))
            elif not route.after_commit and not route.inline:
                logger.warning("%s was raised, but no handler is bound to it", type(event).__qualname__)
            for call in route.inline:
                waiting.extend(self._call_inline(call, event, (event, parent), flow))
        pending.events = list(events.values())
        pending.outgoing = outgoing
        if entries:
            self._store(entries, own_transaction=not emit)

    def _store(self, entries: list[OutboxEntry], *, own_transaction: bool) -> None:
        outbox = self._wiring.outbox
        assert outbox is not None
        outbox.add(entries, own_transaction=own_transaction)
        if logger.isEnabledFor(logging.DEBUG):
            for entry in entries:
                targets = [*([entry.message.topic] if entry.publish else ()), *entry.handlers]
                logger.debug("%s: stored in the outbox for %s", entry.message.title, ", ".join(targets))
        if outbox.transactions.active():
            outbox.transactions.on_commit(self._wake_relay)
        else:
            self._wake_relay()

    def _call_inline(
        self, call: HandlerCall, event: Event, lineage: Lineage, flow: Flow
    ) -> list[tuple[Event, Lineage | None, Flow]]:
        raised: list[Event] = []
        token = _enter((raised, flow, lineage))
        try:
            _, attempts = call.invoke(event, raised, list)
        except Exception as error:
            error.add_note(f"in {call.name}, inline, handling {type(event).__qualname__}")
            raise
        finally:
            _leave(token)
        if attempts:
            self._check_depth(lineage)
        return [(follow_up, lineage, flow) for events in attempts for follow_up in events]

    def _message(self, event: Event, route: Route, flow: Flow) -> OutgoingMessage:
        wiring = self._wiring
        if route.durable and wiring.outbox is None:
            raise ConfigurationError(
                f"{type(event).__qualname__} has the durable handler {', '.join(route.durable)}, "
                "and this mediator has no outbox to store the event in: give bootstrap an outbox"
            )
        if wiring.broker is None and wiring.outbox is None:
            raise BrokerNotConfigured(
                f"{type(event).__qualname__} is a notification event, and this mediator has no broker: give bootstrap "
                "one, cqrs_sync.memory.MemoryBroker() if no other service receives it"
            )
        token = _enter((context.outside, flow, None))
        try:
            return wiring.emitter.to_message(event)
        finally:
            _leave(token)

    def _check_depth(self, lineage: Lineage | None) -> None:
        titles: list[str] = []
        while lineage is not None:
            event, lineage = lineage
            titles.append(type(event).__qualname__)
        if len(titles) > self._wiring.max_depth:
            shown = " -> ".join(reversed(titles[:6]))
            raise EventCycle(
                f"events raise each other in a cycle, more than {self._wiring.max_depth} levels deep: ... -> {shown}; "
                "further events were dropped: break the cycle, or raise max_depth in bootstrap"
            )


def _contains(lineage: Lineage | None, event: Event) -> bool:
    while lineage is not None:
        known, lineage = lineage
        if known is event:
            return True
    return False
