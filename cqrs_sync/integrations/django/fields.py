"""Text columns that every database compares character by character."""

from __future__ import annotations

from typing import Any

from django.db import models


class _Exact:
    """Makes MariaDB and MySQL distinguish `a`, `A` and `ä`, as other databases do, and take any character."""

    def db_parameters(self, connection: Any) -> dict[str, Any]:
        """Return the parameters that Django makes a column from."""
        parameters: dict[str, Any] = super().db_parameters(connection)  # type: ignore[misc]
        if connection.vendor == "mysql":
            parameters["collation"] = "utf8mb4_bin"
        return parameters


class ExactCharField(_Exact, models.CharField):
    """A varchar."""

    def db_type(self, connection: Any) -> str | None:
        """Return the same type by its long name: for a `varchar` key Django would add a second index."""
        kind: str | None = super().db_type(connection)
        if kind is not None and connection.vendor == "postgresql":
            kind = kind.replace("varchar", "character varying")
        return kind


class ExactTextField(_Exact, models.TextField):
    """A text of any length."""
