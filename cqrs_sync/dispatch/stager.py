"""Do with raised events what belongs inside the transaction of the handler that raised them."""

from __future__ import annotations

import logging
from collections import deque

from cqrs_sync import context
from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.context import Flow, Lineage
from cqrs_sync.dispatch.routing import Routes
from cqrs_sync.dispatch.staging import InlineTarget, Route, Staged
from cqrs_sync.errors import BrokerNotConfigured, ConfigurationError, EventCycle
from cqrs_sync.messages import Event
from cqrs_sync.outbox import Entry
from cqrs_sync.transactions import NoTransactions
from cqrs_sync.wiring import Wiring

logger = logging.getLogger(__name__)

get, enter, leave = context.current.get, context.current.set, context.current.reset


class Stager:
    """
    Stages events: inline handlers, the bytes of notifications, and what the outbox keeps.

    What raises here fails the handler that raised the events.
    """

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._transactions = wiring.transactions
        self._transactional = not isinstance(wiring.transactions, NoTransactions)
        #: What is to be done with events of each type.
        self.routes = Routes(wiring, self.stage)

    def stage(self, raised: list[Event], *, emit: bool = True) -> Staged:
        """Stage the events that one handler has raised."""
        _, flow, lineage = get() or (raised, {}, None)
        if lineage is not None:
            self._check_depth(lineage)
        staged = Staged(raised, flow, lineage)
        routes = self.routes
        if len(raised) > 1 and len(set(map(id, raised))) < len(raised):
            staged.events = list({id(event): event for event in raised}.values())
        for event in staged.events:
            if not routes[type(event)].plain:
                self._stage_with_care(staged, emit=emit)
                break
        if self._transactional and self._transactions.active():
            self._transactions.on_commit(staged.await_commit())
        return staged

    def transaction_is_open(self) -> bool:
        """Tell whether the calling thread is inside a transaction."""
        return self._transactional and self._transactions.active()

    def _stage_with_care(self, staged: Staged, *, emit: bool) -> None:
        """Stage events of which some are stored, are notifications, have inline handlers, or no handler at all."""
        waiting = deque((event, staged.lineage, staged.flow) for event in staged.events)
        events: dict[int, Event] = {}
        outgoing: dict[int, OutgoingMessage] = {}
        entries: list[Entry] = []
        while waiting:
            event, parent, flow = waiting.popleft()
            if id(event) in events:
                continue
            events[id(event)] = event
            route = self.routes[type(event)]
            if (emit and route.notification) or route.durable:
                message = outgoing[id(event)] = self._prepare(event, route, flow)
                flow = {**flow, "causationid": message.id}
                # What a handler raises again was kept when it was raised first.
                if self._wiring.outbox is not None and not _is_in(event, parent):
                    entries.append(Entry(message, publish=emit and route.notification, handlers=route.durable))
            elif not route.targets and not route.inline:
                logger.warning("no handler is bound to %s: it was raised for nobody", type(event).__qualname__)
            for target in route.inline:
                waiting.extend(self._call_inline(target, event, (event, parent), flow))
        staged.events = list(events.values())
        staged.outgoing = outgoing
        if entries:
            self._keep(entries, alone=not emit)

    def _keep(self, entries: list[Entry], *, alone: bool) -> None:
        outbox = self._wiring.outbox
        assert outbox is not None
        outbox.add(entries, alone=alone)
        if outbox.transactions.active():
            outbox.transactions.on_commit(self._wiring.wake_relay)
        else:
            self._wiring.wake_relay()

    def _call_inline(
        self, target: InlineTarget, event: Event, lineage: Lineage, flow: Flow
    ) -> list[tuple[Event, Lineage | None, Flow]]:
        raised: list[Event] = []
        token = enter((raised, flow, lineage))
        try:
            _, batches = target.invoke(event, raised)
        except Exception as error:
            error.add_note(f"in {target.name}, inline, handling {type(event).__qualname__}")
            raise
        finally:
            leave(token)
        if batches:
            self._check_depth(lineage)
        return [(follow_up, lineage, flow) for batch in batches for follow_up in batch]

    def _prepare(self, event: Event, route: Route, flow: Flow) -> OutgoingMessage:
        if route.durable and self._wiring.outbox is None:
            raise ConfigurationError(
                f"{', '.join(route.durable)}, which is bound to {type(event).__qualname__}, is durable: "
                "give bootstrap an outbox to write it down in"
            )
        if self._wiring.broker is None and self._wiring.outbox is None:
            raise BrokerNotConfigured(
                f"{type(event).__qualname__} has nowhere to go: give bootstrap a broker, "
                "cqrs_sync.memory.MemoryBroker() where nobody is to receive it"
            )
        token = enter((context.outside, flow, None))
        try:
            return self._wiring.emitter.prepare(event)
        finally:
            leave(token)

    def _check_depth(self, lineage: Lineage | None) -> None:
        titles: list[str] = []
        while lineage is not None:
            event, lineage = lineage
            titles.append(type(event).__qualname__)
        if len(titles) > self._wiring.max_depth:
            shown = " -> ".join(reversed(titles[:6]))
            raise EventCycle(
                f"events raise each other without end: ... -> {shown}; "
                f"after {self._wiring.max_depth} follow-ups the rest was dropped, "
                "break the cycle or give bootstrap a larger max_depth"
            )


def _is_in(event: Event, lineage: Lineage | None) -> bool:
    while lineage is not None:
        known, lineage = lineage
        if known is event:
            return True
    return False
