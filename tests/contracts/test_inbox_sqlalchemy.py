"""SQLAlchemyInbox keeps the promises of its socket on each database."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import sessionmaker

from cqrs_sync.integrations.sqlalchemy import ExternalSessions, Sessions, SQLAlchemyInbox, inbox_table
from cqrs_sync.testing.contracts.inbox import InboxContract, InboxFeatures
from tests.contracts.databases import ApplicationSessions, Effects, OnMariaDB, OnPostgreSQL, OnSQLite, OnSQLiteByDefault


class SQLAlchemyContract(InboxContract):
    """With the library's sessions."""

    @pytest.fixture
    def session(self, sessions):
        """Return the open session."""
        return sessions.current

    @pytest.fixture
    def effects(self, engine, session):
        """The tables, empty; returns the table of effects."""
        effects = Effects(session)
        table = inbox_table(effects.metadata)
        effects.metadata.create_all(engine)
        yield effects
        with engine.begin() as connection:
            connection.execute(table.delete())
            connection.execute(effects.table.delete())

    @pytest.fixture
    def sessions(self, engine):
        return Sessions(sessionmaker(engine))

    @pytest.fixture
    def inbox(self, sessions, effects):
        return SQLAlchemyInbox(sessions)

    @pytest.fixture
    def atomic(self, sessions):
        return sessions.begin

    @pytest.fixture
    def write(self, effects):
        return effects.write

    @pytest.fixture
    def written(self, engine, effects):
        return lambda: effects.written(engine)

    @pytest.fixture
    def careless(self, effects):
        return effects.careless() | effects.by_statement()


class WithApplicationSessions(ApplicationSessions, SQLAlchemyContract):
    @pytest.fixture
    def session(self, registry):
        return registry

    @pytest.fixture
    def inbox(self, engine, effects, registry):
        return SQLAlchemyInbox(ExternalSessions(registry, engine=engine))


@pytest.mark.broker
class TestOnPostgreSQL(OnPostgreSQL, SQLAlchemyContract):
    pass


@pytest.mark.broker
class TestOnPostgreSQLWithApplicationSessions(OnPostgreSQL, WithApplicationSessions):
    pass


@pytest.mark.broker
class TestOnMariaDB(OnMariaDB, SQLAlchemyContract):
    pass


@pytest.mark.broker
class TestOnMariaDBReadCommitted(OnMariaDB, SQLAlchemyContract):
    @pytest.fixture
    def engine(self, url):
        engine = sa.create_engine(url, pool_size=20, isolation_level="READ COMMITTED")
        yield engine
        engine.dispose()


class TestOnSQLite(OnSQLite, SQLAlchemyContract):
    features = InboxFeatures(has_concurrent_writers=False)


class TestOnSQLiteByDefault(OnSQLiteByDefault, SQLAlchemyContract):
    features = InboxFeatures(has_concurrent_writers=False, has_savepoints=False)


class TestOnSQLiteWithApplicationSessions(OnSQLite, WithApplicationSessions):
    features = InboxFeatures(has_concurrent_writers=False)
