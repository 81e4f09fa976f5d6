"""`manage.py cqrs_dlq`: what `cqrs-sync dlq` does, with the mediator or consumer of the settings."""

from __future__ import annotations

from cqrs_sync.cli import dlq
from cqrs_sync.integrations.django.management.click import ClickCommand


class Command(ClickCommand):
    """Hand over to the command of the library."""

    command = dlq
    of_groups = True
