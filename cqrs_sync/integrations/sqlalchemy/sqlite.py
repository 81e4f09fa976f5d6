"""SQLite for several threads and processes."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, event

from cqrs_sync.errors import ConfigurationError


def begin_immediate(engine: Engine) -> Engine:
    """
    Let each transaction on a SQLite engine be the only one that writes, from its beginning, and return the engine.

    A transaction that reads first and writes then fails at once where another one has written
    meanwhile ("database is locked"), whatever the timeout. One that begins like this waits for
    its turn, at most as long as `connect_args={"timeout": seconds}` says. Savepoints need it, too:
    the driver begins no transaction for them.
    """
    if engine.dialect.name != "sqlite":
        raise ConfigurationError(f"begin_immediate is for SQLite, not for {engine.dialect.name}")
    event.listen(engine, "connect", _leave_transactions_alone)
    event.listen(engine, "begin", _begin)
    return engine


def _leave_transactions_alone(connection: Any, _: object) -> None:
    connection.isolation_level = None


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
