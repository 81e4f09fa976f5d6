"""The database socket: how the SQL outbox and inbox get connections and transactions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import attrs

from cqrs_sync.errors import (
    ConfigurationError,
    CqrsError,
    InboxNotInstalled,
    InboxUnavailable,
    OutboxNotInstalled,
    OutboxUnavailable,
)
from cqrs_sync.outbox import Listener
from cqrs_sync.sql.dialects import Dialect
from cqrs_sync.transactions import Transactions


@attrs.frozen
class StoreKind:
    """Outbox or inbox: its name in messages, and the errors that report trouble with its database."""

    name: str
    unavailable: type[CqrsError]
    not_installed: type[ConfigurationError]


OUTBOX = StoreKind("outbox", OutboxUnavailable, OutboxNotInstalled)
INBOX = StoreKind("inbox", InboxUnavailable, InboxNotInstalled)


class DatabaseConnection(Protocol):
    """
    A connection with an open transaction.

    Statements use the paramstyle `format`: `%s` for each parameter, `%%` for a per cent sign.
    """

    #: The caller owns the transaction and its settings.
    is_nested: bool

    def execute(self, statement: str, parameters: Sequence[Any] = (), /) -> Sequence[Sequence[Any]]:
        """Execute a statement and return its rows, none if it returns no rows."""

    def change(self, statement: str, parameters: Sequence[Any] = (), /) -> int:
        """Execute a statement and return how many rows it changed."""

    def is_open(self) -> bool:
        """
        Tell whether the transaction is open, as far as the driver knows. This does not ask the database.

        Raises TransactionLost if the transaction was rolled back, or its commit would silently roll it back.
        """


class Database(Protocol):
    """A database, safe from any thread and in a forked child."""

    @property
    def dialect(self) -> Dialect:
        """Return the SQL that the database speaks."""

    @property
    def transactions(self) -> Transactions:
        """Return the application's transactions on this database."""

    def current_connection(self) -> DatabaseConnection | None:
        """
        Return the connection on which the calling thread has a transaction open, None if it has none.

        Raises TransactionLost if that transaction would silently be rolled back.
        """

    def transaction(self, *, durable: bool = False) -> AbstractContextManager[DatabaseConnection]:
        """
        Open a transaction of the library's own and commit it at the end of the block.

        An implementation with one connection per thread joins the caller's open transaction with a savepoint. For
        a `durable` block it raises ConfigurationError instead: such a block must be committed when it ends.

        Any exception in the block rolls the transaction back; a broken connection is not used again.
        Raises the store's `unavailable` error if the database cannot be reached or reports an error in the block,
        and its `not_installed` error if a table is missing.
        """

    def application_transaction(self) -> AbstractContextManager[DatabaseConnection]:
        """
        Open the transaction that application code in the block uses, and commit it at the end.

        Call this only if the thread has none open. Any exception in the block rolls it back and passes through.
        Raises TransactionLost if the block raises nothing but its transaction would be rolled back all the same;
        the store's errors if the database cannot be reached, or if a statement of this connection fails;
        NotInTransaction if only the application can open such a transaction.
        """

    def is_conflict(self, error: BaseException, /) -> bool:
        """
        Tell whether the database ended one of several competing transactions with this error.

        `error` comes from `application_transaction`. After a conflict the transaction can be started again.
        """

    def other_database(self) -> str | None:
        """Name another database on which the calling thread has a transaction open, for an error message."""

    def listener(self, channel: str, /) -> Listener | None:
        """Listen for notifications on a channel; None if the database or its driver has none."""

    def release_connection(self) -> None:
        """Release the calling thread's connection that `transaction` used."""
