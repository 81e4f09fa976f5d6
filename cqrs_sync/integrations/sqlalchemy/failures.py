"""What an error of the database means to the outbox, or to the inbox."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError

from cqrs_sync.errors import CqrsError
from cqrs_sync.sql.database import OUTBOX, Purpose

#: A table, a column, a schema that is not there, as PostgreSQL says it, and as MySQL does.
_MISSING = {"42P01", "42703", "3F000", 1146, 1054}
_MISSING_IN_SQLITE = ("no such table", "no such column", "has no column named")
#: A deadlock, and a row that was changed after the transaction's snapshot.
_CONFLICTS = {"40001", "40P01", 1213, 1020}


def not_installed(error: SQLAlchemyError, names: Sequence[str], purpose: Purpose = OUTBOX) -> CqrsError | None:
    """Tell of a table that is not there; None where that is not the trouble."""
    if not isinstance(error, DBAPIError) or not _is_missing(error.orig):
        return None
    words = str(error.orig)
    named = [name for name in names if name.rpartition(".")[2] in words] or names
    function = "tables" if purpose is OUTBOX else "inbox_table"
    return purpose.not_installed(
        f"the table {' or '.join(named)} of the {purpose.name} is not there, or not as this version needs it "
        f"({_line(words)}): put {function}(metadata) of cqrs_sync.integrations.sqlalchemy on your metadata, and create "
        "it with metadata.create_all(engine) or a migration"
    )


def translated(error: SQLAlchemyError, names: Sequence[str], purpose: Purpose = OUTBOX) -> CqrsError:
    """Make an error of ours of what went wrong in a transaction of ours."""
    if isinstance(error, StatementError):
        # What is in a message is nobody's business who reads a log.
        error.hide_parameters = True
    missing = not_installed(error, names, purpose)
    if missing is not None:
        return missing
    cause = error.orig if isinstance(error, DBAPIError) else error
    return purpose.unavailable(f"{type(cause).__name__}: {_line(str(cause))}")


def conflicted(error: BaseException | None) -> bool:
    """Tell whether the database has ended one transaction of several, which may be begun anew."""
    return isinstance(error, DBAPIError) and bool(_codes(error.orig) & _CONFLICTS)


def _is_missing(cause: Any) -> bool:
    first = next(iter(getattr(cause, "args", ())), None)
    return bool(_codes(cause) & _MISSING) or any(words in str(first) for words in _MISSING_IN_SQLITE)


def _codes(cause: Any) -> set[Any]:
    """Return what the driver says by numbers, or as SQLSTATE."""
    first = next(iter(getattr(cause, "args", ())), None)
    return {first, getattr(cause, "sqlstate", None), getattr(cause, "pgcode", None)}


def _line(words: str) -> str:
    return words.strip().partition("\n")[0]
