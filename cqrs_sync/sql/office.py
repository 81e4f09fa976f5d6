"""What operators ask of the tables: what waits, what is dead, and what may be deleted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.outbox import Backlog, DeadDelivery, Selection, TargetBacklog
from cqrs_sync.sql.statements import DEAD, HANDLER, PENDING, TRIED, marks
from cqrs_sync.sql.tables import Tables

_MESSAGE = "m.id, m.topic, m.type, m.partition_key, m.content_type, m.payload, m.headers"


class Office(Tables):
    """The part of the store that operators use."""

    def backlog(self) -> Backlog:
        """Count what is not delivered yet."""
        deliveries, messages = self._say.deliveries_table, self._say.messages_table
        age = self._database.dialect.until.format(column="m.created_at")
        with self._database.begun() as connection:
            counts = connection.execute(
                f"SELECT kind, target, {', '.join(map(_count, (PENDING, TRIED, DEAD)))} "
                f"FROM {deliveries} GROUP BY kind, target ORDER BY kind, target"
            )
            reasons = connection.execute(
                f"SELECT reason, COUNT(*) FROM {deliveries} WHERE status = '{DEAD}' GROUP BY reason "
                "ORDER BY COUNT(*) DESC, reason"
            )
            oldest = connection.execute(
                f"SELECT MIN({age}) FROM {deliveries} d JOIN {messages} m ON m.id = d.message_id "
                f"WHERE d.status IN ('{PENDING}', '{TRIED}')"
            )
        return Backlog(
            targets=tuple(TargetBacklog(kind, target, *map(int, numbers)) for kind, target, *numbers in counts),
            dead_by_reason=tuple((reason, int(count)) for reason, count in reasons),
            oldest=None if oldest[0][0] is None else max(0.0, -float(oldest[0][0])),
        )

    def dead(self, selection: Selection, /, *, limit: int = 100) -> Sequence[DeadDelivery]:
        """Return dead deliveries, oldest first."""
        age = self._database.dialect.until.format(column="m.created_at")
        where, values = _where(selection, "d.")
        with self._database.begun() as connection:
            rows = connection.execute(
                f"SELECT d.id, d.kind, d.target, d.attempts, d.reason, d.last_error, d.lane, {age}, {_MESSAGE} "
                f"FROM {self._say.deliveries_table} d JOIN {self._say.messages_table} m ON m.id = d.message_id "
                f"WHERE {where} ORDER BY d.id LIMIT %s",
                [*values, limit],
            )
        return [
            DeadDelivery(
                number=number,
                message=read_message(message),
                handler=target if kind == HANDLER else None,
                attempts=attempts,
                reason=reason,
                error=error,
                age=max(0.0, -float(seconds)),
                blocks=lane is not None,
            )
            for number, kind, target, attempts, reason, error, lane, seconds, *message in rows
        ]

    def replay(self, selection: Selection, /, *, limit: int = 1000) -> int:
        """Let dead deliveries be claimed again, with their attempts forgotten."""
        return self._change_dead(selection, limit, self._say.replay())

    def discard(self, selection: Selection, /, *, limit: int = 1000) -> int:
        """Delete dead deliveries."""
        return self._change_dead(selection, limit, self._say.delete)

    def purge(self, older_than: float, /, *, limit: int = 1000) -> int:
        """Delete messages that were written more than `older_than` seconds ago and are delivered."""
        say, dialect = self._say, self._database.dialect
        with self._begun() as connection:
            if dialect.scan is not None:
                connection.execute(dialect.scan)
            # In no order: any of them will do, and sorting would have to look at all of them.
            found = connection.execute(
                f"SELECT m.id FROM {say.messages_table} m WHERE m.created_at < {dialect.before} AND NOT EXISTS "
                f"(SELECT 1 FROM {say.deliveries_table} d WHERE d.message_id = m.id) LIMIT %s {dialect.skip_locked}",
                [dialect.seconds(-older_than), limit],
            )
            ids = [row[0] for row in found]
            if not ids:
                return 0
            return connection.change(*say.listed(say.delete_messages, ids))

    def _change_dead(self, selection: Selection, limit: int, statement: str) -> int:
        table = self._say.deliveries_table
        where, values = _where(selection, "")
        with self._begun() as connection:
            # No subquery: MySQL does not change a table that it reads, and everybody can lock.
            found = connection.execute(
                f"SELECT id FROM {table} WHERE {where} ORDER BY id LIMIT %s {self._database.dialect.skip_locked}",
                [*values, limit],
            )
            numbers = [row[0] for row in found]
            if not numbers:
                return 0
            return connection.change(*self._say.listed(statement, numbers))


def _count(status: str) -> str:
    return f"SUM(CASE WHEN status = '{status}' THEN 1 ELSE 0 END)"


def read_message(row: Sequence[Any]) -> OutgoingMessage:
    """Make a message of its row."""
    identity, topic, kind, key, content_type, payload, headers = row
    return OutgoingMessage(
        id=identity,
        topic=topic,
        type=kind,
        body=bytes(payload),
        content_type=content_type,
        key=key,
        attributes=orjson.loads(headers),
    )


def _where(selection: Selection, prefix: str) -> tuple[str, list[Any]]:
    """Return the condition for a selection of dead deliveries, and its values."""
    conditions = [f"{prefix}status = '{DEAD}'"]
    values: list[Any] = []
    if selection.numbers is not None:
        conditions.append(f"{prefix}id IN ({marks(selection.numbers) or 'NULL'})")
        values.extend(selection.numbers)
    for column, value in (("reason", selection.reason), ("target", selection.target)):
        if value is not None:
            conditions.append(f"{prefix}{column} = %s")
            values.append(value)
    return " AND ".join(conditions), values
