"""What the store asks of a way to a database."""

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
class Purpose:
    """What a database is used for, and the errors that tell of trouble with it."""

    #: As messages name it.
    name: str
    unavailable: type[CqrsError]
    not_installed: type[ConfigurationError]


OUTBOX = Purpose("outbox", OutboxUnavailable, OutboxNotInstalled)
INBOX = Purpose("inbox", InboxUnavailable, InboxNotInstalled)


class Connection(Protocol):
    """
    A connection with a transaction open.

    Statements are in the paramstyle `format`: a `%s` for each parameter, `%%` for a per cent sign.
    """

    #: The transaction is the caller's, and so are its settings.
    is_nested: bool

    def execute(self, statement: str, parameters: Sequence[Any] = (), /) -> Sequence[Sequence[Any]]:
        """Execute a statement and return its rows; none where it returns no rows."""

    def change(self, statement: str, parameters: Sequence[Any] = (), /) -> int:
        """Execute a statement and return how many rows it has changed."""

    def is_open(self) -> bool:
        """
        Tell whether the transaction is open, as far as the driver knows: the database is not asked.

        Raises TransactionLost where it is known to be rolled back, or to be rolled back at its end, without a word.
        """


class Database(Protocol):
    """A way to a database; safe from any thread and in a forked child."""

    @property
    def dialect(self) -> Dialect:
        """Return the SQL it speaks."""

    @property
    def transactions(self) -> Transactions:
        """Return the transactions of the application on this database."""

    def joined(self) -> Connection:
        """Return the connection on which the calling thread has its transaction open; called only where it has one."""

    def begun(self, *, durable: bool = False) -> AbstractContextManager[Connection]:
        """
        Open a transaction of the library's own, and commit it at the end of the block.

        A way that has one connection for each thread joins the transaction that the caller has open there, with a
        savepoint. It raises ConfigurationError where the block is `durable`: what is done in it is to be true for
        everyone when it ends.

        It is rolled back for whatever is raised in the block; a connection that is broken
        then is not used again. Raises the purpose's `unavailable` where the database cannot be reached,
        and for its own errors in the block; `not_installed` where a table is missing.
        """

    def opened(self) -> AbstractContextManager[Connection]:
        """
        Open the transaction that the application's code in the block uses, and commit it at the end.

        Called only where the calling thread has none. It is rolled back for whatever is raised in the block, which is
        let through. Raises TransactionLost where the block raises nothing and would be rolled back all the same; the
        purpose's errors where the database cannot be reached, and for those of the connection's own statements;
        NotInTransaction where only the application can open such a transaction.
        """

    def conflicted(self, error: BaseException, /) -> bool:
        """Tell of an error of `opened` whether the database ended one transaction of several: it may be done again."""

    def elsewhere(self) -> str | None:
        """Name another database on which the calling thread has a transaction open, for an error."""

    def listener(self, channel: str, /) -> Listener | None:
        """Listen for what is notified on a channel; None where the database or its driver has no such thing."""

    def release_connection(self) -> None:
        """Give up the connection of the calling thread that `begun` has used."""
