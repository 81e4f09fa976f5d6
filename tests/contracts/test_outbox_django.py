"""DjangoOutbox keeps the promises of its socket, and Django's transactions those of theirs, on each database."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from cqrs_sync.testing.outbox_contract import OutboxContract, OutboxFeatures
from cqrs_sync.testing.transactions_contract import OpenTransactionsContract

pytestmark = [pytest.mark.broker, pytest.mark.usefixtures("django_databases")]


class DjangoContract(OutboxContract):
    alias = ""

    @pytest.fixture
    def outbox(self, django_databases):
        from cqrs_sync.integrations.django import DjangoOutbox  # noqa: PLC0415 -- needs settings

        outbox = DjangoOutbox(using=self.alias)
        yield outbox
        # A test may have cut it.
        outbox.let_go()
        self._empty()
        outbox.let_go()

    @pytest.fixture
    def lenient_outbox(self, django_databases):
        from cqrs_sync.integrations.django import DjangoOutbox  # noqa: PLC0415 -- as above

        return DjangoOutbox(using=self.alias, strict=False)

    @pytest.fixture
    def atomic(self, django_databases):
        from django.db import connections, transaction  # noqa: PLC0415 -- as above

        @contextmanager
        def request():
            """As a request: what is broken is closed at its end."""
            try:
                with transaction.atomic(using=self.alias):
                    yield
            finally:
                if not connections[self.alias].in_atomic_block:
                    connections[self.alias].close_if_unusable_or_obsolete()

        return request

    def _empty(self):
        from django.db import connections  # noqa: PLC0415 -- as above

        with connections[self.alias].cursor() as cursor:
            cursor.execute("DELETE FROM cqrs_delivery")
            cursor.execute("DELETE FROM cqrs_message")


class TestOnPostgreSQL(DjangoContract):
    alias = "postgresql"

    @pytest.fixture
    def cut_connections(self, django_databases):
        """Ends every other connection to the database."""
        from django.db import connections  # noqa: PLC0415 -- as above

        def cut():
            wrapper = connections.create_connection(self.alias)
            with wrapper.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            wrapper.close()

        return cut


class TestOnMariaDB(DjangoContract):
    alias = "mariadb"

    @pytest.fixture
    def cut_connections(self, django_databases):
        """Ends every other connection to the database."""
        from django.db import connections  # noqa: PLC0415 -- as above

        def cut():
            wrapper = connections.create_connection(self.alias)
            with wrapper.cursor() as cursor:
                cursor.execute(
                    "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"
                )
                for (number,) in cursor.fetchall():
                    cursor.execute(f"KILL {number}")
            wrapper.close()

        return cut


class TestOnSQLite(DjangoContract):
    alias = "sqlite"
    features = OutboxFeatures(has_concurrent_writers=False)


# Transactions


class TestDjangoTransactions(OpenTransactionsContract):
    @pytest.fixture
    def transactions(self, django_databases):
        from cqrs_sync.integrations.django import DjangoTransactions  # noqa: PLC0415 -- as above

        return DjangoTransactions("sqlite")

    @pytest.fixture
    def atomic(self, django_databases):
        from django.db import transaction  # noqa: PLC0415 -- as above

        return lambda: transaction.atomic(using="sqlite")
