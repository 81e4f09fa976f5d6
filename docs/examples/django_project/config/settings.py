"""Default Django settings, on SQLite; on PostgreSQL if PGDATABASE names a database."""

from __future__ import annotations

import os
import sys
from pathlib import Path

BASE = Path(__file__).parents[1]
SECRET_KEY = "an example has no secrets"
ALLOWED_HOSTS = ["127.0.0.1", "testserver"]
ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
INSTALLED_APPS = ["cqrs_sync.integrations.django", "meetings"]
CQRS_SYNC = {"SOURCE": "meetings", "MEDIATOR": "meetings.mediator.mediator"}
TIME_ZONE = "UTC"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("SQLITE_FILE", BASE / "db.sqlite3"),
        # SQLite has one writer at a time: transactions wait for their turn, instead of failing half-way.
        "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20},
        # Threads do not share a database in memory.
        "TEST": {"NAME": os.environ.get("SQLITE_FILE", BASE / "test.sqlite3")},
        "ATOMIC_REQUESTS": True,
    }
}
if "PGDATABASE" in os.environ:
    # libpq takes the rest from its own variables, such as PGHOST and PGUSER.
    name = os.environ["PGDATABASE"]
    DATABASES["default"] = {"ENGINE": "django.db.backends.postgresql", "NAME": name, "ATOMIC_REQUESTS": True}

# The broker for notification events. Without it they stay in this process, as in tests.
TESTING = sys.argv[1:2] == ["test"] or "pytest" in sys.modules
RABBITMQ_URL = None if TESTING else os.environ.get("RABBITMQ_URL")
RABBITMQ_EXCHANGE = os.environ.get("RABBITMQ_EXCHANGE", "meetings-example")
SEATS = 3
