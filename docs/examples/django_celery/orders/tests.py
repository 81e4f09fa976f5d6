"""Tasks run in the thread of the test: no worker, no broker."""

from __future__ import annotations

from celery import current_app
from django.test import TestCase

from cqrs_sync.testing import record
from orders import tasks
from orders.mediator import mediator
from orders.messages import OrderAnnounced, PlaceOrder
from orders.models import Order


class PlacingAnOrder(TestCase):
    def setUp(self) -> None:
        current_app.conf.task_always_eager = True
        current_app.conf.task_eager_propagates = True

    def test_the_invoice_is_written_by_a_task(self) -> None:
        with record(mediator) as recorder, self.captureOnCommitCallbacks(execute=True):
            order_id = mediator.send(PlaceOrder("ada"))

        recorder.assert_published(OrderAnnounced(order_id, "ada"))
        assert Order.objects.get(pk=order_id).invoices == 1

    def test_a_task_returns_the_number_of_the_order(self) -> None:
        with record(mediator), self.captureOnCommitCallbacks(execute=True):
            order_id = tasks.place_order.delay("ada").get()

        assert Order.objects.get().pk == order_id
