"""Columns of text that are compared character by character on each database."""

from __future__ import annotations

from typing import Any

from django.db import models


class _Exact:
    """Lets MariaDB and MySQL tell `a` from `A` and `ä`, as the other databases do, and take any character."""

    def db_parameters(self, connection: Any) -> dict[str, Any]:
        """Return what Django makes a column of."""
        parameters: dict[str, Any] = super().db_parameters(connection)  # type: ignore[misc]
        if connection.vendor == "mysql":
            parameters["collation"] = "utf8mb4_bin"
        return parameters


class ExactCharField(_Exact, models.CharField):
    """A varchar."""

    def db_type(self, connection: Any) -> str | None:
        """Return the same type by its long name: for a `varchar` that is a key, Django would add a second index."""
        kind: str | None = super().db_type(connection)
        if kind is not None and connection.vendor == "postgresql":
            kind = kind.replace("varchar", "character varying")
        return kind


class ExactTextField(_Exact, models.TextField):
    """A text of any length."""
