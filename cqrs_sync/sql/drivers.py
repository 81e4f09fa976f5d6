"""What a driver knows of the transaction on its connection: it is told that with each answer, so nobody has to ask."""

from __future__ import annotations

from enum import Enum
from typing import Any

from cqrs_sync.errors import TransactionLost

#: Of libpq, as psycopg and psycopg2 hand them on.
_IDLE, _IN_ERROR = 0, 3
#: Of MySQL's protocol, which the status after each statement has set inside a transaction.
_IN_TRANSACTION = 1


class State(Enum):
    """How a transaction stands."""

    OPEN = "open"
    #: None is open on the connection.
    NONE = "none"
    #: An error has ended it: its COMMIT would be a ROLLBACK, and would not say so. Only PostgreSQL does that.
    ABORTED = "aborted"
    #: The driver does not tell.
    UNKNOWN = "unknown"


def state_of(connection: Any) -> State:
    """Return what the driver of a connection knows; sends nothing."""
    status = getattr(getattr(connection, "info", None), "transaction_status", None)
    if status is not None:
        # A connection that is broken is called open: its commit raises, and says why.
        return State.NONE if status == _IDLE else State.ABORTED if status == _IN_ERROR else State.OPEN
    known = getattr(connection, "in_transaction", None)
    if not isinstance(known, bool):
        flags = getattr(connection, "server_status", None)
        known = bool(flags & _IN_TRANSACTION) if isinstance(flags, int) else None
    return State.UNKNOWN if known is None else State.OPEN if known else State.NONE


def aborted(savepoint: str) -> TransactionLost:
    """Make the error for a transaction that was aborted; `savepoint` is how one is written."""
    return TransactionLost(
        "an error of the database was caught in this transaction, which PostgreSQL has aborted for it: its commit "
        f"would roll back all of it and say nothing. Put a savepoint around what may fail, `{savepoint}`, or let the "
        "error through"
    )


def ended(how: str, savepoint: str) -> TransactionLost:
    """Make the error for a transaction that is rolled back, or will be, though nothing was raised."""
    return TransactionLost(
        f"this transaction was given up before its end, {how}: nothing that was done in it is there. Raise an error to "
        f"give it up; put a savepoint around what may fail, `{savepoint}`"
    )
