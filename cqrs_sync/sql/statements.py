"""The SQL statements of the outbox and the inbox, in one dialect."""

from __future__ import annotations

import re
from collections.abc import Collection, Sized
from typing import Any

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.sql.dialects import Dialect

TOPIC, HANDLER = "topic", "handler"
PENDING, TRIED, DEAD = "pending", "tried", "dead"

#: The columns of a message, in the order in which rows are read and written.
MESSAGE_COLUMNS = ("id", "topic", "type", "partition_key", "content_type", "payload", "headers")

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}(\.[A-Za-z_][A-Za-z0-9_]{0,62})?")


def check_table(name: str) -> None:
    """Raise ConfigurationError for a name that cannot stand for a table in a statement."""
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"{name!r} cannot be the name of a table: use letters, digits and _")


def placeholders(values: Sized) -> str:
    """Return a placeholder for each value."""
    return ", ".join(["%s"] * len(values))


def _quote(name: str, quote: str) -> str:
    """Quote the name of a table and of its schema."""
    return ".".join(f"{quote}{part}{quote}" for part in name.split("."))


class OutboxStatements:
    """
    The statements of the outbox. `{}` in a statement stands for a list of values: see `with_list`.

    A delivery is *pending* until its first claim, and *tried* after it. `due_at` is when it can be claimed: when the
    lease of its claim ends, or when its next attempt is due. A finished delivery is deleted. Deliveries with the
    same `lane`, the hash of target and key, are made in order.
    """

    def __init__(self, dialect: Dialect, messages: str, deliveries: str) -> None:
        self._dialect = dialect
        self.messages_table = _quote(messages, dialect.quote)
        self.deliveries_table = table = _quote(deliveries, dialect.quote)
        self.begin = dialect.begin.format(table=table)
        #: No earlier delivery of the same lane is dead, claimed, or waits for its next attempt.
        self._first_in_lane = f"{self._none_ahead(DEAD)} AND {self._none_ahead(TRIED, f'AND b.due_at > {dialect.now}')}"
        self._update = update = dialect.update.format(table=table)
        delete, now_plus = dialect.delete.format(table=table), dialect.now_plus
        self.delete = f"{delete} id {{}}"
        self.delete_messages = f"{dialect.delete.format(table=self.messages_table)} id {{}}"
        claimed = f"d.kind IN ('{TOPIC}', '{HANDLER}') AND d.status = '{TRIED}' AND d.token = %s"
        self.claim = (
            f"{update} status = '{TRIED}', attempts = attempts + 1, token = %s, due_at = {now_plus} WHERE id {{}}"
        )
        self.ahead = (
            f"SELECT id, lane FROM {table} WHERE lane {{}} AND status IN ('{PENDING}', '{TRIED}', '{DEAD}') "
            "AND id < %s AND (token IS NULL OR token <> %s)"
        )
        self.claimed_ids = f"SELECT d.id FROM {table} d WHERE {claimed}"
        self.claimed_messages = (
            f"SELECT {', '.join(f'm.{column}' for column in MESSAGE_COLUMNS)} "
            f"FROM {table} d JOIN {self.messages_table} m ON m.id = d.message_id WHERE {claimed}"
        )
        self.renew = (
            f"UPDATE {table} SET due_at = {now_plus} "
            f"WHERE kind IN ('{TOPIC}', '{HANDLER}') AND status = '{TRIED}' AND token {{}}"
        )
        mine = "token = %s AND id {}"
        self.done = f"{delete} {mine}"
        dead = f"{update} status = '{DEAD}', token = NULL, reason = %s, last_error = %s"
        self.dead_and_blocks = f"{dead} WHERE {mine}"
        self.dead = f"{dead}, lane = NULL WHERE {mine}"
        again = f"due_at = {now_plus}, token = NULL, reason = %s, last_error = %s WHERE {mine}"
        self.retry = f"{update} {again}"
        self.retry_uncounted = f"{update} attempts = attempts - 1, {again}"
        # MySQL assigns from left to right, so `status` comes before `attempts` changes.
        self.give_back = (
            f"{update} status = CASE WHEN attempts > 1 THEN '{TRIED}' ELSE '{PENDING}' END, "
            f"attempts = attempts - 1, {again}"
        )

    def unclaim(self, status: str) -> str:
        """Undo a claim in the transaction that made it."""
        now = self._dialect.now
        return (
            f"{self._update} status = '{status}', attempts = attempts - 1, token = NULL, due_at = {now} WHERE id {{}}"
        )

    def replay(self) -> str:
        """Make dead deliveries claimable again."""
        return f"{self._update} status = '{PENDING}', attempts = 0, due_at = {self._dialect.now} WHERE id {{}}"

    def with_list(self, statement: str, values: Collection[Any]) -> tuple[str, list[Any]]:
        """Return a statement with its `{}` filled in, and the parameters for it."""
        if self._dialect.has_arrays:
            # One parameter for any number of values: the driver need not process each of them.
            return statement.format("= ANY(%s)"), [list(values)]
        return statement.format(f"IN ({placeholders(values)})"), list(values)

    def next_due(self, handlers: int) -> str:
        """Select the seconds until a delivery can be claimed. Pass the names of the handlers three times."""
        table, now = self.deliveries_table, self._dialect.now
        seconds = self._dialect.seconds_until.format(column="d.due_at")
        names = placeholders(range(handlers)) or "NULL"
        mine = f"(d.kind = '{TOPIC}' OR (d.kind = '{HANDLER}' AND d.target IN ({names})))"

        def one(which: str) -> str:
            return f"SELECT 0.0 AS seconds FROM {table} d WHERE {mine} AND {which} AND {self._first_in_lane} LIMIT 1"

        tried = f"d.status = '{TRIED}' AND d.due_at"
        return (
            f"SELECT MIN(due.seconds) FROM (SELECT * FROM ({one(f'd.status = {PENDING!r}')}) fresh "
            f"UNION ALL SELECT * FROM ({one(f'{tried} <= {now}')}) ready "
            f"UNION ALL SELECT MIN({seconds}) AS seconds FROM {table} d WHERE {mine} AND {tried} > {now}) due"
        )

    def candidates(self, status: str, targets: int, excluded: int) -> str:
        """Select and lock claimable deliveries of one kind, for `targets` targets, without `excluded` ones."""
        filters = f"AND d.target IN ({placeholders(range(targets))}) " if targets else ""
        filters += f"AND d.target NOT IN ({placeholders(range(excluded))}) " if excluded else ""
        due = ""
        if status == TRIED:
            # An earlier delivery that is still pending has committed late, and goes first. Without this condition the
            # deliveries that wait for it would be selected each time and fill the list of candidates.
            due = f"AND d.due_at <= {self._dialect.now} AND {self._none_ahead(PENDING)} "
        return (
            f"SELECT d.id, d.message_id, d.target, d.lane, d.attempts, d.size FROM {self.deliveries_table} d "
            f"WHERE d.kind = %s AND d.status = '{status}' {filters}{due}AND {self._first_in_lane} "
            f"ORDER BY d.id LIMIT %s {self._dialect.skip_locked}"
        )

    def _none_ahead(self, status: str, more: str = "") -> str:
        """
        Say that no earlier delivery of the same lane has this status.

        One status at a time: an index finds such a delivery at once. For several statuses it would have to read
        all deliveries that wait behind it.
        """
        return (
            f"NOT EXISTS (SELECT 1 FROM {self.deliveries_table} b "
            f"WHERE b.lane = d.lane AND b.id < d.id AND b.status = '{status}' {more})"
        )

    def insert_messages(self, rows: int) -> str:
        """Insert messages."""
        row = f"(%s, %s, %s, %s, %s, %s, %s, {self._dialect.now})"
        columns = ", ".join(MESSAGE_COLUMNS)
        return f"INSERT INTO {self.messages_table} ({columns}, created_at) VALUES {', '.join([row] * rows)}"

    def insert_deliveries(self, rows: int) -> str:
        """Insert pending deliveries."""
        row = f"(%s, %s, %s, %s, %s, '{PENDING}', 0, {self._dialect.now}, '', '')"
        return (
            f"INSERT INTO {self.deliveries_table} "
            "(message_id, kind, target, lane, size, status, attempts, due_at, reason, last_error) "
            f"VALUES {', '.join([row] * rows)}"
        )


class InboxStatements:
    """The statements of the inbox."""

    def __init__(self, dialect: Dialect, name: str) -> None:
        table = _quote(name, dialect.quote)
        row = "id = %s AND handler = %s"
        insert = f"INSERT INTO {table} (id, handler, attempts, created_at) VALUES (%s, %s, {{}}, {dialect.now})"
        self._delete = f"{dialect.delete.format(table=table)} (id, handler) IN ({{}})"
        self.begin = dialect.begin.format(table=table)
        self.insert = f"{insert.format(0)} {dialect.on_conflict_ignore}"
        self.count = f"{insert.format(1)} {dialect.on_conflict_count.format(table=table)}"
        self.count_less = f"UPDATE {table} SET attempts = attempts - 1 WHERE {row}"
        self.delete_uncounted = f"DELETE FROM {table} WHERE {row} AND attempts <= 0"
        self.result = f"SELECT result FROM {table} WHERE {row}"
        self.attempts = f"SELECT attempts FROM {table} WHERE {row}"
        self.keep = f"UPDATE {table} SET result = %s WHERE {row}"
        self.old = f"SELECT id, handler FROM {table} WHERE created_at < {dialect.cutoff} LIMIT %s {dialect.skip_locked}"

    def delete(self, rows: int) -> str:
        """Delete this many rows."""
        return self._delete.format(", ".join(["(%s, %s)"] * rows))
