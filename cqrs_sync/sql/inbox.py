"""The inbox in a table: which caller is first, and what result it kept."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress

import attrs

from cqrs_sync.errors import InboxUnavailable, TransactionLost
from cqrs_sync.inbox import ATTEMPTS, Receipt, check_key
from cqrs_sync.sql.database import Database, DatabaseConnection
from cqrs_sync.sql.dialects import Dialect, check_table
from cqrs_sync.transactions import Transactions

#: How often a transaction is started again after a conflict with others, the first time included.
_TRANSACTIONS = 5

_savepoints = itertools.count()


class SqlInbox:
    """
    The inbox in a SQL database.

    `table` is the name of its table, with the schema if there is one.

    The INSERT of a row waits while another open transaction has inserted the same row, so the database decides which
    caller is first. After a deadlock, or if the snapshot is too old (REPEATABLE READ), the inbox starts its own
    transaction again; in a transaction of the caller it lets the error through.
    """

    def __init__(self, database: Database, *, table: str = "cqrs_inbox") -> None:
        check_table(table)
        #: The transactions that it joins.
        self.transactions: Transactions = database.transactions
        self._database = database
        self._table = table
        self._statements: InboxStatements | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._table})"

    @contextmanager
    def once(self, key: str, handler: str = "", /) -> Iterator[Receipt]:
        """Join the transaction of the calling thread, or open one, and tell whether this was done before."""
        check_key(key, handler)
        row = _exact(key), _exact(handler)
        connection = self._database.current_connection()
        with ExitStack() as stack:
            if connection is None:
                receipt = self._insert_in_new_transaction(stack, row)
            else:
                receipt = self._insert(connection, row)
                stack.enter_context(self._delete_on_error(receipt))
            yield receipt
            self._check_receipt_kept(receipt)

    def count_attempt(self, key: str, /) -> int:
        """Count an attempt before it starts."""
        check_key(key, "")
        row = _exact(key), ATTEMPTS
        with self._transaction() as connection:
            connection.change(self._sql.count, row)
            return int(connection.execute(self._sql.attempts, row)[0][0])

    def counted_attempts(self, key: str, /) -> int:
        """Return how many attempts are counted."""
        check_key(key, "")
        with self._transaction() as connection:
            rows = connection.execute(self._sql.attempts, (_exact(key), ATTEMPTS))
            return int(rows[0][0]) if rows else 0

    def uncount_attempt(self, key: str, /) -> None:
        """Count one attempt less."""
        check_key(key, "")
        row = _exact(key), ATTEMPTS
        with self._transaction() as connection:
            if connection.change(self._sql.count_less, row):
                connection.change(self._sql.delete_uncounted, row)

    def reset_attempts(self, key: str, /) -> None:
        """Reset the count."""
        check_key(key, "")
        with self._transaction() as connection:
            connection.change(self._sql.delete(1), (_exact(key), ATTEMPTS))

    def purge(self, older_than: float, /, *, limit: int = 1000) -> int:
        """Delete receipts that were written more than `older_than` seconds ago."""
        with self._transaction() as connection:
            rows = connection.execute(self._sql.old, [self._database.dialect.interval(-older_than), limit])
            if not rows:
                return 0
            return connection.change(self._sql.delete(len(rows)), [value for row in rows for value in row])

    def release_connection(self) -> None:
        """Release the calling thread's connection."""
        self._database.release_connection()

    @property
    def _sql(self) -> InboxStatements:
        # Made at first use: finding the dialect may need settings that are not there at import.
        if self._statements is None:
            self._statements = InboxStatements(self._database.dialect, self._table)
        return self._statements

    @contextmanager
    def _transaction(self) -> Iterator[DatabaseConnection]:
        with self._database.transaction(durable=True) as connection:
            if not connection.is_nested:
                connection.execute(self._sql.begin)
            yield connection

    def _insert_in_new_transaction(self, stack: ExitStack, row: tuple[str, str]) -> _SqlReceipt:
        """Open the transaction for the handler and insert the row; start again after a conflict."""
        begun = 0
        while True:
            begun += 1
            try:
                with ExitStack() as opening:
                    connection = opening.enter_context(self._database.application_transaction())
                    receipt = self._insert(connection, row)
                    stack.enter_context(opening.pop_all())
                    return receipt
            except InboxUnavailable as error:
                if begun == _TRANSACTIONS or not self._database.is_conflict(error):
                    raise

    def _insert(self, connection: DatabaseConnection, row: tuple[str, str]) -> _SqlReceipt:
        """Insert the row, or wait for the transaction that has inserted it and read the result it kept."""
        while True:
            if connection.change(self._sql.insert, row) == 1:
                return _SqlReceipt(connection, row, self._sql.keep, is_first=True)
            found = connection.execute(self._sql.result, row)
            # Empty if the row was purged between the two statements.
            if found:
                result = None if found[0][0] is None else bytes(found[0][0])
                return _SqlReceipt(connection, row, self._sql.keep, is_first=False, result=result)

    def _check_receipt_kept(self, receipt: _SqlReceipt) -> None:
        """Raise TransactionLost if the receipt was rolled back before the end of the block."""
        if not receipt.is_first or receipt.connection.is_open():
            return
        # The application has ended the transaction itself. The table tells how: after a COMMIT the row is there.
        current = self._database.current_connection()
        with self._database.transaction() if current is None else nullcontext(current) as connection:
            if not connection.execute(self._sql.result, receipt.row):
                raise TransactionLost(
                    "the handler's transaction was rolled back before its end, and the inbox's receipt with it. To "
                    "undo what was done, raise an error; leave ROLLBACK to the code that opened the transaction"
                )

    @contextmanager
    def _delete_on_error(self, receipt: _SqlReceipt) -> Iterator[None]:
        """
        Delete the receipt if the block fails, for a caller that continues in the same transaction.

        A retry in it would find the receipt of the failed attempt, and do nothing.
        """
        if not receipt.is_first:
            yield
            return
        connection, savepoint = receipt.connection, f"cqrs_inbox_{next(_savepoints)}"
        connection.execute(f"SAVEPOINT {savepoint}")
        try:
            yield
        except BaseException:
            with suppress(Exception):
                # This fails if the database has ended the transaction. The row is gone with it then, and a row with
                # this key may belong to another transaction by now.
                connection.execute(f"RELEASE SAVEPOINT {savepoint}")
                connection.change(self._sql.delete(1), receipt.row)
            raise


@attrs.define(eq=False)
class _SqlReceipt:
    """A receipt, in the transaction that inserted or found its row."""

    connection: DatabaseConnection
    row: tuple[str, str]
    _keep_statement: str
    is_first: bool
    result: bytes | None = attrs.field(default=None, repr=False)

    def keep_result(self, result: bytes, /) -> None:
        """Keep a result for later callers."""
        if not self.is_first:
            raise ValueError("only the first call may keep a result: check `receipt.is_first`")
        # Raises TransactionLost if the handler caught a database error that aborted the transaction.
        self.connection.is_open()
        self.connection.change(self._keep_statement, (result, *self.row))
        self.result = result


class InboxStatements:
    """The statements of the inbox."""

    def __init__(self, dialect: Dialect, name: str) -> None:
        table = dialect.quoted(name)
        row = "id = %s AND handler = %s"
        insert = f"INSERT INTO {table} (id, handler, attempts, created_at) VALUES (%s, %s, {{}}, {dialect.now})"
        self._delete = f"{dialect.delete.format(table=table)} (id, handler) IN ({{}})"
        self.begin: str = dialect.begin.format(table=table)
        self.insert: str = f"{insert.format(0)} {dialect.on_conflict_ignore}"
        self.count: str = f"{insert.format(1)} {dialect.on_conflict_count.format(table=table)}"
        self.count_less: str = f"UPDATE {table} SET attempts = attempts - 1 WHERE {row}"
        self.delete_uncounted: str = f"DELETE FROM {table} WHERE {row} AND attempts <= 0"
        self.result: str = f"SELECT result FROM {table} WHERE {row}"
        self.attempts: str = f"SELECT attempts FROM {table} WHERE {row}"
        self.keep: str = f"UPDATE {table} SET result = %s WHERE {row}"
        old = f"created_at < {dialect.cutoff} LIMIT %s {dialect.skip_locked}"
        self.old: str = f"SELECT id, handler FROM {table} WHERE {old}"

    def delete(self, rows: int) -> str:
        """Delete this many rows."""
        return self._delete.format(", ".join(["(%s, %s)"] * rows))


def _exact(text: str) -> str:
    """Replace a text that ends with a space by its digest: MySQL ignores spaces at the end."""
    if not text.endswith(" "):
        return text
    return f"blake2b {hashlib.blake2b(text.encode(), digest_size=32).hexdigest()}"
