"""Django's transactions: the transactions socket, and a middleware that opens one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.db import close_old_connections, connections, transaction
from django.utils.connection import ConnectionDoesNotExist

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.middleware import CallNext
from cqrs_sync.sql.database import TransactionStatus, aborted_error, rolled_back_error, transaction_status

_SAVEPOINT = "with transaction.atomic():"


def connection_of(using: str) -> Any:
    """Return the calling thread's connection. Raises ConfigurationError for an alias that is not in DATABASES."""
    try:
        return connections[using]
    except ConnectionDoesNotExist:
        known = ", ".join(map(repr, settings.DATABASES))
        raise ConfigurationError(
            f"the database {using!r}, which `using` names, is not in DATABASES; it has {known}"
        ) from None


class DjangoTransactions:
    """The transaction of the calling thread on one database."""

    def __init__(self, using: str = "default") -> None:
        self.using = using

    def active(self) -> bool:
        """Tell whether the calling thread is inside `atomic`."""
        return bool(connection_of(self.using).in_atomic_block)

    def on_commit(self, callback: Callable[[], object], /) -> None:
        """
        Call `callback` once the outermost transaction has committed.

        If it raises, Django logs that and calls the other callbacks. A callback that the application registered with
        `transaction.on_commit` and without `robust=True` is different: if it raises, Django skips those after it.

        Raises TransactionLost if PostgreSQL has aborted the transaction already.
        """
        # In the application's own transaction this is the last chance to check before the commit.
        check_not_aborted(connection_of(self.using))
        transaction.on_commit(callback, using=self.using, robust=True)


class Atomic:
    """A middleware: gives a handler a transaction, or a savepoint in the open one."""

    def __init__(self, using: str = "default") -> None:
        self.using = using

    def __call__(self, message: Any, call_next: CallNext, /) -> Any:
        """
        Commit what the handler does, or roll it back if it raises.

        Raises TransactionLost if the handler raises nothing and its transaction would be rolled back all the same.
        """
        connection = connection_of(self.using)
        with transaction.atomic(using=self.using):
            response = call_next(message)
            check_not_rolled_back(connection)
            return response

    def __repr__(self) -> str:
        return f"Atomic({self.using!r})"


def check_not_rolled_back(connection: Any) -> None:
    """Raise TransactionLost if Django or the database would silently roll back the open `atomic` block."""
    if connection.closed_in_transaction:
        raise rolled_back_error("its connection was closed", _SAVEPOINT)
    if connection.needs_rollback:
        raise rolled_back_error("by `set_rollback(True)`, or by a database error that was caught", _SAVEPOINT)
    check_not_aborted(connection)


def check_not_aborted(connection: Any) -> None:
    """Raise TransactionLost if PostgreSQL has aborted the transaction."""
    # A closed connection has no status. The check at the end of the block finds it.
    if not connection.closed_in_transaction and (
        transaction_status(connection.connection) is TransactionStatus.ABORTED
    ):
        raise aborted_error(_SAVEPOINT)


@contextmanager
def old_connections_closed() -> Iterator[None]:
    """Close connections as Django does around each request; for `ThreadPool(around=...)`."""
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()
