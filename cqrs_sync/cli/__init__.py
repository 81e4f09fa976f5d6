"""
Commands for operators: `relay`, `outbox`, `consumer` and `topology`, each in a module of its name.

They are commands of click, and take an `Application` from their context. The command line makes it from `--app`,
Django's management commands make it from the settings:

    relay.main(["--drain"], prog_name="manage.py cqrs_relay", obj=Application(lambda: mediator))

`app` finds mediators, consumers and groups, `options` reads what operators write, `output` prints, `bulk` changes much
with progress, and `dead_letters` has the commands for dead letters that `outbox` and `consumer` share.
"""

from __future__ import annotations

import sys

try:
    import click  # noqa: F401 -- only to see that it is installed
    import rich  # noqa: F401
except ImportError:
    # Console scripts import this package first, so no later place can say it in one line.
    sys.stderr.write("the command line needs click and rich: run `pip install 'cqrs-sync[cli]'`\n")
    raise SystemExit(2) from None
