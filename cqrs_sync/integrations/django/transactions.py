"""Django's transactions, as the library asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import close_old_connections, connections, transaction

from cqrs_sync.middleware import CallNext
from cqrs_sync.sql.drivers import State, aborted, ended, state_of

_SAVEPOINT = "with transaction.atomic():"


class DjangoTransactions:
    """The transaction of the calling thread on one database."""

    def __init__(self, using: str = "default") -> None:
        self.using = using

    def active(self) -> bool:
        """Tell whether the calling thread is inside `atomic`."""
        return bool(connections[self.using].in_atomic_block)

    def on_commit(self, callback: Callable[[], object], /) -> None:
        """
        Call `callback` once the outermost transaction has committed.

        What it raises is logged, and keeps no other callback from being called. The reverse is Django's to say:
        what somebody gave to `transaction.on_commit` without `robust=True`, and raises, ends the round.

        Raises TransactionLost where PostgreSQL has aborted the transaction already.
        """
        # Where the transaction is the application's own, nobody can ask once more before it commits.
        check_aborted(connections[self.using])
        transaction.on_commit(callback, using=self.using, robust=True)


class Atomic:
    """A middleware: gives a handler a transaction, or a savepoint in the one that is open."""

    def __init__(self, using: str = "default") -> None:
        self.using = using

    def __call__(self, message: Any, call_next: CallNext, /) -> Any:
        """
        Commit what the handler does, or roll it back for whatever it raises.

        Raises TransactionLost where it raises nothing, and all of it would be rolled back.
        """
        with transaction.atomic(using=self.using):
            response = call_next(message)
            check_kept(connections[self.using])
            return response

    def __repr__(self) -> str:
        return f"Atomic({self.using!r})"


def check_kept(connection: Any) -> None:
    """Refuse to end a block, as if it committed, that Django or the database would roll back without a word."""
    if connection.closed_in_transaction:
        raise ended("its connection was closed", _SAVEPOINT)
    if connection.needs_rollback:
        raise ended("by `set_rollback(True)`, or by an error of the database that was caught", _SAVEPOINT)
    check_aborted(connection)


def check_aborted(connection: Any) -> None:
    """Refuse to go on in a transaction that PostgreSQL would not commit."""
    # One that was closed is not to be asked; that it was is found out at the end of the block.
    if not connection.closed_in_transaction and state_of(connection.connection) is State.ABORTED:
        raise aborted(_SAVEPOINT)


@contextmanager
def old_connections_closed() -> Iterator[None]:
    """Close connections as Django does around each request; for `ThreadPool(around=...)`."""
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()
