from __future__ import annotations

from django.db.models import F

import cqrs_sync as cqrs
from orders.messages import OrderAnnounced, OrderPlaced, PlaceOrder, WriteInvoice
from orders.models import Order

requests = cqrs.RequestMap()
events = cqrs.EventMap()


@requests.bind
class PlaceOrderHandler(cqrs.RequestHandler[PlaceOrder, int]):
    def handle(self, request: PlaceOrder) -> int:
        order = Order.objects.create(customer=request.customer, article=request.article)
        self.raise_event(OrderPlaced(order.pk))
        self.raise_event(OrderAnnounced(order.pk, request.customer))
        return order.pk


@requests.bind
def write_invoice(request: WriteInvoice) -> None:
    Order.objects.filter(pk=request.order_id).update(invoices=F("invoices") + 1)


# A row of the order's own transaction: the task is sent after the commit, however often Celery's broker is away.


@events.durable("request-invoice")
def request_invoice(event: OrderPlaced) -> None:
    from orders import tasks  # noqa: PLC0415 -- tasks import the mediator, which imports this module

    tasks.write_invoice.delay(event.order_id)
