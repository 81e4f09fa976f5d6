"""The tables of the outbox and the inbox, on your metadata."""

from __future__ import annotations

from typing import Any

import attrs
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from cqrs_sync.outbox import LONGEST

_MYSQL = ("mysql", "mariadb")
#: Text is compared character by character: by default MySQL treats `a`, `A` and `ä` as equal.
_OPTIONS: Any = {
    f"{name}_{option}": value
    for name in _MYSQL
    for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}

_TEXT = sa.String(LONGEST)
_LONG_TEXT = sa.Text().with_variant(mysql.LONGTEXT(), *_MYSQL)
_BYTES = sa.LargeBinary().with_variant(mysql.LONGBLOB(), *_MYSQL)
_TIMESTAMP = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), *_MYSQL)


@attrs.frozen
class OutboxTables:
    """The two tables of an outbox."""

    messages: sa.Table
    deliveries: sa.Table


def tables(
    metadata: sa.MetaData,
    *,
    schema: str | None = None,
    messages: str = "cqrs_message",
    deliveries: str = "cqrs_delivery",
) -> OutboxTables:
    """
    Put the tables of an outbox on `metadata`: `create_all` makes them, and Alembic sees them.

    Tables of these names that are there already are returned. If they have other names, or are in a schema, pass the
    returned record to the outbox.
    """
    message_table = _table_on(metadata, messages, schema)
    delivery_table = _table_on(metadata, deliveries, schema)
    if message_table is not None and delivery_table is not None:
        return OutboxTables(message_table, delivery_table)
    message_table = sa.Table(
        messages,
        metadata,
        sa.Column("id", _TEXT, primary_key=True),
        sa.Column("topic", _TEXT, nullable=False),
        sa.Column("type", _TEXT, nullable=False),
        sa.Column("partition_key", _TEXT),
        sa.Column("content_type", _TEXT, nullable=False),
        sa.Column("payload", _BYTES, nullable=False),
        sa.Column("headers", _LONG_TEXT, nullable=False),
        sa.Column("created_at", _TIMESTAMP, nullable=False),
        sa.Index(f"ix_{messages}_created", "created_at"),
        schema=schema,
        **_OPTIONS,
    )
    delivery_table = sa.Table(
        deliveries,
        metadata,
        # SQLite numbers rows only if the type is INTEGER.
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
        # No foreign key and no index: both cost work for each message, and no query uses them.
        sa.Column("message_id", _TEXT, nullable=False),
        sa.Column("kind", sa.String(7), nullable=False),
        sa.Column("target", _TEXT, nullable=False),
        sa.Column("lane", sa.BigInteger()),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(7), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due_at", _TIMESTAMP, nullable=False),
        sa.Column("token", sa.String(32)),
        sa.Column("reason", _TEXT, nullable=False),
        sa.Column("last_error", sa.Text(), nullable=False),
        sa.Index(f"ix_{deliveries}_queue", "kind", "status", "id"),
        sa.Index(f"ix_{deliveries}_lane", "lane", "status", "id"),
        schema=schema,
        # A number is never used again, so an operator's command cannot hit another delivery.
        sqlite_autoincrement=True,
        **_OPTIONS,
    )
    return OutboxTables(message_table, delivery_table)


def inbox_table(metadata: sa.MetaData, *, schema: str | None = None, name: str = "cqrs_inbox") -> sa.Table:
    """
    Put the table of an inbox on `metadata`, as `tables` does for an outbox.

    A table of this name that is there already is returned. If it has another name, or is in a schema, pass the returned
    table to the inbox.
    """
    known = _table_on(metadata, name, schema)
    if known is not None:
        return known
    return sa.Table(
        name,
        metadata,
        sa.Column("id", _TEXT, primary_key=True),
        sa.Column("handler", _TEXT, primary_key=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("result", _BYTES),
        sa.Column("created_at", _TIMESTAMP, nullable=False),
        sa.Index(f"ix_{name}_created", "created_at"),
        schema=schema,
        **_OPTIONS,
    )


def _table_on(metadata: sa.MetaData, name: str, schema: str | None) -> sa.Table | None:
    schema = metadata.schema if schema is None else schema
    return metadata.tables.get(name if schema is None else f"{schema}.{name}")
