"""
What database drivers tell beside the rows: transaction status, error codes, notifications.

This module imports no driver. It reads the attributes that psycopg, psycopg2, PyMySQL, mysqlclient and sqlite3 have.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

from cqrs_sync.errors import OutboxUnavailable, TransactionLost

#: libpq's transaction status, as psycopg and psycopg2 report it.
_IDLE, _IN_ERROR = 0, 3
#: This bit of the MySQL protocol's server status is set inside a transaction.
_IN_TRANSACTION = 1

#: A missing table, column or schema: SQLSTATEs of PostgreSQL, error numbers of MySQL.
_MISSING = {"42P01", "42703", "3F000", 1146, 1054}
_MISSING_IN_SQLITE = ("no such table", "no such column", "has no column named")
#: A deadlock, or a row that changed after the transaction's snapshot.
_CONFLICTS = {"40001", "40P01", 1213, 1020}


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
