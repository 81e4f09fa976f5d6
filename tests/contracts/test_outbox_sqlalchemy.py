"""SQLAlchemyOutbox keeps the promises of its socket, and sessions those of transactions, on each database."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import sessionmaker

import cqrs_sync as cqrs
from cqrs_sync.integrations.sqlalchemy import ExternalSessions, Sessions, SQLAlchemyOutbox, tables
from cqrs_sync.testing.contracts.outbox import OutboxContract, OutboxFeatures
from cqrs_sync.testing.contracts.transactions import OpenTransactionsContract
from tests.contracts.databases import ApplicationSessions, Effects, OnMariaDB, OnPostgreSQL, OnSQLite, OnSQLiteByDefault


class SQLAlchemyContract(OutboxContract):
    """With the library's sessions."""

    @pytest.fixture
    def created(self, engine):
        """The tables, empty."""
        metadata = sa.MetaData()
        created = tables(metadata)
        metadata.create_all(engine)
        yield created
        with engine.begin() as connection:
            connection.execute(created.messages.delete())
            connection.execute(created.deliveries.delete())

    @pytest.fixture
    def sessions(self, engine):
        return Sessions(sessionmaker(engine))

    @pytest.fixture
    def outbox(self, sessions, created):
        return SQLAlchemyOutbox(sessions, tables=created)

    @pytest.fixture
    def lenient_outbox(self, sessions, created):
        return SQLAlchemyOutbox(sessions, on_no_transaction=cqrs.OnNoTransaction.OPEN)

    @pytest.fixture
    def atomic(self, sessions):
        return sessions.begin


class WithApplicationSessions(ApplicationSessions, SQLAlchemyContract):
    @pytest.fixture
    def outbox(self, engine, created, registry):
        return SQLAlchemyOutbox(ExternalSessions(lambda: registry, engine=engine))

    @pytest.fixture
    def lenient_outbox(self, engine, created, registry):
        return SQLAlchemyOutbox(ExternalSessions(registry), on_no_transaction=cqrs.OnNoTransaction.OPEN)


@pytest.mark.broker
class TestOnPostgreSQL(OnPostgreSQL, SQLAlchemyContract):
    pass


@pytest.mark.broker
class TestOnPostgreSQLWithApplicationSessions(OnPostgreSQL, WithApplicationSessions):
    pass


@pytest.mark.broker
class TestOnMariaDB(OnMariaDB, SQLAlchemyContract):
    pass


class TestOnSQLite(OnSQLite, SQLAlchemyContract):
    features = OutboxFeatures(has_concurrent_writers=False)


class TestOnSQLiteByDefault(OnSQLiteByDefault, SQLAlchemyContract):
    features = OutboxFeatures(has_concurrent_writers=False, has_savepoints=False)


class TestOnSQLiteWithApplicationSessions(OnSQLite, WithApplicationSessions):
    features = OutboxFeatures(has_concurrent_writers=False)


# Transactions


class WithEffects(OpenTransactionsContract):
    """With a table to write to."""

    @pytest.fixture
    def effects(self, engine, session):
        effects = Effects(session)
        effects.metadata.create_all(engine)
        yield effects
        effects.metadata.drop_all(engine)

    @pytest.fixture
    def write(self, effects):
        return effects.write

    @pytest.fixture
    def written(self, engine, effects):
        return lambda: effects.written(engine)

    @pytest.fixture
    def careless(self, effects):
        return effects.careless()


class SessionsContract(WithEffects):
    @pytest.fixture
    def session(self, transactions):
        return transactions.current

    @pytest.fixture
    def transactions(self, engine):
        return Sessions(sessionmaker(engine))

    @pytest.fixture
    def atomic(self, transactions):
        return transactions.begin


class TestSessions(OnSQLite, SessionsContract):
    pass


@pytest.mark.broker
class TestSessionsOnPostgreSQL(OnPostgreSQL, SessionsContract):
    pass


@pytest.mark.broker
class TestSessionsOnMariaDB(OnMariaDB, SessionsContract):
    pass


class TestTransactionsOfTheOutbox(OnSQLite, SessionsContract):
    """The transactions that the mediator takes from the outbox."""

    @pytest.fixture
    def sessions(self, engine):
        return Sessions(sessionmaker(engine))

    @pytest.fixture
    def session(self, sessions):
        return sessions.current

    @pytest.fixture
    def transactions(self, sessions):
        return SQLAlchemyOutbox(sessions).transactions

    @pytest.fixture
    def atomic(self, sessions):
        return sessions.begin


class ApplicationSessionsContract(ApplicationSessions, WithEffects):
    @pytest.fixture
    def session(self, registry):
        return registry

    @pytest.fixture
    def transactions(self, registry):
        return ExternalSessions(registry)


class TestExternalSessions(OnSQLite, ApplicationSessionsContract):
    pass


@pytest.mark.broker
class TestExternalSessionsOnPostgreSQL(OnPostgreSQL, ApplicationSessionsContract):
    pass


class TestExternalSessionsOfBlocks(TestExternalSessions):
    """The blocks of SQLAlchemy itself."""

    @pytest.fixture
    def atomic(self, registry):
        @contextmanager
        def block():
            session = registry()
            with session.begin_nested() if session.in_transaction() else session.begin():
                session.connection()
                yield

        return block
