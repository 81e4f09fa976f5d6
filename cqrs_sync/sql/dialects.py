"""What databases say differently: time, and rows that others have locked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

#: Seconds after which PostgreSQL ends a transaction of ours whose process was stopped in the middle of it.
_IDLE = 10


@attrs.frozen
class Dialect:
    """The SQL of one kind of database; in the paramstyle `format`."""

    name: str
    #: The present moment by the database's clock, in UTC.
    now: str
    #: The moment that is a number of seconds away; takes one parameter, made by `seconds`.
    later: str
    seconds: Callable[[float], Any]
    #: Seconds from now until the moment in a column.
    until: str
    #: Makes a SELECT lock its rows and leave out those that others have locked.
    skip_locked: str
    #: Begins a transaction that claims or settles: it sees what has committed by each statement.
    #: `{deliveries}` is the table.
    begin: str
    #: The same as `later` for a moment in the past that an index can be asked for.
    before: str
    quote: str = '"'
    #: Lets a transaction read whole tables again, where `begin` has told it not to.
    scan: str | None = None
    #: Changes and deletes rows of a table by their primary keys, and looks at no others.
    update: str = "UPDATE {table} SET"
    delete: str = "DELETE FROM {table} WHERE"
    #: It compares with an array, which is one parameter.
    arrays: bool = False
    #: Tells listeners on a channel, its parameter, at the commit; None where there is no such thing.
    notify: str | None = None
    #: Lets an INSERT of a row whose key is there wait for whoever has inserted it. One row is changed where it was
    #: not there, and another number of them where it was, whatever the driver has told the server to count.
    unless_there: str = "ON CONFLICT (id, handler) DO NOTHING"
    #: Lets an INSERT count the attempt in the row that is there.
    or_count: str = "ON CONFLICT (id, handler) DO UPDATE SET attempts = {table}.attempts + 1"


DIALECTS = {
    dialect.name: dialect
    for dialect in (
        Dialect(
            name="postgresql",
            now="clock_timestamp()",
            later="clock_timestamp() + %s * interval '1 second'",
            before="now() + %s * interval '1 second'",
            scan="SET LOCAL enable_seqscan TO ON",
            seconds=float,
            until="extract(epoch from ({column} - clock_timestamp()))",
            skip_locked="FOR UPDATE SKIP LOCKED",
            # What is lost with the database is claimed or settled again: nobody has to wait for the disk.
            # Statistics of tables that fill and empty all day are wrong most of the time: indexes are right.
            begin=(
                "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit TO OFF; "
                "SET LOCAL enable_seqscan TO OFF; "
                f"SET LOCAL idle_in_transaction_session_timeout TO '{_IDLE}s'"
            ),
            arrays=True,
            notify="SELECT pg_notify(%s, '')",
        ),
        Dialect(
            name="mysql",
            now="UTC_TIMESTAMP(6)",
            later="UTC_TIMESTAMP(6) + INTERVAL %s MICROSECOND",
            before="UTC_TIMESTAMP(6) + INTERVAL %s MICROSECOND",
            seconds=lambda seconds: round(seconds * 1_000_000),
            until="TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), {column}) / 1000000",
            skip_locked="FOR UPDATE SKIP LOCKED",
            # Under REPEATABLE READ a locking SELECT would lock gaps as well, and inserts would wait for it.
            begin="SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
            quote="`",
            # It would rather read a small table as a whole, and wait for each row that somebody else has inserted.
            update="UPDATE {table} FORCE INDEX (PRIMARY) SET",
            delete="DELETE {table} FROM {table} FORCE INDEX (PRIMARY) WHERE",
            # An update that changes nothing counts as none or as one row, as the driver likes; this is always two.
            # And what a transaction has changed it sees, though its snapshot be older.
            unless_there="ON DUPLICATE KEY UPDATE attempts = attempts + 1",
            or_count="ON DUPLICATE KEY UPDATE attempts = attempts + 1",
        ),
        Dialect(
            name="sqlite",
            now="strftime('%%Y-%%m-%%d %%H:%%M:%%f', 'now') || '000'",
            later="strftime('%%Y-%%m-%%d %%H:%%M:%%f', 'now', %s) || '000'",
            before="strftime('%%Y-%%m-%%d %%H:%%M:%%f', 'now', %s) || '000'",
            seconds=lambda seconds: f"{seconds:+.3f} seconds",
            until="(julianday({column}) - julianday('now')) * 86400.0",
            skip_locked="",
            # A transaction that reads first and writes then is refused where another has written in between;
            # one that begins with a write waits for its turn.
            begin="UPDATE {deliveries} SET attempts = attempts WHERE id = 0",
        ),
    )
}
