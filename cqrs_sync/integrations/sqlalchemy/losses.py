"""
Transactions that MySQL has rolled back behind the application's back.

After a deadlock (1213), all that came before in the transaction is gone, and what comes after
is in a new one: an application that catches the error would commit half of what it did. After
a lock that was waited for in vain (1205) the server may have done the same.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext

_DEADLOCK, _LOCK_WAIT = 1213, 1205

#: Why a connection must not commit what is open on it.
lost: WeakKeyDictionary[Connection, str] = WeakKeyDictionary()


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
