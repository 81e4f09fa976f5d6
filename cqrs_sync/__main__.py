"""The program: the demo, and the commands for operators, each with `--app`."""

from __future__ import annotations

import copy
from functools import partial

# Before click: it says in one line that it is missing.
from cqrs_sync.cli import consume, dead, dlq, lag, purge, relay, status, topology  # isort: split

import click

from cqrs_sync.cli.app import APP_VARIABLE, load
from cqrs_sync.demo.command import demo


def _set_application(context: click.Context, _: click.Parameter, path: str | None) -> None:
    if path is not None:
        context.obj = partial(load, path)


def _app_option(help_text: str) -> click.Option:
    return click.Option(
        ["--app"],
        metavar="MODULE:NAME",
        expose_value=False,
        # Before the options of the command itself, so that it is known when those are read.
        is_eager=True,
        callback=_set_application,
        help=help_text,
    )


def _with_application(command: click.Command) -> click.Command:
    """Return a command that takes `--app`, and so do those below it."""
    taking = copy.copy(command)
    words = f"Where the mediator is, or a Consumer, or a function that returns one.  [env var: {APP_VARIABLE}]"
    taking.params = [_app_option(words), *command.params]
    if isinstance(taking, click.Group):
        taking.commands = {name: _with_application(each) for name, each in taking.commands.items()}
    return taking


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Commands, queries and events, synchronously: threads, Kafka and RabbitMQ."""


main.params.append(_app_option("For the commands below that take it as well."))
main.add_command(demo)
for _command in (relay, status, dead, purge, consume, dlq, lag, topology):
    main.add_command(_with_application(_command))

if __name__ == "__main__":
    main(prog_name="python -m cqrs_sync")
