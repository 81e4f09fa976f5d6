"""A connection of SQLAlchemy, as the statements of the outbox see it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, CursorResult
from sqlalchemy.exc import SQLAlchemyError, StatementError

from cqrs_sync.errors import CqrsError

_MARK = re.compile("%([%s])")


class OpenConnection:
    """
    A connection with a transaction open.

    `translate` makes errors of ours, or returns None; `is_open` is what tells of the session that the connection is of.
    """

    is_nested = False

    def __init__(
        self,
        connection: Connection,
        translate: Callable[[SQLAlchemyError], CqrsError | None] | None = None,
        is_open: Callable[[], bool] = lambda: True,
    ) -> None:
        self._connection = connection
        self._translate = translate
        self._is_open = is_open
        self._asks_with_marks = connection.dialect.paramstyle == "qmark"

    def execute(self, statement: str, parameters: Sequence[Any] = (), /) -> Sequence[Sequence[Any]]:
        """Execute a statement and return its rows; none where it returns no rows."""
        result = self._run(statement, parameters)
        return result.fetchall() if result.returns_rows else ()

    def change(self, statement: str, parameters: Sequence[Any] = (), /) -> int:
        """Execute a statement and return how many rows it has changed."""
        return self._run(statement, parameters).rowcount

    def is_open(self) -> bool:
        """Tell whether the transaction is open, as far as the driver knows. Raises TransactionLost."""
        return self._is_open()

    def _run(self, statement: str, parameters: Sequence[Any]) -> CursorResult[Any]:
        if self._asks_with_marks:
            statement = _MARK.sub(lambda found: "?" if found[1] == "s" else "%", statement)
        try:
            return self._connection.exec_driver_sql(statement, tuple(parameters) or None)
        except SQLAlchemyError as error:
            if isinstance(error, StatementError):
                # What is in a message is nobody's business who reads a log.
                error.hide_parameters = True
            translated = self._translate(error) if self._translate is not None else None
            if translated is None:
                raise
            raise translated from error
