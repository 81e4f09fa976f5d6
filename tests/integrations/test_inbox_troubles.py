"""The inbox when its database is unreachable, has no table, or has conflicting transactions."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import scoped_session, sessionmaker

import cqrs_sync as cqrs
from cqrs_sync.integrations.sqlalchemy import ExternalSessions, Sessions, SQLAlchemyInbox, inbox_table
from cqrs_sync.testing.contracts.inbox import Holder
from cqrs_sync.testing.waiting import BOUND
from tests.waiting import eventually


def made(url, **options):
    """An engine with the table of an inbox, and that inbox."""
    engine = sa.create_engine(url, pool_size=20, **options)
    metadata = sa.MetaData()
    table = inbox_table(metadata)
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(table.delete())
    sessions = Sessions(sessionmaker(engine))
    return engine, sessions, SQLAlchemyInbox(sessions)


class Asked:
    """Asks for a key in a thread of its own, and keeps the outcome."""

    def __init__(self, inbox, atomic, key):
        self.told, self.error = None, None
        self._thread = threading.Thread(target=self._run, args=(inbox, atomic, key), daemon=True)
        self._thread.start()

    def _run(self, inbox, atomic, key):
        try:
            if atomic is None:
                with inbox.once(key) as receipt:
                    self.told = receipt.is_first, receipt.result
            else:
                with atomic(), inbox.once(key) as receipt:
                    self.told = receipt.is_first, receipt.result
        except Exception as error:  # noqa: BLE001 -- looked at by the test
            self.error = error

    def answer(self):
        self._thread.join(BOUND)
        assert not self._thread.is_alive()
        return self.told, self.error


def waits_for(engine, statement):
    """Tell whether a statement waits for a lock."""
    with engine.connect() as connection:
        return connection.execute(sa.text(statement)).scalar()


ON_POSTGRESQL = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
ON_MARIADB = (
    "SELECT count(*) FROM information_schema.processlist "
    "WHERE db = DATABASE() AND info LIKE 'INSERT INTO `cqrs_inbox`%'"
)


@pytest.mark.broker
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_the_inbox_starts_again_if_the_snapshot_is_too_old(postgresql_url_of_module, level):
    """
    If it opened the transaction. In the caller's transaction the caller gets the error.
    """
    engine, sessions, inbox = made(postgresql_url_of_module, isolation_level=level)
    holder = Holder(inbox, sessions.begin, "1", b"answer")
    alone, inside = Asked(inbox, None, "1"), Asked(inbox, sessions.begin, "1")
    eventually(lambda: waits_for(engine, ON_POSTGRESQL) == 2)
    holder.end(commits=True)

    assert ((False, b"answer"), None) == alone.answer()
    told, error = inside.answer()
    assert told is None
    assert isinstance(error, OperationalError)
    assert "40001" == error.orig.sqlstate
    engine.dispose()


@pytest.mark.broker
def test_a_result_can_be_read_although_the_snapshot_is_older(mariadb_url_of_module):
    """
    MariaDB would show the caller a table without the row.
    """
    engine, sessions, inbox = made(mariadb_url_of_module, isolation_level="REPEATABLE READ")
    with sessions.begin() as session:
        assert 0 == session.execute(sa.text("SELECT count(*) FROM cqrs_inbox")).scalar()
        Holder(inbox, sessions.begin, "1", b"answer").end(commits=True)
        with inbox.once("1") as receipt:
            assert (False, b"answer") == (receipt.is_first, receipt.result)
    engine.dispose()


@pytest.mark.broker
def test_the_inbox_starts_again_after_a_deadlock(mariadb_url_of_module):
    """
    Two callers that wait for one that rolls back block each other; both succeed all the same.
    """
    engine, sessions, inbox = made(mariadb_url_of_module)
    for round_ in range(20):
        key = str(round_)
        holder = Holder(inbox, sessions.begin, key)
        others = [Asked(inbox, None, key) for _ in range(4)]
        eventually(lambda: waits_for(engine, ON_MARIADB) == 4)
        holder.end(commits=False)
        answers = [each.answer() for each in others]

        assert [None] * 4 == [error for _, error in answers]
        assert [(False, None)] * 3 + [(True, None)] == sorted(told for told, _ in answers)
    engine.dispose()


@pytest.mark.broker
@pytest.mark.parametrize("flag", [0, 2], ids=["changed-rows", "found-rows"])
def test_it_does_not_matter_what_the_driver_counts(mariadb_url_of_module, flag):
    """
    With CLIENT_FOUND_ROWS, which Django sets, an update that changes nothing counts as one row.
    """
    engine, _, inbox = made(mariadb_url_of_module, connect_args={"client_flag": flag})
    told = []
    for _ in range(3):
        with inbox.once("1") as receipt:
            told.append(receipt.is_first)

    assert [True, False, False] == told
    engine.dispose()


def test_the_error_names_a_missing_table_of_the_inbox(tmp_path):
    """
    And says how to make it.
    """
    engine = sa.create_engine(f"sqlite:///{tmp_path}/shop.db")
    sessions = Sessions(sessionmaker(engine))
    inbox = SQLAlchemyInbox(sessions)
    words = r"cqrs_inbox of the inbox is missing.*inbox_table\(metadata\)"
    with pytest.raises(cqrs.InboxNotInstalled, match=words), inbox.once("1"):
        pass
    with sessions.begin(), pytest.raises(cqrs.InboxNotInstalled, match=words), inbox.once("1"):
        pass
    with pytest.raises(cqrs.InboxNotInstalled, match=words):
        inbox.count_attempt("1")
    engine.dispose()


def test_an_unreachable_database_is_a_retryable_error():
    """
    It may come back.
    """
    engine = sa.create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none", connect_args={"connect_timeout": 2})
    inbox = SQLAlchemyInbox(Sessions(sessionmaker(engine)))
    with pytest.raises(cqrs.InboxUnavailable) as caught, inbox.once("1"):
        pass
    assert caught.value.retryable
    with pytest.raises(cqrs.InboxUnavailable):
        inbox.count_attempt("1")


def test_sessions_on_another_database_are_refused(tmp_path):
    """
    The receipt and the effect could not commit together.
    """
    here, there = (sa.create_engine(f"sqlite:///{tmp_path}/{name}.db") for name in ("here", "there"))
    inbox = SQLAlchemyInbox(Sessions(sessionmaker(there), engine=here))
    words = r"sessions are on .*there\.db.*and the inbox is on .*here\.db"
    with pytest.raises(cqrs.NotInTransaction, match=words), inbox.once("1"):
        pass
    here.dispose()
    there.dispose()


def test_the_inbox_begins_a_transaction_in_the_applications_session(tmp_path):
    """
    It commits it at the end of the block.
    """
    metadata = sa.MetaData()
    inbox_table(metadata)
    engine = sa.create_engine(f"sqlite:///{tmp_path}/shop.db")
    metadata.create_all(engine)
    inbox = SQLAlchemyInbox(ExternalSessions(scoped_session(sessionmaker(engine))))
    first = []
    for _ in range(2):
        with inbox.once("1") as receipt:
            first.append(receipt.is_first)
    engine.dispose()

    assert [True, False] == first


def test_a_bad_name_of_a_table_is_refused():
    """
    It would become a part of statements.
    """
    from cqrs_sync.sql import SqlInbox  # noqa: PLC0415 -- beside its use

    with pytest.raises(cqrs.ConfigurationError, match="cannot be the name of a table"):
        SqlInbox(None, table="cqrs; DROP TABLE orders")
