"""Hear of commits in other processes: LISTEN, of PostgreSQL, with psycopg 3."""

from __future__ import annotations

from typing import Any

from django.db import Error, connections

from cqrs_sync.errors import OutboxUnavailable


def listener(using: str, channel: str) -> PsycopgListener | None:
    """Listen on a channel with a connection of its own; None where the database or its driver has no such thing."""
    if connections[using].vendor != "postgresql":
        return None
    from django.db.backends.postgresql.psycopg_any import is_psycopg3  # noqa: PLC0415 -- needs its driver

    return PsycopgListener(connections.create_connection(using), channel) if is_psycopg3 else None


class PsycopgListener:
    """
    Listens on a connection of Django's making, which it closes.

    What is notified while it is not connected is heard by nobody: it is a hint, no more.
    """

    def __init__(self, wrapper: Any, channel: str) -> None:
        self._wrapper = wrapper
        with wrapper.cursor() as cursor:
            cursor.execute(f'LISTEN "{channel}"')

    def wait(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds. Raises OutboxUnavailable where the connection is broken: open another one."""
        try:
            with self._wrapper.wrap_database_errors:
                return bool(list(self._wrapper.connection.notifies(timeout=timeout, stop_after=1)))
        except (Error, OSError) as error:
            raise OutboxUnavailable(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Let go of the connection."""
        self._wrapper.close()
