"""`manage.py cqrs_status`: what `cqrs-sync status` does, with the mediator of the settings."""

from __future__ import annotations

from cqrs_sync.cli import status
from cqrs_sync.integrations.django.management.click import ClickCommand


class Command(ClickCommand):
    """Hand over to the command of the library."""

    command = status
