"""A management command that hands its arguments to a click command."""

from __future__ import annotations

from argparse import REMAINDER, ArgumentParser
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import click
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand
from django.db import connections

from cqrs_sync.cli.app import Application, InvalidCall
from cqrs_sync.consumer import Consumer
from cqrs_sync.integrations.django.checks import wiring_errors
from cqrs_sync.integrations.django.wiring import consumer_of_settings, group_of_settings, mediator_of_settings
from cqrs_sync.mediator import Mediator

T = TypeVar("T")


class ClickCommand(BaseCommand):
    """Runs `command` with the mediator, the consumer and the group that the settings name."""

    command: click.Command
    requires_system_checks: Any = ()

    def run_from_argv(self, argv: list[str]) -> None:
        """Let click read the arguments, and exit with its status."""
        # `manage.py` has read these two, and has set up Django by them.
        of_django = ArgumentParser(add_help=False, allow_abbrev=False)
        of_django.add_argument("--settings")
        of_django.add_argument("--pythonpath")
        _, arguments = of_django.parse_known_args(argv[2:])
        try:
            self.command.main(args=arguments, prog_name=f"{argv[0]} {argv[1]}", obj=SettingsApplication())
        finally:
            connections.close_all()

    def print_help(self, prog_name: str, subcommand: str) -> None:
        """Print the help of the click command."""
        self.command.main(args=["--help"], prog_name=f"{prog_name} {subcommand}", standalone_mode=False)

    def create_parser(self, prog_name: str, subcommand: str, **options: Any) -> Any:
        """Make a parser that leaves options to click."""
        parser = super().create_parser(prog_name, subcommand, **options)
        parser.prefix_chars = "\0"
        return parser

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take all arguments, for `call_command`."""
        parser.add_argument("arguments", nargs=REMAINDER)

    def handle(self, *_: Any, **options: Any) -> None:
        """Run it in this process. Raises what click raises, and SystemExit for its exit status."""
        self.command.main(args=options["arguments"], standalone_mode=False, obj=SettingsApplication())


class SettingsApplication(Application):
    """The mediator, the consumer and the group that Django's settings name."""

    group_setting = 'CQRS_SYNC = {"GROUP": "shop"} in the settings'

    def __init__(self) -> None:
        super().__init__(self.mediator)

    def mediator(self) -> Mediator:
        """Return the mediator that the settings name, or that of their consumer."""
        return self._mediator

    def consumer(self) -> Consumer | None:
        """Return the consumer that the settings name, None if they name none."""
        return self._consumer

    def group(self) -> str | None:
        """Return the group that the settings name, None if they name none."""
        return group_of_settings()

    # Each is made once, and the consumer only for commands that ask for it, or if there is no other mediator.
    @cached_property
    def _mediator(self) -> Mediator:
        mediator = _read_settings(lambda: mediator_of_settings(self.__dict__.get("_consumer")))
        _check(mediator)
        return mediator

    @cached_property
    def _consumer(self) -> Consumer | None:
        consumer = _read_settings(consumer_of_settings)
        if consumer is not None:
            _check(consumer.mediator)
        return consumer


def _check(mediator: Mediator) -> None:
    """Raise InvalidCall if `manage.py check` would find an error: no command would run, and few would say why."""
    if errors := wiring_errors(mediator):
        raise InvalidCall(
            "; ".join(": ".join(filter(None, (each.msg, each.hint))) + f" ({each.id})" for each in errors)
        )


def _read_settings(read: Callable[[], T]) -> T:
    try:
        return read()
    except ImproperlyConfigured as error:
        raise InvalidCall(str(error)) from error
