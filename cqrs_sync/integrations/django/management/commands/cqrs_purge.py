"""`manage.py cqrs_purge`: what `cqrs-sync purge` does, with the mediator or consumer of the settings."""

from __future__ import annotations

from cqrs_sync.cli import purge
from cqrs_sync.integrations.django.management.click import ClickCommand


class Command(ClickCommand):
    """Hand over to the command of the library."""

    command = purge
    of_groups = True
