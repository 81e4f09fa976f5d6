"""A management command that is a command of click."""

from __future__ import annotations

from argparse import REMAINDER, ArgumentParser
from typing import Any

import click
from django.core.management.base import BaseCommand

from cqrs_sync.integrations.django.wiring import mediator_of_settings


class ClickCommand(BaseCommand):
    """Hands its arguments over, and the mediator that the settings name."""

    command: click.Command
    requires_system_checks: Any = ()

    def run_from_argv(self, argv: list[str]) -> None:
        """Let click read the arguments, and end with its status."""
        self.command.main(args=argv[2:], prog_name=f"{argv[0]} {argv[1]}", obj=mediator_of_settings)

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
        self.command.main(args=options["arguments"], standalone_mode=False, obj=mediator_of_settings)
