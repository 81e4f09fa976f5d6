"""
SQLAlchemy 2: sessions with transactions, the outbox and the inbox in your database. Install `cqrs-sync[sqlalchemy]`.

```python
mediator = bootstrap(requests, events, engine=engine, metadata=Base.metadata, source="shop", broker=broker)
```

`wiring` makes the mediator. `database` has the outbox and the inbox, `tables` the tables that you create. `sessions`
opens a transaction for each handler and runs what waits for its commit; `external_sessions` does so in the sessions
of an application that has its own.
"""

from __future__ import annotations

from cqrs_sync.integrations import requires_extra

with requires_extra("sqlalchemy"):
    from cqrs_sync.integrations.sqlalchemy.database import SQLAlchemyInbox, SQLAlchemyOutbox
    from cqrs_sync.integrations.sqlalchemy.external_sessions import ExternalSessions
    from cqrs_sync.integrations.sqlalchemy.sessions import Sessions, begin_immediate
    from cqrs_sync.integrations.sqlalchemy.tables import OutboxTables, inbox_table, tables
    from cqrs_sync.integrations.sqlalchemy.wiring import bootstrap

__all__ = [
    "ExternalSessions",
    "OutboxTables",
    "SQLAlchemyInbox",
    "SQLAlchemyOutbox",
    "Sessions",
    "begin_immediate",
    "bootstrap",
    "inbox_table",
    "tables",
]
