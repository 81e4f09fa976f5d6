"""
The database socket: how the SQL outbox and inbox get connections and transactions.

Below it is what drivers tell beside the rows: transaction status, error codes, notifications. This module imports
no driver. It reads the attributes that psycopg, psycopg2, PyMySQL, mysqlclient and sqlite3 have.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from enum import Enum
from typing import Any, Protocol

import attrs

from cqrs_sync.errors import (
    ConfigurationError,
    CqrsError,
    InboxNotInstalled,
    InboxUnavailable,
    OutboxNotInstalled,
    OutboxUnavailable,
    TransactionLost,
)
from cqrs_sync.outbox import Listener
from cqrs_sync.sql.dialects import Dialect
from cqrs_sync.transactions import Transactions

#: libpq's transaction status, as psycopg and psycopg2 report it.
_IDLE, _IN_ERROR = 0, 3
#: This bit of the MySQL protocol's server status is set inside a transaction.
_IN_TRANSACTION = 1

#: A missing table, column or schema: SQLSTATEs of PostgreSQL, error numbers of MySQL.
_MISSING = {"42P01", "42703", "3F000", 1146, 1054}
_MISSING_IN_SQLITE = ("no such table", "no such column", "has no column named")
#: A deadlock, or a row that changed after the transaction's snapshot.
_CONFLICTS = {"40001", "40P01", 1213, 1020}


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

    #: How an application opens a transaction, for an error message: the start of a sentence.
    how_to_open: str

    def other_database(self) -> str | None:
        """Name another database on which the calling thread has a transaction open, for an error message."""

    def listener(self, channel: str, /) -> Listener | None:
        """Listen for notifications on a channel; None if the database or its driver has none."""

    def release_connection(self) -> None:
        """Release the calling thread's connection that `transaction` used."""


class TransactionStatus(Enum):
    """The status of the transaction on a connection."""

    OPEN = "open"
    NONE = "none"
    #: An error has aborted it: its COMMIT would silently be a ROLLBACK. Only PostgreSQL does that.
    ABORTED = "aborted"
    #: The driver does not tell.
    UNKNOWN = "unknown"


def transaction_status(connection: Any) -> TransactionStatus:
    """Return what the driver knows. Servers report it with each answer, so this sends nothing."""
    status = getattr(getattr(connection, "info", None), "transaction_status", None)
    if status is not None:
        # A broken connection counts as open: its commit raises and says why.
        if status == _IDLE:
            return TransactionStatus.NONE
        return TransactionStatus.ABORTED if status == _IN_ERROR else TransactionStatus.OPEN
    is_open = getattr(connection, "in_transaction", None)
    if not isinstance(is_open, bool):
        flags = getattr(connection, "server_status", None)
        if not isinstance(flags, int):
            return TransactionStatus.UNKNOWN
        is_open = bool(flags & _IN_TRANSACTION)
    return TransactionStatus.OPEN if is_open else TransactionStatus.NONE


def aborted_error(savepoint: str) -> TransactionLost:
    """Make the error for an aborted transaction; `savepoint` is the code that opens one."""
    return TransactionLost(
        "PostgreSQL has aborted this transaction because of a database error that the application caught: a commit "
        f"would silently roll back all of it. Put a savepoint around code that may fail, `{savepoint}`, or do not "
        "catch the error"
    )


def rolled_back_error(how: str, savepoint: str) -> TransactionLost:
    """Make the error for a transaction that is or will be rolled back although the code raised nothing."""
    return TransactionLost(
        f"this transaction was rolled back before its end, {how}: nothing that was done in it is kept. Raise an error "
        f"to roll back; put a savepoint around code that may fail, `{savepoint}`"
    )


def is_missing(error: Any) -> bool:
    """Tell whether a driver's error reports a missing table, column or schema."""
    return bool(_codes(error) & _MISSING) or any(words in str(_first(error)) for words in _MISSING_IN_SQLITE)


def is_conflict(error: Any) -> bool:
    """Tell whether a driver's error reports that the database ended one of several competing transactions."""
    return bool(_codes(error) & _CONFLICTS)


def _codes(error: Any) -> set[Any]:
    return {_first(error), getattr(error, "sqlstate", None), getattr(error, "pgcode", None)}


def _first(error: Any) -> Any:
    return next(iter(getattr(error, "args", ())), None)


def can_listen(driver: Any) -> bool:
    """Tell whether a driver module can wait for notifications with a timeout: psycopg 3.2 and later can."""
    notifies = getattr(getattr(driver, "Connection", None), "notifies", None)
    return callable(notifies) and "timeout" in inspect.signature(notifies).parameters


class PsycopgListener:
    """
    Listens on a psycopg connection (PostgreSQL's LISTEN) and closes it in `close()`.

    A notification is only a hint: nothing repeats those that come while the listener is not connected.
    Raises OutboxUnavailable, and closes the connection, if LISTEN fails.
    """

    def __init__(self, connection: Any, channel: str) -> None:
        self._connection = connection
        try:
            with self._translate_errors():
                connection.rollback()
                connection.autocommit = True
                connection.execute(f'LISTEN "{channel}"')
        except BaseException:
            connection.close()
            raise

    def wait(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds. Raises OutboxUnavailable if the connection breaks: open a new listener."""
        with self._translate_errors():
            return bool(list(self._connection.notifies(timeout=timeout, stop_after=1)))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except (self._connection.Error, OSError) as error:
            raise OutboxUnavailable(f"{type(error).__name__}: {error}") from error
