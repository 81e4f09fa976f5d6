"""Django's transactions, as the library asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import close_old_connections, connections, transaction

from cqrs_sync.middleware import CallNext


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
        """
        transaction.on_commit(callback, using=self.using, robust=True)


class Atomic:
    """A middleware: gives a handler a transaction, or a savepoint in the one that is open."""

    def __init__(self, using: str = "default") -> None:
        self.using = using

    def __call__(self, message: Any, call_next: CallNext, /) -> Any:
        """Commit what the handler does, or roll it back for whatever it raises."""
        with transaction.atomic(using=self.using):
            return call_next(message)

    def __repr__(self) -> str:
        return f"Atomic({self.using!r})"


@contextmanager
def old_connections_closed() -> Iterator[None]:
    """Close connections as Django does around each request; for `ThreadPool(around=...)`."""
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()
