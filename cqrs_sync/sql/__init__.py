"""
The outbox in a SQL database: two tables, and the statements that claim and settle.

`SqlOutbox` is all that must be right once: who claims what, in which order. A `Database`
tells it how to reach one: `integrations.django` and `integrations.sqlalchemy` do, and so
may any other way to the same three dialects.
"""

from cqrs_sync.sql.database import Connection, Database
from cqrs_sync.sql.dialects import Dialect
from cqrs_sync.sql.store import SqlOutbox

__all__ = ["Connection", "Database", "Dialect", "SqlOutbox"]
