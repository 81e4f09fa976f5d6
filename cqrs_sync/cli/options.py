"""What operators write: durations, rates and sizes, the options that several commands share, names of commands."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from cqrs_sync.cli.app import GROUP_VARIABLE

# Generic only from click 8.2 on.
if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType

#: Seconds in a hundred years: the clocks of operating systems do not wait much longer.
_LONGEST = 3_155_760_000
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_BYTES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
#: What operators may look for under another name.
_SYNONYMS = {"dlq": "dead", "discard": "purge", "delete": "purge", "retry": "replay", "ls": "list", "consume": "run"}
#: What operators may call an option.
_OPTION_SYNONYMS = {
    "--crashes": "--max-crashes",
    "--every": "--report-every",
    "--for": "--stop-after",
    "--interval": "--report-every",
    "--max-runtime": "--stop-after",
    "--outage-after": "--circuit-threshold",
    "--over": "--max-waiting",
}

#: For every command.
HELP: dict[str, Any] = {"help_option_names": ["-h", "--help"]}


def parse_duration(text: str) -> float:
    """Read a duration in seconds: `90`, `1.5`, `90s`, `15m`, `12h`, `7d`, `2w`. Raises ValueError."""
    if milliseconds := re.fullmatch(r"([0-9]{1,12}) ?ms", text.strip()):
        raise ValueError(f"{text!r} is not a duration: write seconds, {int(milliseconds[1]) / 1000:.12g}")
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhdw]?)", text.strip())
    duration = None if found is None else float(found[1]) * _SECONDS[found[2]]
    if duration is None or duration > _LONGEST:
        raise ValueError(f"{text!r} is not a duration: write 90s, 15m, 12h or 7d, and half a second as 0.5")
    return duration


class Duration(ParamType):
    """Seconds, or a number with a unit."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it, or fail with the formats that are allowed."""
        if isinstance(value, (int, float)):
            return float(value)
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Durations(ParamType):
    """Durations with commas between them; an empty text is an empty list."""

    name = "durations"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Read them, or fail with the formats that are allowed."""
        if isinstance(value, tuple):
            return value
        parts = [part for part in str(value).split(",") if part.strip()]
        return tuple(Duration().convert(part, param, ctx) for part in parts)


class Rate(click.FloatRange):
    """A number per second, from one in a quarter of an hour to a million."""

    def __init__(self) -> None:
        super().__init__(0.001, 1_000_000)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it, or fail with the range that is allowed."""
        rate: float = super().convert(value, param, ctx)
        if math.isnan(rate):
            self.fail(f"{value!r} is not a number", param, ctx)
        return rate


class Size(ParamType):
    """Bytes, or a number with a unit."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it, or fail with the formats that are allowed."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]{1,15})([KMG]?)(?:i?B)?", value.strip(), re.IGNORECASE)
        if found is None:
            self.fail(f"{value!r} is not a size: write 512M or 2G", param, ctx)
        return int(found[1]) * _BYTES[found[2].upper()]


#: An option that takes a duration, or a number above 0.
duration_option: Callable[..., Callable[[Any], Any]] = partial(click.option, type=Duration(), metavar="DURATION")
number_option: Callable[..., Callable[[Any], Any]] = partial(click.option, type=click.IntRange(1), metavar="NUMBER")
json_option: Callable[[Any], Any] = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def add_options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a decorator that adds options to a command, in this order."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


group_options: Callable[[Any], Any] = add_options(
    click.option("--group", metavar="NAME", help=f"The group of consumers.  [env var: {GROUP_VARIABLE}]"),
    click.option(
        "--topic",
        "topics",
        multiple=True,
        metavar="NAME",
        help="Receive from this topic; may be repeated. Default: the topics of all events that have a handler.",
    ),
    click.option(
        "--retry-delays",
        type=Durations(),
        metavar="DURATIONS",
        help="Delays between the attempts at a message. Default: 0.1,1,10s,1m,10m.",
    ),
    duration_option(
        "--inline-limit",
        help="Delays up to this one pass in the consumer, where the key waits; longer ones in the broker. Default: 5s.",
    ),
    click.option(
        "--ordered/--unordered", default=None, help="Keep the order of keys. Default: ordered if an event has a key."
    ),
)

worker_options: Callable[[Any], Any] = add_options(
    duration_option("--grace", default=25.0, show_default=True, help="Time to finish after SIGTERM or Ctrl-C."),
    duration_option("--stop-after", "max_runtime", help="Stop after this time."),
    duration_option(
        "--report-every", "every", default=60.0, show_default=True, help="Time between two reports in a log."
    ),
    click.option("--json", "as_json", is_flag=True, help="Report on standard output, one JSON object per line."),
)


class CommandWithHints(click.Command):
    """A command that answers an unknown option with the one that may be meant."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments. Raises click.UsageError that suggests options."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            meant = _OPTION_SYNONYMS.get(error.option_name)
            if meant is not None and any(meant in parameter.opts for parameter in self.params):
                words = f"No such option {error.option_name!r}. Did you mean {meant!r}?"
                raise click.UsageError(words, error.ctx) from None
            raise


class CommandGroup(click.Group):
    """A group of commands that answers an unknown name with similar ones, wherever they are."""

    command_class = CommandWithHints

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command by name. Raises click.UsageError that suggests names."""
        name = args[0]
        if name not in self.commands and not name.startswith("-"):
            near = self._similar(name) or _similar_in_tree(ctx.find_root().command, name)
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            ctx.fail(f"No such command {name!r}.{hint}")
        return super().resolve_command(ctx, args)

    def _similar(self, name: str) -> list[str]:
        synonym = _SYNONYMS.get(name, "")
        return [synonym] if synonym in self.commands else difflib.get_close_matches(name, self.commands, 3)


def _similar_in_tree(root: click.Command, name: str) -> list[str]:
    paths = list(_paths(root))
    names = {path[-1] for path in paths}
    same = [each for each in (name, _SYNONYMS.get(name)) if each in names][:1]
    near = same or difflib.get_close_matches(name, names, 3)
    return [" ".join(path) for path in sorted(paths, key=len) if path[-1] in near][:3]


def _paths(command: click.Command, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield (*above, name)
            yield from _paths(each, (*above, name))
