from __future__ import annotations

import os

from celery import Celery
from celery.signals import worker_process_shutdown

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@worker_process_shutdown.connect
def close_mediator(**_: object) -> None:
    """Finish durable handlers that run in this process; without this, another process runs them again."""
    from orders.mediator import mediator  # noqa: PLC0415 -- Django is set up by now

    mediator.close(timeout=10)
