"""The databases on which SQLAlchemy's stores must keep their promises, and sessions of applications."""

from __future__ import annotations

from contextlib import contextmanager, suppress

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from cqrs_sync.integrations.sqlalchemy import begin_immediate


class OnServer:
    @pytest.fixture
    def engine(self, url):
        engine = sa.create_engine(url, pool_size=20)
        yield engine
        engine.dispose()


class OnPostgreSQL(OnServer):
    @pytest.fixture
    def url(self, postgresql_url_of_module):
        return postgresql_url_of_module

    @pytest.fixture
    def cut_connections(self, url):
        """Ends every other connection to the database."""
        return lambda: _execute(
            url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )


class OnMariaDB(OnServer):
    @pytest.fixture
    def url(self, mariadb_url_of_module):
        return mariadb_url_of_module

    @pytest.fixture
    def cut_connections(self, url):
        """Ends every other connection to the database."""

        def cut():
            others = "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"
            for (number,) in _execute(url, others):
                _execute(url, f"KILL {number}")

        return cut


class OnSQLite:
    @pytest.fixture
    def engine(self, tmp_path):
        engine = begin_immediate(sqlite_engine(tmp_path))
        yield engine
        engine.dispose()


class OnSQLiteByDefault:
    """The driver begins a transaction with the first write, and none for a savepoint."""

    @pytest.fixture
    def engine(self, tmp_path):
        engine = sqlite_engine(tmp_path)
        yield engine
        engine.dispose()


class ApplicationSessions:
    """With sessions of the application's own."""

    @pytest.fixture
    def registry(self, engine):
        registry = scoped_session(sessionmaker(engine))
        yield registry
        registry.remove()

    @pytest.fixture
    def atomic(self, registry):
        return lambda: transaction_of(registry)


@contextmanager
def transaction_of(registry: scoped_session[Session]):
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


class Effects:
    """A table that a test writes to in the session that `session` returns, and what code can do to that session."""

    def __init__(self, session):
        self.metadata = sa.MetaData()
        number = sa.Column("number", sa.Integer, primary_key=True, autoincrement=True)
        self.table = sa.Table("effects", self.metadata, number, sa.Column("text", sa.String(50), unique=True))
        self._session = session

    def write(self, text):
        self._session().execute(self.table.insert().values(text=text))

    def catch(self):
        """A handler as users write it: insert, and ignore the error if the row exists already."""
        with suppress(IntegrityError):
            self._session().execute(self.table.insert().values([{"text": "twice"}, {"text": "twice"}]))

    def catch_of_a_flush(self):
        """The same with the unit of work, which rolls back the transaction by itself."""
        number = self._session().scalar(sa.select(sa.func.max(self.table.c.number)))
        effect = orm.registry().map_imperatively(type("Effect", (), {}), self.table).class_()
        effect.number, effect.text = number, "twice"
        self._session().add(effect)
        with suppress(IntegrityError):
            self._session().flush()

    def catch_in_a_savepoint(self):
        with suppress(IntegrityError), self._session().begin_nested():
            self._session().execute(self.table.insert().values([{"text": "twice"}, {"text": "twice"}]))

    def careless(self):
        return {
            "a caught error": self.catch,
            "a caught error in a savepoint": self.catch_in_a_savepoint,
            "a caught error of a flush": self.catch_of_a_flush,
            "session.rollback()": lambda: self._session().rollback(),
            "session.close()": lambda: self._session().close(),
            "session.commit()": lambda: self._session().commit(),
        }

    def by_statement(self):
        return {
            "ROLLBACK": lambda: self._session().execute(sa.text("ROLLBACK")),
            "COMMIT": lambda: self._session().execute(sa.text("COMMIT")),
        }

    def written(self, engine):
        with engine.connect() as connection:
            return list(connection.scalars(sa.select(self.table.c.text).order_by(self.table.c.number)))


def sqlite_engine(folder):
    return sa.create_engine(f"sqlite:///{folder}/shop.db", connect_args={"timeout": 30})


def _execute(url, statement):
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        result = connection.exec_driver_sql(statement)
        return result.fetchall() if result.returns_rows else []
