"""`manage.py cqrs_dead`: what `cqrs-sync dead` does, with the mediator of the settings."""

from __future__ import annotations

from cqrs_sync.cli import dead
from cqrs_sync.integrations.django.management.click import ClickCommand


class Command(ClickCommand):
    """Hand over to the command of the library."""

    command = dead
