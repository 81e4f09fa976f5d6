"""
The outbox and the inbox in a SQL database: their tables, and the statements that claim, settle and insert first.

`SqlOutbox` and `SqlInbox` are all that must be right once: who claims what, in which order, and who is first. A
`Database` tells them how to reach one: `integrations.django` and `integrations.sqlalchemy` do, and so
may any other way to the same three dialects.
"""

from cqrs_sync.sql.database import Connection, Database, Purpose
from cqrs_sync.sql.dialects import Dialect
from cqrs_sync.sql.inbox import SqlInbox
from cqrs_sync.sql.outbox import SqlOutbox

__all__ = ["Connection", "Database", "Dialect", "Purpose", "SqlInbox", "SqlOutbox"]
