"""Hear of commits in other processes: LISTEN, of PostgreSQL, with psycopg 3.2 or later."""

from __future__ import annotations

from typing import Any

from django.db import Error, connections

from cqrs_sync.errors import OutboxUnavailable


def listener(using: str, channel: str) -> PsycopgListener | None:
    """Listen on a channel with a connection of its own; None where the database or its driver has no such thing."""
    if connections[using].vendor != "postgresql" or not _can_wait():
        return None
    wrapper = connections.create_connection(using)
    # A connection of a pool would come back to it listening, and be missed there until then.
    options = {name: value for name, value in wrapper.settings_dict["OPTIONS"].items() if name != "pool"}
    wrapper.settings_dict = {**wrapper.settings_dict, "OPTIONS": options}
    return PsycopgListener(wrapper, channel)


def _can_wait() -> bool:
    """Tell whether the driver waits for notifications, and for a time only."""
    from django.db.backends.postgresql.psycopg_any import is_psycopg3  # noqa: PLC0415 -- needs its driver

    if not is_psycopg3:
        return False
    import psycopg  # noqa: PLC0415 -- as above

    major, minor = psycopg.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (3, 2)


class PsycopgListener:
    """
    Listens on a connection of Django's making, which it closes.

    What is notified while it is not connected is heard by nobody: it is a hint, no more.
    """

    def __init__(self, wrapper: Any, channel: str) -> None:
        self._wrapper = wrapper
        try:
            with wrapper.cursor() as cursor:
                cursor.execute(f'LISTEN "{channel}"')
        except BaseException:
            wrapper.close()
            raise

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
