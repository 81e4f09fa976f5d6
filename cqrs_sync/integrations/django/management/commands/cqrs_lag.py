"""`manage.py cqrs_lag`: what `cqrs-sync lag` does, with the mediator or consumer of the settings."""

from __future__ import annotations

from cqrs_sync.cli import lag
from cqrs_sync.integrations.django.management.click import ClickCommand


class Command(ClickCommand):
    """Hand over to the command of the library."""

    command = lag
    of_groups = True
