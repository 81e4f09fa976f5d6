"""
The outbox and the inbox in a SQL database, shared by the Django and the SQLAlchemy integration.

`SqlOutbox` and `SqlInbox` hold what must be right once: who claims which delivery, in which order, and which of
several callers is first. A `Database` gives them connections and transactions. `integrations.django` and
`integrations.sqlalchemy` implement it; another library can, for the same three dialects.
"""

from cqrs_sync.sql.database import Database, DatabaseConnection, StoreKind
from cqrs_sync.sql.dialects import Dialect
from cqrs_sync.sql.inbox import SqlInbox
from cqrs_sync.sql.outbox import OutboxOptions, SqlOutbox

__all__ = ["Database", "DatabaseConnection", "Dialect", "OutboxOptions", "SqlInbox", "SqlOutbox", "StoreKind"]
