"""The outbox and the transactions that Django has open: joined, left alone, or refused."""

from __future__ import annotations

import copy
import threading
import unittest
from contextlib import contextmanager

import pytest

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.outbox import DeadLetterSelection, OutboxEntry, Outcome, OutcomeKind
from cqrs_sync.sql.database import OUTBOX
from cqrs_sync.sql.outbox import OutboxStatements
from cqrs_sync.testing.contracts.broker import message
from tests.waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.usefixtures("django_emptied")]

ALIASES = ["postgresql", "mariadb", "sqlite"]


def outbox_on(alias, **options):
    from cqrs_sync.integrations.django import DjangoOutbox  # noqa: PLC0415 -- needs settings

    return DjangoOutbox(alias, **options)


def keep(outbox, *bodies):
    from django.db import transaction  # noqa: PLC0415 -- as above

    with transaction.atomic(using=outbox.using):
        outbox.add([OutboxEntry(message("orders", body.encode()), publish=True) for body in bodies])


def settle_as_dead(outbox):
    """Settle all that waits as dead."""
    outbox.settle([Outcome.failed(each, "no queue", after=None) for each in outbox.claim(100, 60)])


@contextmanager
def settings_changed(alias, **changes):
    """Connect with other settings."""
    from django.db import connections  # noqa: PLC0415 -- as above

    wrapper = connections[alias]
    wrapper.close()
    known = wrapper.settings_dict
    wrapper.settings_dict = {**copy.deepcopy(known), **changes}
    wrapper.__dict__.pop("isolation_level", None)
    try:
        yield
    finally:
        wrapper.close()
        wrapper.settings_dict = known
        wrapper.__dict__.pop("isolation_level", None)


def said(alias, *statements):
    from django.db import connections  # noqa: PLC0415 -- as above

    answers = []
    with connections[alias].cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
            answers.append(cursor.fetchone()[0])
    return answers


# Inside `atomic`


@pytest.mark.parametrize("alias", ALIASES)
def test_operators_work_inside_the_transaction_of_a_request(alias):
    """
    Their changes are rolled back with it.
    """
    from django.db import transaction  # noqa: PLC0415 -- as above

    outbox = outbox_on(alias)
    keep(outbox, "a", "b", "c")
    settle_as_dead(outbox)
    first, second, _ = (each.number for each in outbox.dead_letters(DeadLetterSelection()))
    with transaction.atomic(using=alias):
        said(alias, "SELECT COUNT(*) FROM cqrs_message")
        assert 1 == outbox.replay(DeadLetterSelection(numbers=(first,)))
        assert 1 == outbox.discard(DeadLetterSelection(numbers=(second,)))
        assert 1 == outbox.purge(0)
        assert (1, 1) == (outbox.backlog().waiting, outbox.backlog().dead)
        transaction.set_rollback(True, using=alias)

    assert (0, 3) == (outbox.backlog().waiting, outbox.backlog().dead)


@pytest.mark.parametrize("alias", ALIASES)
def test_nothing_is_claimed_or_settled_in_a_transaction_that_may_be_rolled_back(alias):
    """
    A rollback would forget that it was delivered.
    """
    from django.db import transaction  # noqa: PLC0415 -- as above

    outbox = outbox_on(alias)
    keep(outbox, "a")
    claimed = outbox.claim(1, 60)
    done = [Outcome(each, OutcomeKind.DONE) for each in claimed]
    for action in (
        lambda: outbox.claim(1, 60),
        lambda: outbox.settle(done),
        lambda: outbox.renew([claimed[0].token], 60),
    ):
        with transaction.atomic(using=alias), pytest.raises(ConfigurationError, match=rf"inside `atomic` on '{alias}'"):
            action()

    assert 1 == outbox.settle(done)


@pytest.mark.parametrize("alias", ALIASES)
def test_a_test_case_claims_what_it_has_kept(alias):
    """
    A TestCase has one transaction, which is rolled back at its end.
    """
    from django.db import transaction  # noqa: PLC0415 -- as above
    from django.test import TestCase  # noqa: PLC0415 -- as above

    outbox = outbox_on(alias)
    seen = []

    class Case(TestCase):
        databases = frozenset({alias})

        def test_it(self):
            keep(outbox, "a", "b")
            first, second = outbox.claim(10, 60)
            assert 1 == outbox.settle([Outcome(first, OutcomeKind.DONE)])
            assert 1 == outbox.settle([Outcome.failed(second, "x", after=None)])
            assert 1 == outbox.replay(DeadLetterSelection())
            seen.extend(each.message.body for each in outbox.claim(10, 60))
            with transaction.atomic(using=alias), pytest.raises(ConfigurationError):
                outbox.claim(10, 60)

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)

    assert [] == [trace for _, trace in result.errors + result.failures]
    assert [b"b"] == seen
    assert 0 == outbox.backlog().waiting


@pytest.mark.parametrize("alias", ALIASES)
def test_a_failure_after_the_commit_is_logged_and_harms_nothing_else(alias, caplog):
    """
    The code that committed does not see it, and other callbacks run.
    """
    from django.db import transaction  # noqa: PLC0415 -- as above

    from cqrs_sync.integrations.django import DjangoTransactions  # noqa: PLC0415 -- as above

    called = []
    with transaction.atomic(using=alias):
        DjangoTransactions(alias).on_commit(lambda: called.append(1 / 0))
        transaction.on_commit(lambda: called.append("theirs"), using=alias)

    assert ["theirs"] == called
    assert "division by zero" in caplog.text


# Settings of databases


@pytest.mark.parametrize("alias", ALIASES)
def test_a_database_without_autocommit_is_refused(alias):
    """
    The error says what to change. No claim would be committed there, and everything would be delivered again and again.
    """
    outbox = outbox_on(alias)
    keep(outbox, "a")
    with settings_changed(alias, AUTOCOMMIT=False):
        for action in (lambda: outbox.claim(1, 60), lambda: outbox.next_due(()), outbox.backlog):
            with pytest.raises(ConfigurationError, match=rf'DATABASES\[\'{alias}\'\]\["AUTOCOMMIT"\]'):
                action()

    assert ["a"] == [each.message.body.decode() for each in outbox.claim(1, 60)]


@pytest.mark.parametrize("alias", ["postgresql", "mariadb"])
@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_claims_see_each_commit_whatever_isolation_level_the_application_has(alias, level):
    """
    Each statement sees what was committed after the library's transaction began.
    """
    import psycopg  # noqa: PLC0415 -- here only

    from cqrs_sync.integrations.django.database import DjangoDatabase  # noqa: PLC0415 -- needs settings

    known = getattr(psycopg.IsolationLevel, level.upper().replace(" ", "_"))
    options = {"isolation_level": level if alias == "mariadb" else known}
    outbox = outbox_on(alias)
    count = "SELECT COUNT(*) FROM cqrs_message"
    with settings_changed(alias, OPTIONS=options):
        keep(outbox, "a")
        database = DjangoDatabase(alias, OUTBOX)
        with database.transaction(durable=True) as connection:
            connection.execute(OutboxStatements(database.dialect, "cqrs_message", "cqrs_delivery").begin)
            assert [1] == [int(row[0]) for row in connection.execute(count)]
            writer = threading.Thread(target=lambda: (keep(outbox, "b"), outbox.release_connection()))
            writer.start()
            writer.join(20)
            assert [2] == [int(row[0]) for row in connection.execute(count)]
        assert 2 == len(outbox.claim(10, 60))


@pytest.mark.parametrize("alias", ALIASES)
def test_routers_have_no_effect_on_the_outbox(alias):
    """
    It writes to the database it was given, wherever routers send models.
    """
    from django.test import override_settings  # noqa: PLC0415 -- as above

    class Elsewhere:
        def db_for_read(self, *_, **__):
            return "default"

        db_for_write = db_for_read

    outbox = outbox_on(alias)
    with override_settings(DATABASE_ROUTERS=[Elsewhere()]):
        keep(outbox, "a")
        assert 1 == len(outbox.claim(10, 60))


@pytest.mark.parametrize("alias", ALIASES)
def test_errors_in_any_language_can_be_stored(alias):
    """
    Also on connections without utf8mb4, which is Django's default for MariaDB before 5.2.
    """
    outbox = outbox_on(alias)
    with settings_changed(alias, **({"OPTIONS": {"charset": "utf8"}} if alias == "mariadb" else {})):
        keep(outbox, "a")
        outbox.settle([Outcome.failed(each, "no, \U0001f642", after=None) for each in outbox.claim(1, 60)])
        (dead,) = outbox.dead_letters(DeadLetterSelection())

    assert "no, \U0001f642" == dead.error


# Errors while the outbox writes


@contextmanager
def competing(alias, first, then=()):
    """Another transaction that has written the first, writes the others when told to, and ends with the block."""
    from django.db import connections, transaction  # noqa: PLC0415 -- as above

    ready, over = threading.Event(), threading.Event()
    outbox = outbox_on(alias)

    def write():
        with transaction.atomic(using=alias):
            outbox.add(first)
            ready.set()
            over.wait(20)
            if then:
                outbox.add(then)
        connections[alias].close()

    thread = threading.Thread(target=write)
    thread.start()
    assert ready.wait(20)
    try:
        yield over
    finally:
        over.set()
        thread.join(20)


def test_a_lock_wait_timeout_commits_nothing():
    """
    MariaDB rolls back one statement (1205) and would commit the rest; the caught error prevents that.
    """
    from django.db import OperationalError, connections, transaction  # noqa: PLC0415 -- as above

    outbox, same = outbox_on("mariadb"), OutboxEntry(message("orders"), publish=True)
    with competing("mariadb", [same]), transaction.atomic(using="mariadb"):
        with connections["mariadb"].cursor() as cursor:
            cursor.execute("SET SESSION innodb_lock_wait_timeout = 1")
        outbox.add([OutboxEntry(message("orders", b"before"), publish=True)])
        with pytest.raises(OperationalError, match="1205"):
            outbox.add([same])
        assert connections["mariadb"].needs_rollback
    connections["mariadb"].close()

    assert [same.message.id] == [each.message.id for each in outbox.claim(10, 60)]


def test_a_deadlock_commits_nothing():
    """
    MariaDB has rolled back all of it (1213), and would commit only what came after the caught error.
    """
    from django.db import OperationalError, connections, transaction  # noqa: PLC0415 -- as above

    outbox = outbox_on("mariadb")
    ours, *theirs = (OutboxEntry(message("orders"), publish=True) for _ in range(5))
    waiting = "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
    # MariaDB rolls back the transaction that has written less.
    with competing("mariadb", theirs, then=[ours]) as go, transaction.atomic(using="mariadb"):
        outbox.add([ours])
        go.set()
        eventually(lambda: asked_on_another_connection("mariadb", waiting))
        with pytest.raises(OperationalError, match="1213"):
            outbox.add([theirs[0]])
        assert connections["mariadb"].needs_rollback
    connections["mariadb"].close()

    assert {entry.message.id for entry in (ours, *theirs)} == {each.message.id for each in outbox.claim(10, 60)}


def asked_on_another_connection(alias, question):
    """Ask on another connection."""
    from django.db import connections  # noqa: PLC0415 -- as above

    wrapper = connections.create_connection(alias)
    try:
        with wrapper.cursor() as cursor:
            cursor.execute(question)
            return cursor.fetchone()[0]
    finally:
        wrapper.close()


@pytest.mark.parametrize("alias", ALIASES)
def test_any_error_while_writing_to_the_outbox_commits_nothing(alias, monkeypatch):
    """
    Even an error that is not the database's.
    """
    from django.db import connections, transaction  # noqa: PLC0415 -- as above

    class Stopped(BaseException):
        """As a signal raises it."""

    def fails(*_, **__):
        raise Stopped

    outbox = outbox_on(alias)
    with transaction.atomic(using=alias):
        outbox.add([OutboxEntry(message("orders"), publish=True)])
        with monkeypatch.context() as patched:
            patched.setattr(connections[alias], "cursor", fails)
            with pytest.raises(Stopped):
                outbox.add([OutboxEntry(message("orders"), publish=True)])
        assert connections[alias].needs_rollback

    assert 0 == outbox.backlog().waiting
