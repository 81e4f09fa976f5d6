"""Databases of SQL servers for tests: each test session makes one of its own, and drops it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.servers import answers, missing

if TYPE_CHECKING:
    from sqlalchemy import URL


@contextmanager
def own_database(server: str, variable: str, default: str, how: str) -> Iterator[str]:
    """
    Make a database on the server that an environment variable names, else on the default one; yield its URL.

    Drop it afterwards, even if something is still connected.
    """
    # pytest loads this module even if no test needs a database.
    import sqlalchemy as sa  # noqa: PLC0415

    url = sa.make_url(os.environ.get(variable) or default)
    if not answers(url.host or "127.0.0.1", url.port or 0):
        missing(server, how)
    name = f"cqrs_test_{uuid.uuid4().hex[:12]}"
    _execute(url, f"CREATE DATABASE {name}")
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        _execute(url, f"DROP DATABASE {name}" + (" WITH (FORCE)" if url.get_backend_name() == "postgresql" else ""))


def _execute(url: URL, statement: str) -> None:
    import sqlalchemy as sa  # noqa: PLC0415 -- as above

    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)
