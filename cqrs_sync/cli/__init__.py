"""
Commands for operators: `relay`, `status`, `dead` and `purge` of an outbox, `consume` and others of a group.

They are commands of click that take the mediator from their context: `obj` is a function that
returns it. The command line finds it by `--app`, Django's management commands by their settings:

    relay.main(["--drain"], prog_name="manage.py cqrs_relay", obj=lambda: mediator)

An attribute `group` of that function is the group, where no option says.

`application` finds a mediator and `groups` a group, and they say what is wrong with them; `durations`, `text` and
`chunks` are how commands read, print and work; the other modules are the commands.
"""

from __future__ import annotations

import sys

try:
    import click  # noqa: F401 -- whether they are there
    import rich  # noqa: F401
except ImportError:
    # Console scripts import this package, so there is no later place to say it in one line.
    sys.stderr.write("the command line needs click and rich: run `pip install 'cqrs-sync[cli]'`\n")
    raise SystemExit(2) from None

from cqrs_sync.cli.consumer import consume
from cqrs_sync.cli.dead_letters import dead
from cqrs_sync.cli.letters import dlq
from cqrs_sync.cli.outbox import purge, status
from cqrs_sync.cli.relay import relay
from cqrs_sync.cli.topology import lag, topology

__all__ = ["consume", "dead", "dlq", "lag", "purge", "relay", "status", "topology"]
