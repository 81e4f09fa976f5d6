"""
Django: commands in its transactions, the outbox and the inbox in its database. Install `cqrs-sync[django]`.

```python
INSTALLED_APPS = [..., "cqrs_sync.integrations.django"]     # settings; then `manage.py migrate`
CQRS_SYNC = {"SOURCE": "shop", "MEDIATOR": "shop.mediator.mediator"}

mediator = bootstrap(requests, events, broker=broker)       # shop/mediator.py
```

`wiring` makes the mediator from `transactions` and the stores of `database`. Django itself finds `models`, `admin`,
`checks` and the management commands.
"""

from __future__ import annotations

from cqrs_sync.integrations import requires_extra

with requires_extra("django"):
    from cqrs_sync.integrations.django.database import DjangoInbox, DjangoOutbox
    from cqrs_sync.integrations.django.transactions import Atomic, DjangoTransactions, old_connections_closed
    from cqrs_sync.integrations.django.wiring import bootstrap, mediator_of_settings

__all__ = [
    "Atomic",
    "DjangoInbox",
    "DjangoOutbox",
    "DjangoTransactions",
    "bootstrap",
    "mediator_of_settings",
    "old_connections_closed",
]
