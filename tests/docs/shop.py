"""
The shop of the pictures in the documentation: Django's settings, an application, and what has happened in it.

Mails to one host fail, the broker has no queue for one topic, and orders wait for a relay.
"""

from __future__ import annotations

import os
from pathlib import Path

from attrs import frozen

import cqrs_sync as cqrs
from cqrs_sync.consumer import Consumer
from cqrs_sync.memory import MemoryBroker
from cqrs_sync.testing.waiting import eventually

SECRET_KEY = "of a picture"  # noqa: S105 -- no secret
ALLOWED_HOSTS = ["127.0.0.1"]
DEBUG = True
STATIC_URL = "static/"
ROOT_URLCONF = "tests.servers.django_urls"
USE_TZ = True
CQRS_SYNC = {"MEDIATOR": "tests.docs.shop.mediator"}
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path(os.environ.get("CQRS_PICTURES", "."), "shop.sqlite3"),
        "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20},
    }
}
INSTALLED_APPS = [
    *("django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.messages"),
    *("django.contrib.sessions", "django.contrib.staticfiles", "cqrs_sync.integrations.django"),
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                *("django.template.context_processors.request", "django.contrib.auth.context_processors.auth"),
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

requests, events, received = cqrs.RequestMap(), cqrs.EventMap(), cqrs.EventMap()


@frozen
class PlaceOrder(cqrs.Command[None]):
    number: int


@frozen
class OrderPlaced(cqrs.NotificationEvent, topic="orders", name="order.placed", key="number"):
    number: int


@frozen
class ReturnRegistered(cqrs.NotificationEvent, topic="returns", name="return.registered", key="number"):
    number: int


@requests.bind
def place_order(request: PlaceOrder) -> None:
    cqrs.raise_event(OrderPlaced(request.number))
    if request.number % 6 == 0:
        cqrs.raise_event(ReturnRegistered(request.number))


@events.durable("send-mail")
def send_mail(event: OrderPlaced) -> None:
    if event.number % 5 == 0:
        raise cqrs.PermanentError(f"the host mail{event.number}.example refuses the recipient")


def mediator() -> cqrs.Mediator:
    """Make the mediator of the settings; the broker has no queue for returns."""
    from cqrs_sync.integrations.django import bootstrap  # noqa: PLC0415 -- the settings are this module

    retry = cqrs.RetryPolicy(attempts=1, on_dead_letter=cqrs.OnDeadLetter.SKIP)
    return bootstrap(
        requests, events, source="tests", broker=MemoryBroker(topics=["orders"]), retry=retry, fast_path=False
    )


@received.bind
def charge(event: OrderPlaced) -> None:
    if event.number % 4 == 0:
        raise cqrs.PermanentError(f"card {event.number} was declined")


def billing() -> Consumer:
    """Make a consumer with messages that wait and some that are dead letters."""
    broker = MemoryBroker()
    shop, there = (
        cqrs.bootstrap(source="tests", broker=broker),
        cqrs.bootstrap(source="tests", events=received, broker=broker),
    )
    with Consumer(there, "billing", topics=["orders"]) as consumer:
        for number in range(1, 25):
            shop.publish(OrderPlaced(number))
        eventually(lambda: consumer.received == 24 and consumer.in_flight_count == 0)
    for number in range(25, 40):
        shop.publish(OrderPlaced(number))
    return Consumer(there, "billing", topics=["orders"])
