"""`manage.py cqrs_consume`: what `cqrs-sync consume` does, with the mediator or consumer of the settings."""

from __future__ import annotations

from cqrs_sync.cli import consume
from cqrs_sync.integrations.django.management.click import ClickCommand


class Command(ClickCommand):
    """Hand over to the command of the library."""

    command = consume
    of_groups = True
