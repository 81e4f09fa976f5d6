"""PostgreSQL for tests: databases that are made for them, and dropped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from tests.servers.databases import own_database

_HOW = "set CQRS_TEST_POSTGRESQL_URL, or start one on 127.0.0.1:5432 that lets the user postgres in without a password"


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """The URL of a database of this run, as SQLAlchemy writes it."""
    with _database() as url:
        yield url


@pytest.fixture(scope="module")
def postgresql_url_of_module() -> Iterator[str]:
    """The URL of a database that no other module uses: its tables may be dropped, its connections cut."""
    with _database() as url:
        yield url


def _database() -> AbstractContextManager[str]:
    default = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
    return own_database("PostgreSQL", "CQRS_TEST_POSTGRESQL_URL", default, _HOW)
