"""SQLite for several threads and processes."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, event

from cqrs_sync.errors import ConfigurationError


def begin_immediate(engine: Engine) -> Engine:
    """
    Make each transaction on a SQLite engine the only one that writes, from its start, and return the engine.

    SQLite refuses a write in a transaction that has read before ("database is locked"), if another one wrote
    meanwhile, whatever the timeout. A transaction that starts with BEGIN IMMEDIATE waits for its turn instead, at
    most as long as `connect_args={"timeout": seconds}` says. Savepoints need this, too: the driver starts no
    transaction for them.
    """
    if engine.dialect.name != "sqlite":
        raise ConfigurationError(f"begin_immediate is for SQLite, not for {engine.dialect.name}")
    event.listen(engine, "connect", _disable_driver_transactions)
    event.listen(engine, "begin", _begin)
    return engine


def _disable_driver_transactions(connection: Any, _: object) -> None:
    connection.isolation_level = None


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
