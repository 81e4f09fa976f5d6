"""The program `cqrs-sync`: the demo, and the commands for operators, each with `--app`."""

from __future__ import annotations

import copy
from functools import partial

# Before click: this package says in one line that click is missing.
from cqrs_sync.cli.app import APP_VARIABLE, Application, load  # isort: split

import click

from cqrs_sync.cli.consumer import consumer
from cqrs_sync.cli.options import HELP, CommandGroup
from cqrs_sync.cli.outbox import outbox
from cqrs_sync.cli.relay import relay
from cqrs_sync.cli.topology import topology
from cqrs_sync.demo.command import demo


def _set_application(context: click.Context, _: click.Parameter, path: str | None) -> None:
    if path is not None:
        context.obj = Application(partial(load, path))


def _app_option(help_text: str) -> click.Option:
    return click.Option(
        ["--app"],
        metavar="MODULE:NAME",
        expose_value=False,
        # Before the command's own options, which need the application.
        is_eager=True,
        callback=_set_application,
        help=help_text,
    )


def _with_app_option(command: click.Command) -> click.Command:
    """Return a copy of a command that takes `--app`, as do its subcommands."""
    copied = copy.copy(command)
    help_text = f"A mediator, a Consumer, or a function that returns one.  [env var: {APP_VARIABLE}]"
    copied.params = [_app_option(help_text), *command.params]
    if isinstance(copied, click.Group):
        copied.commands = {name: _with_app_option(each) for name, each in copied.commands.items()}
    return copied


@click.group(cls=CommandGroup, context_settings=HELP)
def main() -> None:
    """Commands, queries and events, synchronously: threads, Kafka and RabbitMQ."""


main.params.append(_app_option("For the commands below."))
main.add_command(demo)
for _command in (relay, outbox, consumer, topology):
    main.add_command(_with_app_option(_command))

if __name__ == "__main__":
    main(prog_name="python -m cqrs_sync")
