"""`manage.py cqrs_consumer`: what `cqrs-sync consumer` does, with the mediator, consumer and group of the settings."""

from __future__ import annotations

import click

from cqrs_sync.cli.consumer import consumer
from cqrs_sync.integrations.django.management.click import ClickCommand


class Command(ClickCommand):
    """Runs the click command."""

    command: click.Command = consumer
