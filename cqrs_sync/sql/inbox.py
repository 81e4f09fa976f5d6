"""The inbox in a table: who is first, and what was answered."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress

from cqrs_sync.errors import InboxUnavailable, TransactionLost
from cqrs_sync.inbox import ATTEMPTS, Receipt, check_key
from cqrs_sync.sql.database import Connection, Database
from cqrs_sync.sql.dialects import Dialect
from cqrs_sync.sql.outbox import check_table
from cqrs_sync.sql.statements import quoted
from cqrs_sync.transactions import Transactions

#: Transactions that are opened one after the other, where the database ends them in favour of others.
_OPENED = 5

_savepoints = itertools.count()


class SqlInbox:
    """
    The inbox in a SQL database.

    `table` is the name of its table, with the schema where there is one.

    The row is inserted by a statement that waits where somebody else has inserted it and not committed yet, so the
    database decides who is first. A deadlock, or a snapshot that is too old (REPEATABLE READ), is met by beginning
    anew where the transaction was opened here; in one of the caller's it is let through.
    """

    def __init__(self, database: Database, *, table: str = "cqrs_inbox") -> None:
        check_table(table)
        self._database = database
        self._name = table
        self._known: _Statements | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name})"

    @property
    def transactions(self) -> Transactions:
        """The transactions that it joins."""
        return self._database.transactions

    @contextmanager
    def once(self, key: str, handler: str = "", /) -> Iterator[Receipt]:
        """Join the transaction of the calling thread, or open one, and tell whether this was done before."""
        check_key(key, handler)
        row = exact(key), exact(handler)
        if self.transactions.active():
            connection = self._database.joined()
            receipt = self._ask(connection, row)
            with self._taken_back(connection, row, receipt):
                yield receipt
                self._check_kept(receipt)
        else:
            with ExitStack() as opened:
                receipt = self._open(opened, row)
                yield receipt
                self._check_kept(receipt)

    def attempt(self, key: str, /) -> int:
        """Count an attempt before it is made."""
        check_key(key, "")
        row = exact(key), ATTEMPTS
        with self._begun() as connection:
            connection.change(self._say.count, row)
            return int(connection.execute(self._say.attempts, row)[0][0])

    def attempts_at(self, key: str, /) -> int:
        """Return how many attempts were counted."""
        check_key(key, "")
        with self._begun() as connection:
            rows = connection.execute(self._say.attempts, (exact(key), ATTEMPTS))
            return int(rows[0][0]) if rows else 0

    def take_back_attempt(self, key: str, /) -> None:
        """Count one attempt less."""
        check_key(key, "")
        row = exact(key), ATTEMPTS
        with self._begun() as connection:
            if connection.change(self._say.count_less, row):
                connection.change(self._say.delete_uncounted, row)

    def forget_attempts(self, key: str, /) -> None:
        """Begin to count anew."""
        check_key(key, "")
        with self._begun() as connection:
            connection.change(self._say.delete(1), (exact(key), ATTEMPTS))

    def purge(self, older_than: float, /, *, limit: int = 1000) -> int:
        """Forget what was first asked for more than `older_than` seconds ago."""
        with self._begun() as connection:
            rows = connection.execute(self._say.old, [self._database.dialect.seconds(-older_than), limit])
            if not rows:
                return 0
            return connection.change(self._say.delete(len(rows)), [value for row in rows for value in row])

    def release_connection(self) -> None:
        """Give up the connection of the calling thread."""
        self._database.release_connection()

    @property
    def _say(self) -> _Statements:
        # Made late: naming the dialect may need settings that are there only then.
        if self._known is None:
            self._known = _Statements(self._database.dialect, self._name)
        return self._known

    @contextmanager
    def _begun(self) -> Iterator[Connection]:
        with self._database.begun(durable=True) as connection:
            if not connection.is_nested:
                connection.execute(self._say.begin)
            yield connection

    def _open(self, opened: ExitStack, row: tuple[str, str]) -> _Receipt:
        """Open a transaction in which it is known who is first."""
        for is_last in (*[False] * (_OPENED - 1), True):
            try:
                with ExitStack() as opening:
                    receipt = self._ask(opening.enter_context(self._database.opened()), row)
                    opened.enter_context(opening.pop_all())
                    return receipt
            except InboxUnavailable as error:
                if is_last or not self._database.conflicted(error):
                    raise
        raise AssertionError  # pragma: no cover -- the last one returns or raises

    def _ask(self, connection: Connection, row: tuple[str, str]) -> _Receipt:
        """Insert the row, or wait for whoever has, and find what was kept."""
        while True:
            if connection.change(self._say.insert, row) == 1:
                return _Receipt(connection, row, self._say, is_first=True)
            found = connection.execute(self._say.result, row)
            # None where it was purged between the two statements.
            if found:
                kept = found[0][0]
                return _Receipt(connection, row, self._say, result=None if kept is None else bytes(kept))

    def _check_kept(self, receipt: _Receipt) -> None:
        """Refuse to call something done whose receipt was rolled back under it."""
        if not receipt.first or receipt.connection.is_open():
            return
        # Ended by hand, and only the table tells how: with a COMMIT it is there.
        joins = self.transactions.active()
        with nullcontext(self._database.joined()) if joins else self._database.begun() as connection:
            if not connection.execute(self._say.result, receipt.row):
                raise TransactionLost(
                    "the transaction in which this was done was rolled back before its end, and the receipt of the "
                    "inbox with it: raise an error to give up what was done, and leave ROLLBACK to whoever has opened "
                    "it"
                )

    @contextmanager
    def _taken_back(self, connection: Connection, row: tuple[str, str], receipt: _Receipt) -> Iterator[None]:
        """
        Take the receipt back where the block fails, for a caller who goes on in the same transaction.

        A retry in it would find the receipt of the attempt that has failed, and do nothing.
        """
        if not receipt.first:
            yield
            return
        savepoint = f"cqrs_inbox_{next(_savepoints)}"
        connection.execute(f"SAVEPOINT {savepoint}")
        try:
            yield
        except BaseException:
            with suppress(Exception):
                # It is not there where the database has ended the transaction: the row is gone with it, or is by
                # now somebody else's.
                connection.execute(f"RELEASE SAVEPOINT {savepoint}")
                connection.change(self._say.delete(1), row)
            raise


class _Receipt:
    """What the table says of a row, in the transaction in which it was asked."""

    def __init__(
        self,
        connection: Connection,
        row: tuple[str, str],
        say: _Statements,
        *,
        is_first: bool = False,
        result: bytes | None = None,
    ) -> None:
        self.first = is_first
        self.result = result
        self.connection = connection
        self.row = row
        self._say = say

    def keep(self, result: bytes, /) -> None:
        """Keep a result for those who come later."""
        if not self.first:
            raise ValueError("only who is first keeps a result: look at `first` before")
        # Raises where the statement would fail for what the handler has caught.
        self.connection.is_open()
        self.connection.change(self._say.keep, (result, *self.row))
        self.result = result


class _Statements:
    """What the inbox says to its database."""

    def __init__(self, dialect: Dialect, name: str) -> None:
        table = quoted(name, dialect.quote)
        row = "id = %s AND handler = %s"
        self._delete = f"{dialect.delete.format(table=table)} (id, handler) IN ({{}})"
        self.begin = dialect.begin.format(deliveries=table)
        self.insert = self._inserted(dialect, table, 0, dialect.unless_there)
        self.count = self._inserted(dialect, table, 1, dialect.or_count.format(table=table))
        self.count_less = f"UPDATE {table} SET attempts = attempts - 1 WHERE {row}"
        self.delete_uncounted = f"DELETE FROM {table} WHERE {row} AND attempts <= 0"
        self.result = f"SELECT result FROM {table} WHERE {row}"
        self.attempts = f"SELECT attempts FROM {table} WHERE {row}"
        self.keep = f"UPDATE {table} SET result = %s WHERE {row}"
        self.old = f"SELECT id, handler FROM {table} WHERE created_at < {dialect.before} LIMIT %s {dialect.skip_locked}"

    def delete(self, rows: int) -> str:
        """Delete so many rows."""
        return self._delete.format(", ".join(["(%s, %s)"] * rows))

    def _inserted(self, dialect: Dialect, table: str, attempts: int, or_else: str) -> str:
        columns = "id, handler, attempts, created_at"
        return f"INSERT INTO {table} ({columns}) VALUES (%s, %s, {attempts}, {dialect.now}) {or_else}"


def exact(text: str) -> str:
    """Return a text that no database takes for another: MySQL ignores spaces at the end."""
    if not text.endswith(" "):
        return text
    return f"blake2b {hashlib.blake2b(text.encode(), digest_size=32).hexdigest()}"
