"""The two tables of the outbox, and transactions in which the library works on them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.sql.database import Connection, Database
from cqrs_sync.sql.statements import Statements

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}(\.[A-Za-z_][A-Za-z0-9_]{0,62})?")


class Tables:
    """The tables, by their names, with the schema where there is one."""

    def __init__(self, database: Database, messages: str, deliveries: str) -> None:
        check_table(messages)
        check_table(deliveries)
        self._database = database
        self._names = messages, deliveries
        self._known: Statements | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._names)})"

    @property
    def _say(self) -> Statements:
        # Made late: naming the dialect may need settings that are there only then.
        if self._known is None:
            self._known = Statements(self._database.dialect, *self._names)
        return self._known

    @contextmanager
    def _begun(self, *, durable: bool = False) -> Iterator[Connection]:
        """Open a transaction that claims, settles or deletes."""
        with self._database.begun(durable=durable) as connection:
            if not connection.is_nested:
                connection.execute(self._say.begin)
            yield connection


def check_table(name: str) -> None:
    """Raise ConfigurationError for what cannot stand in a statement as the name of a table."""
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"{name!r} cannot be the name of a table: use letters, digits and _")
