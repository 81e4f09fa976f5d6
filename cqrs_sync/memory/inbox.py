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
from cqrs_sync.memory.transactions import MemoryTransactions

#: Seconds after which waiting for another transaction is given up, as databases do: it may wait for this one.
_PATIENCE = 30.0


@attrs.define(eq=False)
class _Row:
    """What was done."""

    #: The thread in whose transaction it was inserted; None once that has committed.
    owner: int | None
    written: float
    attempts: int = 0
    result: bytes | None = None


class MemoryInbox:
    """
    An inbox without a database, for tests and as the reference: gone with the process.

    It joins `transactions`, and opens one of theirs where none is open.
    """

    def __init__(self, transactions: MemoryTransactions | None = None) -> None:
        self._transactions = MemoryTransactions() if transactions is None else transactions
        self._rows: dict[tuple[str, str], _Row] = {}
        self._changed = threading.Condition()
        reset_in_child(self)

    @property
    def transactions(self) -> MemoryTransactions:
        """The transactions that it joins."""
        return self._transactions

    @contextmanager
    def once(self, key: str, handler: str = "", /) -> Iterator[Receipt]:
        """Join the transaction of the calling thread, or open one, and tell whether this was done before."""
        check_key(key, handler)
        with nullcontext() if self._transactions.active() else self._transactions.atomic():
            row, is_first = self._insert((key, handler))
            try:
                yield _Receipt(row, first=is_first)
            except BaseException:
                if is_first:
                    self._remove((key, handler), row)
                raise

    def attempt(self, key: str, /) -> int:
        """Count an attempt before it is made."""
        check_key(key, "")
        with self._changed:
            row = self._rows.setdefault((key, ATTEMPTS), _Row(None, time.monotonic()))
            row.attempts += 1
            return row.attempts

    def attempts_at(self, key: str, /) -> int:
        """Return how many attempts were counted."""
        check_key(key, "")
        with self._changed:
            row = self._rows.get((key, ATTEMPTS))
            return 0 if row is None else row.attempts

    def take_back_attempt(self, key: str, /) -> None:
        """Count one attempt less."""
        check_key(key, "")
        with self._changed:
            row = self._rows.get((key, ATTEMPTS))
            if row is not None:
                row.attempts -= 1
                if row.attempts <= 0:
                    del self._rows[key, ATTEMPTS]

    def forget_attempts(self, key: str, /) -> None:
        """Begin to count anew."""
        check_key(key, "")
        with self._changed:
            self._rows.pop((key, ATTEMPTS), None)

    def purge(self, older_than: float, /, *, limit: int = 1000) -> int:
        """Forget what was first asked for more than `older_than` seconds ago."""
        until = time.monotonic() - older_than
        with self._changed:
            old = [name for name, row in self._rows.items() if row.owner is None and row.written < until][:limit]
            for name in old:
                del self._rows[name]
        return len(old)

    def release_connection(self) -> None:
        """Do nothing: there is no connection."""

    def reset_in_child(self) -> None:
        """Replace the lock, which another thread of the parent may have held."""
        self._changed = threading.Condition()

    def _insert(self, name: tuple[str, str]) -> tuple[_Row, bool]:
        """Insert a row, or wait for the transaction that has inserted it."""
        me = threading.get_ident()
        until = time.monotonic() + _PATIENCE
        with self._changed:
            while (known := self._rows.get(name)) is not None:
                if known.owner in {None, me}:
                    return known, False
                if not self._changed.wait(until - time.monotonic()):
                    raise InboxUnavailable(f"the transaction that has {name[0]!r:.80} first did not end in time")
            row = self._rows[name] = _Row(me, time.monotonic())
        self._transactions.at_commit(lambda: self._commit(row))
        self._transactions.at_rollback(lambda: self._remove(name, row))
        return row, True

    def _commit(self, row: _Row) -> None:
        with self._changed:
            row.owner = None
            self._changed.notify_all()

    def _remove(self, name: tuple[str, str], row: _Row) -> None:
        with self._changed:
            if self._rows.get(name) is row:
                del self._rows[name]
                self._changed.notify_all()


class _Receipt:
    """What is known of a row, in the transaction in which it was asked."""

    def __init__(self, row: _Row, *, first: bool) -> None:
        self.first = first
        self._row = row

    @property
    def result(self) -> bytes | None:
        """What was kept."""
        return self._row.result

    def keep(self, result: bytes, /) -> None:
        """Keep a result for those who come later."""
        if not self.first:
            raise ValueError("only who is first keeps a result: look at `first` before")
        self._row.result = result
