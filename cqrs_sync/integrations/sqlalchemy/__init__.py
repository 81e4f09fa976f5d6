"""
SQLAlchemy 2: sessions with commands, the outbox and the inbox in your database. Install `cqrs-sync[sqlalchemy]`.

```python
sessions = Sessions(sessionmaker(engine))
outbox = SQLAlchemyOutbox(sessions)
inbox = SQLAlchemyInbox(sessions)
```

`tables` are what you create, `sessions` opens a transaction per command, `transactions` and
`commits` tell when one commits, `database` is the way of the outbox and the inbox to yours, at
their `place`, with what it needs of a `connection`, of its `failures`, and of `listening` to others.
"""

from __future__ import annotations

from cqrs_sync.integrations import needs

with needs("sqlalchemy"):
    from cqrs_sync.integrations.sqlalchemy.sessions import Sessions, SessionTransactions
    from cqrs_sync.integrations.sqlalchemy.sqlite import begin_immediate
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
