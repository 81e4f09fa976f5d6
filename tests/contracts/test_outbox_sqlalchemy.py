"""SQLAlchemyOutbox keeps the promises of its socket, and sessions those of transactions, on each database."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import scoped_session, sessionmaker

from cqrs_sync.integrations.sqlalchemy import Sessions, SessionTransactions, SQLAlchemyOutbox, begin_immediate, tables
from cqrs_sync.testing.outbox_contract import OutboxContract, OutboxFeatures
from cqrs_sync.testing.transactions_contract import OpenTransactionsContract


class WithEngine:
    @pytest.fixture
    def engine(self, url):
        engine = sa.create_engine(url, pool_size=20)
        yield engine
        engine.dispose()


class SQLAlchemyContract(WithEngine, OutboxContract):
    """With sessions of ours."""

    @pytest.fixture
    def created(self, engine):
        """The tables, with nothing in them."""
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
        return SQLAlchemyOutbox(sessions, strict=False)

    @pytest.fixture
    def atomic(self, sessions):
        return sessions.begin


class OthersSessions:
    """With sessions of the application's own."""

    @pytest.fixture
    def registry(self, engine):
        registry = scoped_session(sessionmaker(engine))
        yield registry
        registry.remove()

    @pytest.fixture
    def outbox(self, engine, created, registry):
        return SQLAlchemyOutbox(engine, session=lambda: registry)

    @pytest.fixture
    def lenient_outbox(self, engine, created, registry):
        return SQLAlchemyOutbox(engine, session=registry, strict=False)

    @pytest.fixture
    def atomic(self, registry):
        return lambda: transaction_of(registry)


@contextmanager
def transaction_of(registry):
    """Commit and roll back as an application does by hand."""
    session = registry()
    if session.in_transaction():
        with session.begin_nested():
            yield
        return
    try:
        session.connection()
        yield
        session.commit()
    finally:
        registry.remove()


class OnPostgreSQL:
    @pytest.fixture
    def url(self, postgresql_url_of_module):
        return postgresql_url_of_module

    @pytest.fixture
    def cut_connections(self, url):
        """Ends every other connection to the database."""
        return lambda: _say(
            url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )


class OnMariaDB:
    @pytest.fixture
    def url(self, mariadb_url_of_module):
        return mariadb_url_of_module

    @pytest.fixture
    def cut_connections(self, url):
        """Ends every other connection to the database."""

        def cut():
            others = "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"
            for (number,) in _say(url, others):
                _say(url, f"KILL {number}")

        return cut


class OnSQLite:
    features = OutboxFeatures(has_concurrent_writers=False)

    @pytest.fixture
    def engine(self, tmp_path):
        engine = begin_immediate(sa.create_engine(f"sqlite:///{tmp_path}/shop.db", connect_args={"timeout": 30}))
        yield engine
        engine.dispose()


def _say(url, statement):
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        result = connection.exec_driver_sql(statement)
        return result.fetchall() if result.returns_rows else []


@pytest.mark.broker
class TestOnPostgreSQL(OnPostgreSQL, SQLAlchemyContract):
    pass


@pytest.mark.broker
class TestOnPostgreSQLWithOthersSessions(OnPostgreSQL, OthersSessions, SQLAlchemyContract):
    pass


@pytest.mark.broker
class TestOnMariaDB(OnMariaDB, SQLAlchemyContract):
    pass


class TestOnSQLite(OnSQLite, SQLAlchemyContract):
    pass


class TestOnSQLiteAsItComes(OnSQLite, SQLAlchemyContract):
    """The driver begins a transaction with the first write, and none for a savepoint."""

    features = OutboxFeatures(has_concurrent_writers=False, has_savepoints=False)

    @pytest.fixture
    def engine(self, tmp_path):
        engine = sa.create_engine(f"sqlite:///{tmp_path}/shop.db", connect_args={"timeout": 30})
        yield engine
        engine.dispose()


class TestOnSQLiteWithOthersSessions(OnSQLite, OthersSessions, SQLAlchemyContract):
    pass


# Transactions


class SessionsContract(WithEngine, OpenTransactionsContract):
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
    """What the outbox brings along for the mediator."""

    @pytest.fixture
    def sessions(self, engine):
        return Sessions(sessionmaker(engine))

    @pytest.fixture
    def transactions(self, sessions):
        return SQLAlchemyOutbox(sessions).transactions

    @pytest.fixture
    def atomic(self, sessions):
        return sessions.begin


class TestSessionTransactions(OnSQLite, OthersSessions, OpenTransactionsContract):
    @pytest.fixture
    def transactions(self, registry):
        return SessionTransactions(registry)


class TestSessionTransactionsOfBlocks(TestSessionTransactions):
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
