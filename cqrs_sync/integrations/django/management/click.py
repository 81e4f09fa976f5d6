"""A management command that is a command of click."""

from __future__ import annotations

from argparse import REMAINDER, ArgumentParser
from typing import Any

import click
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand
from django.db import connections

from cqrs_sync.cli.app import Application, CannotBegin
from cqrs_sync.integrations.django.wiring import consumer_of_settings, group_of_settings, mediator_of_settings


class ClickCommand(BaseCommand):
    """Hands its arguments over, and the mediator that the settings name; `of_groups`, their consumer if they do."""

    command: click.Command
    of_groups = False
    requires_system_checks: Any = ()

    def run_from_argv(self, argv: list[str]) -> None:
        """Let click read the arguments, and end with its status."""
        # `manage.py` has read these two, and set things up by them.
        of_django = ArgumentParser(add_help=False, allow_abbrev=False)
        of_django.add_argument("--settings")
        of_django.add_argument("--pythonpath")
        _, arguments = of_django.parse_known_args(argv[2:])
        try:
            self.command.main(args=arguments, prog_name=f"{argv[0]} {argv[1]}", obj=_Application(self.of_groups))
        finally:
            connections.close_all()

    def print_help(self, prog_name: str, subcommand: str) -> None:
        """Let click tell what the command takes."""
        self.command.main(args=["--help"], prog_name=f"{prog_name} {subcommand}", standalone_mode=False)

    def create_parser(self, prog_name: str, subcommand: str, **options: Any) -> Any:
        """Make a parser that leaves options to click."""
        parser = super().create_parser(prog_name, subcommand, **options)
        parser.prefix_chars = "\0"
        return parser

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take them all, for `call_command`."""
        parser.add_argument("arguments", nargs=REMAINDER)

    def handle(self, *_: Any, **options: Any) -> None:
        """Do it inside this process. Raises what click raises; a status other than 0 as SystemExit."""
        self.command.main(args=options["arguments"], standalone_mode=False, obj=_Application(self.of_groups))


class _Application:
    """What commands ask for: the mediator or consumer of the settings, and the group it is one of."""

    #: Where a group may be named.
    group_is_in = 'CQRS_SYNC = {"GROUP": "shop"} in the settings'

    def __init__(self, of_groups: bool) -> None:
        self._of_groups = of_groups

    @property
    def group(self) -> str | None:
        return group_of_settings()

    def __call__(self) -> Application:
        try:
            return (consumer_of_settings() if self._of_groups else None) or mediator_of_settings()
        except ImproperlyConfigured as error:
            raise CannotBegin(str(error)) from error
