"""An inbox in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import attrs

from cqrs_sync.errors import InboxUnavailable
from cqrs_sync.inbox import ATTEMPTS, Receipt, check_key
from cqrs_sync.lifecycle import reset_in_child
from cqrs_sync.memory.outbox import MemoryTransactions

#: Seconds to wait for another transaction. A database has such a limit, too: the other one may wait for this one.
_LOCK_TIMEOUT = 30.0


@attrs.define(eq=False)
class _Row:
    """A receipt, or the attempts of a key."""

    #: The thread whose open transaction inserted it; None once that has committed.
    owner: int | None
    written: float
    attempts: int = 0
    result: bytes | None = None


class MemoryInbox:
    """
    An inbox without a database, for tests and as the reference; it ends with the process.

    It joins `transactions`, and opens one of them if none is open.
    """

    def __init__(self, transactions: MemoryTransactions | None = None) -> None:
        #: The transactions that it joins.
        self.transactions: MemoryTransactions = MemoryTransactions() if transactions is None else transactions
        self._rows: dict[tuple[str, str], _Row] = {}
        self._changed = threading.Condition()
        reset_in_child(self)

    @contextmanager
    def once(self, key: str, handler: str = "", /) -> Iterator[Receipt]:
        """Join the transaction of the calling thread, or open one, and tell whether this was done before."""
        check_key(key, handler)
        with nullcontext() if self.transactions.active() else self.transactions.atomic():
            row, is_first = self._insert((key, handler))
            try:
                yield _MemoryReceipt(row, is_first=is_first)
            except BaseException:
                if is_first:
                    self._remove((key, handler), row)
                raise

    def count_attempt(self, key: str, /) -> int:
        """Count an attempt before it starts."""
        check_key(key, "")
        with self._changed:
            row = self._rows.setdefault((key, ATTEMPTS), _Row(None, time.monotonic()))
            row.attempts += 1
            return row.attempts

    def counted_attempts(self, key: str, /) -> int:
        """Return how many attempts are counted."""
        check_key(key, "")
        with self._changed:
            row = self._rows.get((key, ATTEMPTS))
            return 0 if row is None else row.attempts

    def uncount_attempt(self, key: str, /) -> None:
        """Count one attempt less."""
        check_key(key, "")
        with self._changed:
            row = self._rows.get((key, ATTEMPTS))
            if row is not None:
                row.attempts -= 1
                if row.attempts <= 0:
                    del self._rows[key, ATTEMPTS]

    def reset_attempts(self, key: str, /) -> None:
        """Reset the count."""
        check_key(key, "")
        with self._changed:
            self._rows.pop((key, ATTEMPTS), None)

    def purge(self, older_than: float, /, *, limit: int = 1000) -> int:
        """Delete receipts that were written more than `older_than` seconds ago."""
        oldest_kept = time.monotonic() - older_than
        with self._changed:
            old = [key for key, row in self._rows.items() if row.owner is None and row.written < oldest_kept][:limit]
            for key in old:
                del self._rows[key]
        return len(old)

    def release_connection(self) -> None:
        """Do nothing: there is no connection."""

    def reset_in_child(self) -> None:
        """Replace the lock, which another thread of the parent may have held."""
        self._changed = threading.Condition()

    def _insert(self, key: tuple[str, str]) -> tuple[_Row, bool]:
        """Insert a row, or wait for the transaction that has inserted it."""
        thread = threading.get_ident()
        deadline = time.monotonic() + _LOCK_TIMEOUT
        with self._changed:
            while (found := self._rows.get(key)) is not None:
                if found.owner in {None, thread}:
                    return found, False
                if not self._changed.wait(deadline - time.monotonic()):
                    raise InboxUnavailable(
                        f"another transaction has inserted the receipt of {key[0]!r:.80} and did not end within "
                        f"{_LOCK_TIMEOUT:g} seconds"
                    )
            row = self._rows[key] = _Row(thread, time.monotonic())
        self.transactions.at_commit(lambda: self._commit(row))
        self.transactions.at_rollback(lambda: self._remove(key, row))
        return row, True

    def _commit(self, row: _Row) -> None:
        with self._changed:
            row.owner = None
            self._changed.notify_all()

    def _remove(self, key: tuple[str, str], row: _Row) -> None:
        with self._changed:
            if self._rows.get(key) is row:
                del self._rows[key]
                self._changed.notify_all()


class _MemoryReceipt:
    """A receipt, in the transaction that inserted or found its row."""

    def __init__(self, row: _Row, *, is_first: bool) -> None:
        self.is_first = is_first
        self._row = row

    @property
    def result(self) -> bytes | None:
        """The kept result."""
        return self._row.result

    def keep_result(self, result: bytes, /) -> None:
        """Keep a result for later callers."""
        if not self.is_first:
            raise ValueError("only the first call may keep a result: check `receipt.is_first`")
        self._row.result = result
