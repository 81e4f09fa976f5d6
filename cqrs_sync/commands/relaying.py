"""`relay`."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Self

import click
from rich.console import Console
from rich.status import Status

from cqrs_sync.commands.application import Duration, relay_of
from cqrs_sync.errors import ConfigurationError, CqrsError
from cqrs_sync.relay import Relay
from cqrs_sync.workers.process import RelayOptions, RelayProcess, leave

#: Seconds between two reports on a terminal, and in a log.
_LIVE, _LOGGED = 1.0, 60.0


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--publishers", type=click.IntRange(1), default=2, show_default=True, help="Threads that publish.")
@click.option(
    "--poll",
    type=(Duration(), Duration()),
    default=(0.05, 4.0),
    show_default=True,
    help="Seconds between looks, at first and up to.",
)
@click.option("--lease", type=Duration(), default=30.0, show_default=True, help="How long a claim holds.")
@click.option("--batch", type=click.IntRange(1), default=500, show_default=True, help="Messages in a claim.")
@click.option("--grace", type=Duration(), default=25.0, show_default=True, help="Time to finish when told to stop.")
@click.option("--drain", is_flag=True, help="Deliver what is due, and end.")
@click.option("--purge-after", type=Duration(), help="Delete delivered messages that are older, such as 7d.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON, a line each.")
@click.pass_context
def relay(
    context: click.Context, /, poll: tuple[float, float], purge_after: float | None, *, as_json: bool, **options: Any
) -> None:
    """
    Deliver what the outbox keeps, until told to stop (SIGTERM, Ctrl-C).

    Any number of them may run. A second signal ends it at once. Exit status: 0; 1 where a handler was not
    finished within the grace.
    """
    chosen = RelayOptions(shortest_poll=poll[0], longest_poll=poll[1], purge_after=purge_after, **options)
    _set_up_logs()
    try:
        with _Report(as_json=as_json) as report:
            status = RelayProcess(relay_of(context), chosen, report).run()
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    leave(status)


def _set_up_logs() -> None:
    """Log to standard error, unless the application has set up logs of its own."""
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # What clients of brokers say of an outage, many times a second, a relay says once.
    for vendor in ("pika", "kafka"):
        if logging.getLogger(vendor).level == logging.NOTSET:
            logging.getLogger(vendor).setLevel(logging.CRITICAL)


class _Report:
    """Tells how it goes: a line that changes on a terminal, a line a minute in a log."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        console = Console(stderr=True)
        self._live = Status("relaying", console=console) if console.is_terminal and not as_json else None
        self._said = 0.0
        self._delivered = 0
        self._begun = self._then = time.monotonic()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, relay: Relay, last: bool, /) -> None:
        now = time.monotonic()
        if not last and now - self._said < (_LOGGED if self._live is None else _LIVE):
            return
        self._said = now
        facts = self._facts(relay, now)
        words = f"{facts['delivered']} delivered, {facts['per_second']} a second" + (
            "" if facts["waiting"] is None else f"; {facts['waiting']} wait, {facts['dead']} are dead"
        )
        if self._as_json:
            click.echo(json.dumps(facts))
        elif self._live is not None and not last:
            self._live.update(words)
        else:
            click.echo(f"relay: {words}", err=True)
        sys.stdout.flush()

    def _facts(self, relay: Relay, now: float) -> dict[str, Any]:
        rate = (relay.delivered - self._delivered) / max(now - self._then, 0.001)
        self._delivered, self._then = relay.delivered, now
        facts: dict[str, Any] = {"delivered": relay.delivered, "per_second": round(rate, 1)}
        try:
            backlog = relay.outbox.backlog()
            relay.outbox.let_go()
        except CqrsError:
            return {**facts, "waiting": None, "dead": None, "lag": None}
        lag = None if backlog.oldest is None else round(backlog.oldest, 3)
        return {**facts, "waiting": backlog.waiting, "dead": backlog.dead, "lag": lag}
