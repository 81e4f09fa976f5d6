"""
Transactions that a database has given up behind the application's back.

PostgreSQL aborts one for any error, and its COMMIT is a ROLLBACK then that says nothing: an application that catches
the error would commit nothing of what it did. The driver knows.

MySQL does not tell, so it is noted. After a deadlock (1213), all that came before in the transaction
is gone, and what comes after is in a new one: an application that catches the error would commit half
of what it did. After a lock that was waited for in vain (1205) the server may have done the same.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError

from cqrs_sync.sql.states import State, state_of

_DEADLOCK, _LOCK_WAIT = 1213, 1205

#: Why a connection must not commit what is open on it.
lost: WeakKeyDictionary[Connection, str] = WeakKeyDictionary()


def driver_state(connection: Connection) -> State:
    """Return what the driver knows of the transaction on a connection."""
    if connection.closed or connection.invalidated:
        return State.UNKNOWN
    return state_of(connection.connection.driver_connection)


def is_aborted(connection: Connection) -> bool:
    """Tell whether the database would answer a COMMIT with a ROLLBACK."""
    state = driver_state(connection)
    if state is not State.UNKNOWN or connection.dialect.name != "postgresql" or connection.closed:
        return state is State.ABORTED
    try:
        # The one way with a driver that does not tell, such as pg8000.
        connection.exec_driver_sql("SELECT 1")
    except DBAPIError as error:
        return not error.connection_invalidated
    return False


def watch(engine: Engine) -> None:
    """Note the losses of an engine's connections; none where it is no MySQL."""
    if engine.dialect.name in {"mysql", "mariadb"} and not event.contains(engine, "handle_error", _note):
        event.listen(engine, "handle_error", _note)
        event.listen(engine, "rollback", _forget)


def _note(context: ExceptionContext) -> None:
    connection, number = context.connection, _number(context.original_exception)
    if connection is None:
        return
    # In a savepoint the application may go on after a lock it did not get: if all is lost,
    # rolling back to the savepoint fails.
    if number == _DEADLOCK or (number == _LOCK_WAIT and not connection.in_nested_transaction()):
        lost[connection] = f"error {number}"


def _forget(connection: Connection) -> None:
    lost.pop(connection, None)


def _number(error: Any) -> Any:
    return error.args[0] if error.args else None
