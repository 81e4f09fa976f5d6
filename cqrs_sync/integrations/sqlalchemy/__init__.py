"""
SQLAlchemy 2: sessions with commands, the outbox and the inbox in your database. Install `cqrs-sync[sqlalchemy]`.

```python
sessions = Sessions(sessionmaker(engine))
outbox = SQLAlchemyOutbox(sessions)
inbox = SQLAlchemyInbox(sessions)
```

`stores` has the outbox and the inbox, `tables` the tables that you create. `sessions` opens a transaction per
command, and `commit_hooks` runs what waits for its commit. `database` gives the stores their connections.
"""

from __future__ import annotations

from cqrs_sync.integrations import requires_extra

with requires_extra("sqlalchemy"):
    from cqrs_sync.integrations.sqlalchemy.sessions import Sessions, SessionTransactions, begin_immediate
    from cqrs_sync.integrations.sqlalchemy.stores import SQLAlchemyInbox, SQLAlchemyOutbox
    from cqrs_sync.integrations.sqlalchemy.tables import OutboxTables, inbox_table, tables

__all__ = [
    "OutboxTables",
    "SQLAlchemyInbox",
    "SQLAlchemyOutbox",
    "SessionTransactions",
    "Sessions",
    "begin_immediate",
    "inbox_table",
    "tables",
]
