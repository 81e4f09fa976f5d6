"""DjangoOutbox keeps the promises of its socket, and Django's transactions those of theirs, on each database."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

import cqrs_sync as cqrs
from cqrs_sync.outbox import DeadLetterSelection
from cqrs_sync.testing.contracts.outbox import OutboxContract, OutboxFeatures, claim, dead, kept, published
from cqrs_sync.testing.contracts.transactions import OpenTransactionsContract
from tests.contracts.effects_django import careless, create, drop, insert, texts

pytestmark = [pytest.mark.broker, pytest.mark.usefixtures("django_databases")]


class DjangoContract(OutboxContract):
    alias = ""

    @pytest.fixture
    def outbox(self, django_databases):
        from cqrs_sync.integrations.django import DjangoOutbox  # noqa: PLC0415 -- needs settings

        outbox = DjangoOutbox(using=self.alias)
        yield outbox
        # A test may have cut the connection.
        outbox.release_connection()
        self._empty()
        outbox.release_connection()

    @pytest.fixture
    def lenient_outbox(self, django_databases):
        from cqrs_sync.integrations.django import DjangoOutbox  # noqa: PLC0415 -- as above

        return DjangoOutbox(using=self.alias, on_no_transaction=cqrs.OnNoTransaction.OPEN)

    @pytest.fixture
    def atomic(self, django_databases):
        from django.db import connections, transaction  # noqa: PLC0415 -- as above

        @contextmanager
        def request():
            """As a request: Django closes a broken connection at its end."""
            try:
                with transaction.atomic(using=self.alias):
                    yield
            finally:
                if not connections[self.alias].in_atomic_block:
                    connections[self.alias].close_if_unusable_or_obsolete()

        return request

    def test_dead_letters_can_be_changed_inside_a_transaction(self, outbox, atomic):
        """As with ATOMIC_REQUESTS, when an operator uses the admin. The transaction keeps its settings."""
        from django.db import connections  # noqa: PLC0415 -- needs settings

        def settings():
            if self.alias != "postgresql":
                return None
            with connections[self.alias].cursor() as cursor:
                cursor.execute("SELECT name, setting FROM pg_settings ORDER BY name")
                return cursor.fetchall()

        claimed = kept(outbox, atomic, published("1"), published("2"))
        outbox.settle([dead(each) for each in claimed])
        with atomic():
            before = settings()
            changed = [
                outbox.replay(DeadLetterSelection((claimed[0].number,))),
                outbox.discard(DeadLetterSelection((claimed[1].number,))),
                outbox.purge(3600),
            ]

            assert [1, 1, 0] == changed
            assert before == settings()
        assert ["1"] == claim(outbox)

    def _empty(self):
        from django.db import connections  # noqa: PLC0415 -- as above

        with connections[self.alias].cursor() as cursor:
            cursor.execute("DELETE FROM cqrs_delivery")
            cursor.execute("DELETE FROM cqrs_message")


class OnServer(DjangoContract):
    @pytest.fixture
    def cut_connections(self, django_databases):
        """Ends every other connection to the database."""
        from django.db import connections  # noqa: PLC0415 -- as above

        def cut():
            wrapper = connections.create_connection(self.alias)
            with wrapper.cursor() as cursor:
                self._cut(cursor)
            wrapper.close()

        return cut


class TestOnPostgreSQL(OnServer):
    alias = "postgresql"

    @staticmethod
    def _cut(cursor):
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


class TestOnMariaDB(OnServer):
    alias = "mariadb"

    @staticmethod
    def _cut(cursor):
        cursor.execute("SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()")
        for (number,) in cursor.fetchall():
            cursor.execute(f"KILL {number}")


class TestOnSQLite(DjangoContract):
    alias = "sqlite"
    features = OutboxFeatures(has_concurrent_writers=False)


# Transactions


class DjangoTransactionsContract(OpenTransactionsContract):
    alias = ""

    @pytest.fixture
    def transactions(self, django_databases):
        from cqrs_sync.integrations.django import DjangoTransactions  # noqa: PLC0415 -- as above

        return DjangoTransactions(self.alias)

    @pytest.fixture
    def atomic(self, django_databases):
        from django.db import transaction  # noqa: PLC0415 -- as above

        return lambda: transaction.atomic(using=self.alias)

    @pytest.fixture
    def write(self, django_databases):
        create(self.alias)
        yield lambda text: insert(self.alias, text)
        drop(self.alias)

    @pytest.fixture
    def written(self, write):
        return lambda: texts(self.alias)

    @pytest.fixture
    def careless(self, django_databases):
        return careless(self.alias)


class TestTransactionsOnPostgreSQL(DjangoTransactionsContract):
    alias = "postgresql"


class TestTransactionsOnMariaDB(DjangoTransactionsContract):
    alias = "mariadb"


class TestTransactionsOnSQLite(DjangoTransactionsContract):
    alias = "sqlite"
