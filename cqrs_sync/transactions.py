"""The transactions socket: when does what a command did become true for everyone?"""

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

        Never after a rollback, that of a surrounding savepoint included. What is
        given here does not raise. Called only while `active`.
        """


class NoTransactions:
    """There is none: what a handler has done is true when it returns."""

    def active(self) -> bool:
        """Tell that no transaction is open."""
        return False

    def on_commit(self, callback: Callable[[], object], /) -> None:
        """Call it: commit is now."""
        callback()
