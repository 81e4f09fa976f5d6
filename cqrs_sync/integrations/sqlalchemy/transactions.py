"""The transactions of sessions that somebody else opens and commits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from sqlalchemy.orm import Session, scoped_session

from cqrs_sync.integrations.sqlalchemy.commits import Commits

#: Returns the session of the calling thread, None where it has none.
SessionOf: TypeAlias = "Callable[[], Session | scoped_session[Any] | None]"


class SessionTransactions:
    """
    The transactions of an application that has its sessions already, as with Flask-SQLAlchemy.

    `session` is a `scoped_session`, or returns one, or the session of the calling thread, or None.
    Flask's raises RuntimeError outside of an application: there is none then.
    """

    def __init__(self, session: SessionOf | scoped_session[Any]) -> None:
        self._session = (lambda: session) if isinstance(session, scoped_session) else session

    def active(self) -> bool:
        """Tell whether the session of the calling thread has a transaction open."""
        return self.open_session() is not None

    def on_commit(self, callback: Callable[[], object], /) -> None:
        """
        Call `callback` once the outermost transaction has committed.

        The session may be used in it. What it raises is logged.
        """
        session = self.open_session()
        if session is None:
            callback()
        else:
            self.commits(session).wait(session, callback)

    def open_session(self) -> Session | None:
        """Return the session that has a transaction open in the calling thread."""
        try:
            session = self._session()
            if isinstance(session, scoped_session):
                # Asking for one makes one.
                session = session() if session.registry.has() else None
        except RuntimeError:
            return None
        return session if session is not None and session.in_transaction() else None

    def commits(self, session: Session) -> Commits:
        """Return what waits for the commit of a session."""
        return Commits.of(session)
