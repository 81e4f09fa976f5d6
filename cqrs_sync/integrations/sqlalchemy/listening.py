"""Hear of commits in other processes: LISTEN, of PostgreSQL, with psycopg 3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from cqrs_sync.errors import OutboxUnavailable
from cqrs_sync.integrations.sqlalchemy.failures import translated


def listener(engine: Engine, channel: str) -> PsycopgListener | None:
    """Listen on a channel with a connection of its own; None where the database or its driver has no such thing."""
    if engine.dialect.name != "postgresql" or engine.dialect.driver != "psycopg":
        return None
    try:
        pooled = engine.connect()
        connection = pooled.connection.driver_connection
        # It is not the pool's any more: it would be missing there for as long as somebody listens.
        pooled.detach()
    except SQLAlchemyError as error:
        raise translated(error, ()) from error
    return PsycopgListener(connection, channel)


class PsycopgListener:
    """
    Listens on a connection of psycopg, which it closes.

    What is notified while it is not connected is heard by nobody: it is a hint, no more.
    """

    def __init__(self, connection: Any, channel: str) -> None:
        self._connection = connection
        with self._translating():
            connection.rollback()
            connection.autocommit = True
            connection.execute(f'LISTEN "{channel}"')

    def wait(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds. Raises OutboxUnavailable where the connection is broken: open another one."""
        with self._translating():
            return bool(list(self._connection.notifies(timeout=timeout, stop_after=1)))

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except (self._connection.Error, OSError) as error:
            raise OutboxUnavailable(f"{type(error).__name__}: {error}") from error
