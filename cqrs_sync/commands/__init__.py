"""
Commands for those who operate an outbox: `cqrs-sync relay`, `status`, `dead`, `purge`.

They take the mediator from the context: the command line finds it by `--app`, Django's
management commands by its settings.
"""

from __future__ import annotations

try:
    from cqrs_sync.commands.outbox import dead, purge, status
    from cqrs_sync.commands.relaying import relay
except ImportError as error:
    if error.name not in {"click", "rich"}:
        raise
    raise SystemExit("the command line needs click and rich: run `pip install 'cqrs-sync[cli]'`") from None

__all__ = ["dead", "purge", "relay", "status"]
