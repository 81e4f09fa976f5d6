"""A command and its event, for contracts that look at what the library makes of a socket."""

from __future__ import annotations

import attrs

from cqrs_sync.context import raise_event
from cqrs_sync.messages import Command, DomainEvent
from cqrs_sync.registry import EventMap, RequestMap


@attrs.frozen
class Order(Command[str]):
    """Raises one event."""

    item: str


@attrs.frozen
class Ordered(DomainEvent):
    """What Order raises."""

    item: str


def order_maps(handled: list[str]) -> tuple[RequestMap, EventMap]:
    """Bind a handler to each; that of the event notes the item."""

    def order(request: Order) -> str:
        raise_event(Ordered(request.item))
        return "ordered"

    def note(event: Ordered) -> None:
        handled.append(event.item)

    requests, events = RequestMap(), EventMap()
    requests.bind(Order, order)
    events.bind(Ordered, note)
    return requests, events
