"""What an error of the database means to the outbox."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError

from cqrs_sync.errors import CqrsError, OutboxNotInstalled, OutboxUnavailable

#: A table, a column, a schema that is not there, as PostgreSQL says it, and as MySQL does.
_MISSING = {"42P01", "42703", "3F000", 1146, 1054}
_MISSING_IN_SQLITE = ("no such table", "no such column", "has no column named")


def not_installed(error: SQLAlchemyError, names: Sequence[str]) -> OutboxNotInstalled | None:
    """Tell of a table that is not there; None where that is not the trouble."""
    if not isinstance(error, DBAPIError) or not _is_missing(error.orig):
        return None
    words = str(error.orig)
    named = [name for name in names if name.rpartition(".")[2] in words] or names
    return OutboxNotInstalled(
        f"the table {' or '.join(named)} of the outbox is not there, or not as this version needs it ({_line(words)}): "
        "put tables(metadata) of cqrs_sync.integrations.sqlalchemy on your metadata, and create it with "
        "metadata.create_all(engine) or a migration"
    )


def translated(error: SQLAlchemyError, names: Sequence[str]) -> CqrsError:
    """Make an error of ours of what went wrong in a transaction of ours."""
    if isinstance(error, StatementError):
        # What is in a message is nobody's business who reads a log.
        error.hide_parameters = True
    missing = not_installed(error, names)
    if missing is not None:
        return missing
    cause = error.orig if isinstance(error, DBAPIError) else error
    return OutboxUnavailable(f"{type(cause).__name__}: {_line(str(cause))}")


def _is_missing(cause: Any) -> bool:
    first = next(iter(getattr(cause, "args", ())), None)
    codes = {first, getattr(cause, "sqlstate", None), getattr(cause, "pgcode", None)}
    return bool(codes & _MISSING) or any(words in str(first) for words in _MISSING_IN_SQLITE)


def _line(words: str) -> str:
    return words.strip().partition("\n")[0]
