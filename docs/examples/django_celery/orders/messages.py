from __future__ import annotations

from attrs import frozen

import cqrs_sync as cqrs


@frozen
class PlaceOrder(cqrs.Command[int]):
    """Place an order; the response is its number."""

    customer: str
    article: str


@frozen
class WriteInvoice(cqrs.Command[None]):
    order_id: int


@frozen
class OrderPlaced(cqrs.DomainEvent, name="orders.placed"):
    order_id: int


@frozen
class OrderAnnounced(cqrs.NotificationEvent, topic="orders", name="order.announced", key="order_id"):
    order_id: int
    customer: str
