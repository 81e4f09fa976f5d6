"""Django settings of a project with Celery, on SQLite; on PostgreSQL if PGDATABASE names a database."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from celery.schedules import crontab

BASE = Path(__file__).parents[1]
SECRET_KEY = "an example has no secrets"
ALLOWED_HOSTS = ["127.0.0.1", "testserver"]
ROOT_URLCONF = "config.urls"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "cqrs_sync.integrations.django",
    "orders",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
CQRS_SYNC = {"SOURCE": "orders", "MEDIATOR": "orders.mediator.mediator"}
TIME_ZONE = "UTC"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("SQLITE_FILE", BASE / "db.sqlite3"),
        # SQLite has one writer at a time: transactions wait for their turn, instead of failing half-way.
        "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20},
        "TEST": {"NAME": os.environ.get("SQLITE_FILE", BASE / "test.sqlite3")},
    }
}
if "PGDATABASE" in os.environ:
    # libpq takes the rest from its own variables, such as PGHOST and PGUSER.
    DATABASES["default"] = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ["PGDATABASE"],
        # A request that is sent again waits so long for the first one: see orders/views.py.
        "OPTIONS": {"options": "-c lock_timeout=2s"},
    }

# Tasks go through Celery's broker, events for other services through RabbitMQ.
CELERY_BROKER_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
CELERY_RESULT_BACKEND = CELERY_BROKER_URL
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_BEAT_SCHEDULE = {
    "purge": {"task": "orders.tasks.purge", "schedule": crontab(hour=3, minute=0)},
}

TESTING = sys.argv[1:2] == ["test"] or "pytest" in sys.modules
RABBITMQ_URL = None if TESTING else os.environ.get("RABBITMQ_URL")
RABBITMQ_EXCHANGE = os.environ.get("RABBITMQ_EXCHANGE", "shop-example")
