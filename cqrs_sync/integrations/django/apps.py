"""The Django app."""

from __future__ import annotations

from django.apps import AppConfig


class CqrsSyncConfig(AppConfig):
    """The tables of the outbox and the inbox, their admin, checks and commands."""

    name = "cqrs_sync.integrations.django"
    label = "cqrs_sync"
    verbose_name = "Outbox and inbox"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks."""
        from cqrs_sync.integrations.django import checks  # noqa: F401, PLC0415 -- it imports models
