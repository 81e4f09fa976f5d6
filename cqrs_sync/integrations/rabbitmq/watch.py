"""Finding out soon that the way to the broker is dead."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from pika import exceptions

from cqrs_sync.integrations.rabbitmq.connection import Connection
from cqrs_sync.integrations.rabbitmq.link import Link


class Watch:
    """
    Drops a connection that stays silent for `patience` seconds while answers are due.

    Heartbeats would take a minute. Half-way through, it asks the broker for something
    it answers at once: one that is only slow to confirm is left in peace, or every
    reconnect would send everything again. All of it runs on the I/O thread.
    """

    def __init__(self, link: Link, patience: float, answers_due: Callable[[], bool]) -> None:
        self._link = link
        self._patience = patience
        self._answers_due = answers_due
        self._watched: Connection | None = None
        self._heard_at = 0.0
        self._heard_bytes = 0
        self._asked = False

    def start(self) -> None:
        """Watch the connection as long as answers are due."""
        connection = self._link.connection
        if connection is not None and connection is not self._watched and self._answers_due():
            self._watched = connection
            self._hear(connection)
            self._look_later(connection)

    def _look_later(self, connection: Connection) -> None:
        self._link.later(self._patience / 4, lambda: self._look(connection))

    def _look(self, connection: Connection) -> None:
        if connection is not self._watched:
            return
        if connection is not self._link.connection or not self._answers_due():
            self._watched = None
            return
        if connection.bytes_received != self._heard_bytes:
            self._hear(connection)
        silence = time.monotonic() - self._heard_at
        # Whoever could not look for so long, as other threads had the interpreter, asks before giving up.
        if silence >= self._patience and self._asked:
            self._watched = None
            self._link.reopen(TimeoutError("no answer"))
            return
        if silence >= self._patience / 2 and not self._asked:
            self._ask(connection)
        self._look_later(connection)

    def _hear(self, connection: Connection) -> None:
        self._heard_at, self._heard_bytes = time.monotonic(), connection.bytes_received
        self._asked = False

    def _ask(self, connection: Connection) -> None:
        self._asked = True
        # A broker that allows a single channel is watched without questions.
        with contextlib.suppress(exceptions.AMQPError):
            connection.channel(on_open_callback=_close)


def _close(channel: Any) -> None:
    channel.close()
