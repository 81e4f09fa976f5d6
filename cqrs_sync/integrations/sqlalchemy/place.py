"""Where an outbox or an inbox is: its engine, and whose sessions write to it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import scoped_session

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.integrations.sqlalchemy.sessions import Sessions
from cqrs_sync.integrations.sqlalchemy.transactions import SessionOf, SessionTransactions


def place(
    where: Sessions | Engine,
    session: SessionOf | scoped_session[Any] | SessionTransactions | None,
    what: str,
    maker: str,
) -> tuple[Engine, SessionTransactions]:
    """Return engine and sessions for `what`, which `maker` makes. Raises ConfigurationError where they are not told."""
    if isinstance(where, Engine) and session is not None:
        return where, session if isinstance(session, SessionTransactions) else SessionTransactions(session)
    if isinstance(where, Sessions) and session is None:
        if where.engine is not None:
            return where.engine, where
        raise ConfigurationError(
            f"these sessions have no engine of their own, so {what} cannot tell which database it is in: "
            f"{maker}(engine, session=sessions)"
        )
    raise ConfigurationError(
        f"{what} is made of sessions, {maker}(sessions), or of an engine and a function that returns the "
        f"session of the calling thread, {maker}(engine, session=lambda: db.session)"
    )
