"""SQLAlchemyInbox keeps the promises of its socket on each database."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import scoped_session, sessionmaker

from cqrs_sync.integrations.sqlalchemy import Sessions, SQLAlchemyInbox, begin_immediate, inbox_table
from cqrs_sync.testing.inbox_contract import InboxContract, InboxFeatures


class SQLAlchemyContract(InboxContract):
    """With sessions of ours."""

    @pytest.fixture
    def engine(self, url):
        engine = sa.create_engine(url, pool_size=20)
        yield engine
        engine.dispose()

    @pytest.fixture
    def effects(self, engine):
        """The tables, with nothing in them; returns that of effects."""
        metadata = sa.MetaData()
        table = inbox_table(metadata)
        effects = sa.Table(
            "effects",
            metadata,
            sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
            sa.Column("text", sa.String(255)),
        )
        metadata.create_all(engine)
        yield effects
        with engine.begin() as connection:
            connection.execute(table.delete())
            connection.execute(effects.delete())

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
    def write(self, sessions, effects):
        return lambda text: sessions.current().execute(effects.insert().values(text=text))

    @pytest.fixture
    def written(self, engine, effects):
        def read():
            with engine.connect() as connection:
                return list(connection.scalars(sa.select(effects.c.text).order_by(effects.c.number)))

        return read


class OthersSessions:
    """With sessions of the application's own."""

    @pytest.fixture
    def registry(self, engine):
        registry = scoped_session(sessionmaker(engine))
        yield registry
        registry.remove()

    @pytest.fixture
    def inbox(self, engine, effects, registry):
        return SQLAlchemyInbox(engine, session=registry)

    @pytest.fixture
    def write(self, registry, effects):
        return lambda text: registry().execute(effects.insert().values(text=text))

    @pytest.fixture
    def atomic(self, registry):
        @contextmanager
        def transaction():
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

        return transaction


class OnPostgreSQL(SQLAlchemyContract):
    @pytest.fixture
    def url(self, postgresql_url_of_module):
        return postgresql_url_of_module


class OnMariaDB(SQLAlchemyContract):
    @pytest.fixture
    def url(self, mariadb_url_of_module):
        return mariadb_url_of_module


class OnSQLite(SQLAlchemyContract):
    features = InboxFeatures(has_concurrent_writers=False)

    @pytest.fixture
    def engine(self, tmp_path):
        engine = begin_immediate(sa.create_engine(f"sqlite:///{tmp_path}/shop.db", connect_args={"timeout": 30}))
        yield engine
        engine.dispose()


@pytest.mark.broker
class TestOnPostgreSQL(OnPostgreSQL):
    pass


@pytest.mark.broker
class TestOnPostgreSQLWithOthersSessions(OthersSessions, OnPostgreSQL):
    features = InboxFeatures(opens=False)


@pytest.mark.broker
class TestOnMariaDB(OnMariaDB):
    pass


@pytest.mark.broker
class TestOnMariaDBReadCommitted(OnMariaDB):
    @pytest.fixture
    def engine(self, url):
        engine = sa.create_engine(url, pool_size=20, isolation_level="READ COMMITTED")
        yield engine
        engine.dispose()


class TestOnSQLite(OnSQLite):
    pass


class TestOnSQLiteAsItComes(OnSQLite):
    """The driver begins a transaction with the first write, and none for a savepoint."""

    features = InboxFeatures(has_concurrent_writers=False, has_savepoints=False)

    @pytest.fixture
    def engine(self, tmp_path):
        engine = sa.create_engine(f"sqlite:///{tmp_path}/shop.db", connect_args={"timeout": 30})
        yield engine
        engine.dispose()


class TestOnSQLiteWithOthersSessions(OthersSessions, OnSQLite):
    features = InboxFeatures(has_concurrent_writers=False, opens=False)
