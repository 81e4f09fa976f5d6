"""`manage.py cqrs_topology`: what `cqrs-sync topology` does, with the mediator, consumer and group of the settings."""

from __future__ import annotations

import click

from cqrs_sync.cli.topology import topology
from cqrs_sync.integrations.django.management.click import ClickCommand


class Command(ClickCommand):
    """Runs the click command."""

    command: click.Command = topology
