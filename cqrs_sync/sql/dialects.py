"""How the databases differ: time, row locks, conflicts on insert, and the names of tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import attrs

from cqrs_sync.errors import ConfigurationError

#: After these seconds PostgreSQL ends a transaction of the library whose process stopped in the middle of it.
_IDLE_TIMEOUT = 10
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}(\.[A-Za-z_][A-Za-z0-9_]{0,62})?")


def check_table(name: str) -> None:
    """Raise ConfigurationError for a name that cannot stand for a table in a statement."""
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"{name!r} cannot be the name of a table: use letters, digits and _")


@attrs.frozen
class Dialect:
    """The SQL of one kind of database, in the paramstyle `format`."""

    name: str
    #: The current time in UTC, by the database's clock.
    now: str
    #: The time a number of seconds from now. Takes one parameter, which `interval` makes.
    now_plus: str
    #: Makes the parameter of `now_plus` and `cutoff` from seconds.
    interval: Callable[[float], Any]
    #: Seconds from now until the time in a column.
    seconds_until: str
    #: Makes a SELECT lock its rows and skip rows that others have locked.
    skip_locked: str
    #: Starts a transaction that claims or settles: each statement sees what has committed by then.
    #: `{table}` is the table.
    begin: str
    #: As `now_plus`, in a form that can use an index. For times in the past.
    cutoff: str
    quote: str = '"'
    #: Lets a transaction scan whole tables again if `begin` has disabled that.
    allow_scans: str | None = None
    #: Change and delete rows of a table by primary key, without touching any other row.
    update: str = "UPDATE {table} SET"
    delete: str = "DELETE FROM {table} WHERE"
    #: A list of values can be one array parameter.
    has_arrays: bool = False
    #: Notifies listeners on a channel, its parameter, at the commit; None if the database has no notifications.
    notify: str | None = None
    #: Makes an INSERT wait for an open transaction that has inserted the same key. The INSERT then counts exactly
    #: one changed row if the key was new, and another number if it was not, whatever the driver makes the server count.
    on_conflict_ignore: str = "ON CONFLICT (id, handler) DO NOTHING"
    #: Makes an INSERT count the attempt in the existing row.
    on_conflict_count: str = "ON CONFLICT (id, handler) DO UPDATE SET attempts = {table}.attempts + 1"

    def quoted(self, name: str) -> str:
        """Quote the name of a table and of its schema."""
        return ".".join(f"{self.quote}{part}{self.quote}" for part in name.split("."))


DIALECTS = {
    dialect.name: dialect
    for dialect in (
        Dialect(
            name="postgresql",
            now="clock_timestamp()",
            now_plus="clock_timestamp() + %s * interval '1 second'",
            cutoff="now() + %s * interval '1 second'",
            allow_scans="SET LOCAL enable_seqscan TO ON",
            interval=float,
            seconds_until="extract(epoch from ({column} - clock_timestamp()))",
            skip_locked="FOR UPDATE SKIP LOCKED",
            # Asynchronous commit: a crash of the database loses a claim or a settlement, and it is made again.
            # No sequential scans: these tables fill and empty all day, so their statistics are usually wrong.
            begin=(
                "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit TO OFF; "
                "SET LOCAL enable_seqscan TO OFF; "
                f"SET LOCAL idle_in_transaction_session_timeout TO '{_IDLE_TIMEOUT}s'"
            ),
            has_arrays=True,
            notify="SELECT pg_notify(%s, '')",
        ),
        Dialect(
            name="mysql",
            now="UTC_TIMESTAMP(6)",
            now_plus="UTC_TIMESTAMP(6) + INTERVAL %s MICROSECOND",
            cutoff="UTC_TIMESTAMP(6) + INTERVAL %s MICROSECOND",
            interval=lambda seconds: round(seconds * 1_000_000),
            seconds_until="TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), {column}) / 1000000",
            skip_locked="FOR UPDATE SKIP LOCKED",
            # Under REPEATABLE READ a locking SELECT also locks gaps, and inserts would wait for it.
            begin="SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
            quote="`",
            # Without a hint MySQL scans a small table, and waits for each row that an open transaction inserted.
            update="UPDATE {table} FORCE INDEX (PRIMARY) SET",
            delete="DELETE {table} FROM {table} FORCE INDEX (PRIMARY) WHERE",
            # Depending on the driver, an update that changes nothing counts as 0 rows or as 1; this counts as 2.
            # A transaction also sees rows that it changed itself, even if its snapshot is older.
            on_conflict_ignore="ON DUPLICATE KEY UPDATE attempts = attempts + 1",
            on_conflict_count="ON DUPLICATE KEY UPDATE attempts = attempts + 1",
        ),
        Dialect(
            name="sqlite",
            now="strftime('%%Y-%%m-%%d %%H:%%M:%%f', 'now') || '000'",
            now_plus="strftime('%%Y-%%m-%%d %%H:%%M:%%f', 'now', %s) || '000'",
            cutoff="strftime('%%Y-%%m-%%d %%H:%%M:%%f', 'now', %s) || '000'",
            interval=lambda seconds: f"{seconds:+.3f} seconds",
            seconds_until="(julianday({column}) - julianday('now')) * 86400.0",
            skip_locked="",
            # SQLite refuses a write after a read if another transaction wrote in between.
            # A transaction that starts with a write waits for its turn.
            begin="UPDATE {table} SET attempts = attempts WHERE id = 0",
        ),
    )
}
