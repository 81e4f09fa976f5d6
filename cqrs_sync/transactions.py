"""The transactions socket: tells whether a transaction is open, and when it has committed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Transactions(Protocol):
    """
    Tells the library about the transaction of the calling thread.

    For Django, `active` is `connection.in_atomic_block` and `on_commit` is
    `transaction.on_commit(callback, robust=True)`.
    """

    def active(self) -> bool:
        """Tell whether the calling thread is inside a transaction."""

    def on_commit(self, callback: Callable[[], object], /) -> None:
        """
        Call `callback` in this thread once the outermost transaction has committed.

        Never after a rollback, also not after that of a surrounding savepoint. The callback does not raise. The
        library calls this only while `active`.
        """


class NoTransactions:
    """For handlers without transactions: their effects are there when they return."""

    def active(self) -> bool:
        """Return False."""
        return False

    def on_commit(self, callback: Callable[[], object], /) -> None:
        """Call it at once."""
        callback()
