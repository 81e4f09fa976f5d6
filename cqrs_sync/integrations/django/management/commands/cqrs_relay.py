"""`manage.py cqrs_relay`: what `cqrs-sync relay` does, with the mediator of the settings."""

from __future__ import annotations

from cqrs_sync.cli import relay
from cqrs_sync.integrations.django.management.click import ClickCommand


class Command(ClickCommand):
    """Hand over to the command of the library."""

    command = relay
