"""The statements of the store, as one dialect says them."""

from __future__ import annotations

from collections.abc import Collection, Sized
from typing import Any

from cqrs_sync.sql.dialects import Dialect

TOPIC, HANDLER = "topic", "handler"
PENDING, TRIED, DEAD = "pending", "tried", "dead"

_MESSAGE = "id, topic, type, partition_key, content_type, payload, headers"


def marks(values: Sized) -> str:
    """Return a placeholder for each value."""
    return ", ".join(["%s"] * len(values))


class Statements:
    """
    What the store says to its database. `{}` in a statement stands for a list of values: see `listed`.

    A delivery is *pending* until it is claimed the first time, then *tried*; `due_at` is
    when it may be claimed: by the end of a claim's lease, or when its next attempt is due.
    What is delivered is deleted. `lane` is what deliveries that keep order have in common.
    """

    def __init__(self, dialect: Dialect, messages: str, deliveries: str) -> None:
        self._dialect = dialect
        self.messages_table = quoted(messages, dialect.quote)
        self.deliveries_table = quoted(deliveries, dialect.quote)
        self.begin = dialect.begin.format(deliveries=self.deliveries_table)
        #: No earlier delivery of the same lane is dead, claimed, or waits for its next attempt.
        self._free = f"{self._none_ahead(DEAD)} AND {self._none_ahead(TRIED, f'AND b.due_at > {dialect.now}')}"
        self._update = dialect.update.format(table=self.deliveries_table)
        self.delete = f"{dialect.delete.format(table=self.deliveries_table)} id {{}}"
        self.delete_messages = f"{dialect.delete.format(table=self.messages_table)} id {{}}"
        self._claim()
        self._settle()

    def _claim(self) -> None:
        table, later = self.deliveries_table, self._dialect.later
        mine = f"d.kind IN ('{TOPIC}', '{HANDLER}') AND d.status = '{TRIED}' AND d.token = %s"
        self.ahead = (
            f"SELECT id, lane FROM {table} WHERE lane {{}} AND status IN ('{PENDING}', '{TRIED}', '{DEAD}') "
            "AND id < %s AND (token IS NULL OR token <> %s)"
        )
        self.messages = (
            f"SELECT {', '.join('m.' + column for column in _MESSAGE.split(', '))} "
            f"FROM {table} d JOIN {self.messages_table} m ON m.id = d.message_id WHERE {mine}"
        )
        self.held = f"SELECT d.id FROM {table} d WHERE {mine}"
        self.claim = (
            f"{self._update} status = '{TRIED}', attempts = attempts + 1, token = %s, due_at = {later} WHERE id {{}}"
        )
        self.renew = (
            f"UPDATE {table} SET due_at = {later} "
            f"WHERE kind IN ('{TOPIC}', '{HANDLER}') AND status = '{TRIED}' AND token {{}}"
        )

    def _settle(self) -> None:
        update, later = self._update, self._dialect.later
        held = "WHERE token = %s AND id {}"
        self.done = f"{self._dialect.delete.format(table=self.deliveries_table)} token = %s AND id {{}}"
        dead = f"{update} status = '{DEAD}', token = NULL, reason = %s, last_error = %s"
        self.dead_and_blocks = f"{dead} {held}"
        self.dead = f"{dead}, lane = NULL {held}"
        again = f"due_at = {later}, token = NULL, reason = %s, last_error = %s {held}"
        self.again = f"{update} {again}"
        self.again_not_counted = f"{update} attempts = attempts - 1, {again}"
        # MySQL assigns from left to right: the status is told from what the attempts were.
        self.again_untouched = (
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
        """Let dead deliveries be claimed again."""
        return f"{self._update} status = '{PENDING}', attempts = 0, due_at = {self._dialect.now} WHERE id {{}}"

    def listed(self, statement: str, values: Collection[Any]) -> tuple[str, list[Any]]:
        """Return a statement with the values its `{}` stands for, and the parameters that they are."""
        if self._dialect.arrays:
            # One parameter, however many values: the driver need not look for each.
            return statement.format("= ANY(%s)"), [list(values)]
        return statement.format(f"IN ({marks(values)})"), list(values)

    def next_due(self, handlers: int) -> str:
        """Select the seconds until something may be claimed for the broker or this many handlers, given three times."""
        table, now = self.deliveries_table, self._dialect.now
        until = self._dialect.until.format(column="d.due_at")
        names = marks(range(handlers)) or "NULL"
        mine = f"(d.kind = '{TOPIC}' OR (d.kind = '{HANDLER}' AND d.target IN ({names})))"

        def one(which: str) -> str:
            return f"SELECT 0.0 AS seconds FROM {table} d WHERE {mine} AND {which} AND {self._free} LIMIT 1"

        tried = f"d.status = '{TRIED}' AND d.due_at"
        return (
            f"SELECT MIN(due.seconds) FROM (SELECT * FROM ({one(f'd.status = {PENDING!r}')}) fresh "
            f"UNION ALL SELECT * FROM ({one(f'{tried} <= {now}')}) ready "
            f"UNION ALL SELECT MIN({until}) AS seconds FROM {table} d WHERE {mine} AND {tried} > {now}) due"
        )

    def candidates(self, status: str, among: int, besides: int) -> str:
        """Select what may be claimed, and lock it: of a kind, for this many targets, not for that many."""
        targets = f"AND d.target IN ({marks(range(among))}) " if among else ""
        targets += f"AND d.target NOT IN ({marks(range(besides))}) " if besides else ""
        due = ""
        if status == TRIED:
            # An earlier one that nobody has tried has committed late. It goes first: otherwise those that wait
            # for it would be looked at each time, and take its place among the candidates.
            due = f"AND d.due_at <= {self._dialect.now} AND {self._none_ahead(PENDING)} "
        return (
            f"SELECT d.id, d.message_id, d.target, d.lane, d.attempts, d.size FROM {self.deliveries_table} d "
            f"WHERE d.kind = %s AND d.status = '{status}' {targets}{due}AND {self._free} "
            f"ORDER BY d.id LIMIT %s {self._dialect.skip_locked}"
        )

    def _none_ahead(self, status: str, more: str = "") -> str:
        """
        Say that no earlier delivery of the same lane has this status.

        One status at a time: an index finds such a delivery at once, and one of several only
        by looking at everything that waits behind it.
        """
        return (
            f"NOT EXISTS (SELECT 1 FROM {self.deliveries_table} b "
            f"WHERE b.lane = d.lane AND b.id < d.id AND b.status = '{status}' {more})"
        )

    def insert_messages(self, rows: int) -> str:
        """Insert messages."""
        row = f"(%s, %s, %s, %s, %s, %s, %s, {self._dialect.now})"
        return f"INSERT INTO {self.messages_table} ({_MESSAGE}, created_at) VALUES {', '.join([row] * rows)}"

    def insert_deliveries(self, rows: int) -> str:
        """Insert deliveries that nobody has tried."""
        row = f"(%s, %s, %s, %s, %s, '{PENDING}', 0, {self._dialect.now}, '', '')"
        return (
            f"INSERT INTO {self.deliveries_table} "
            "(message_id, kind, target, lane, size, status, attempts, due_at, reason, last_error) "
            f"VALUES {', '.join([row] * rows)}"
        )


def quoted(name: str, quote: str) -> str:
    """Quote the name of a table, and that of its schema."""
    return ".".join(f"{quote}{part}{quote}" for part in name.split("."))
