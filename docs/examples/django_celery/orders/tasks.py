from __future__ import annotations

from celery import Task, shared_task
from django.core.management import call_command
from django.db import OperationalError

import cqrs_sync as cqrs
from orders.mediator import mediator
from orders.messages import PlaceOrder, WriteInvoice


@shared_task(bind=True, autoretry_for=(OperationalError, cqrs.InboxUnavailable), retry_backoff=True)
def place_order(self: Task, customer: str, article: str) -> int:
    # Retries and redeliveries of a task have its id: the order is placed once.
    return mediator.send(PlaceOrder(customer, article), idempotency_key=self.request.id, timeout=20)


@shared_task(autoretry_for=(OperationalError, cqrs.InboxUnavailable), retry_backoff=True)
def write_invoice(order_id: int) -> None:
    # A durable handler may send this task twice, with two ids: the key names the invoice.
    mediator.send(WriteInvoice(order_id), idempotency_key=str(order_id), timeout=20)


@shared_task
def purge() -> None:
    call_command("cqrs_outbox", "purge", "--older-than", "7d", "--receipts-older-than", "30d")
