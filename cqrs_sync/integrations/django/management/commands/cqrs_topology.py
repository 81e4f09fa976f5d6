"""`manage.py cqrs_topology`: what `cqrs-sync topology` does, with the mediator or consumer of the settings."""

from __future__ import annotations

from cqrs_sync.cli import topology
from cqrs_sync.integrations.django.management.click import ClickCommand


class Command(ClickCommand):
    """Hand over to the command of the library."""

    command = topology
    of_groups = True
