"""DjangoInbox keeps the promises of its socket on each database."""

from __future__ import annotations

import pytest

from cqrs_sync.testing.inbox_contract import InboxContract, InboxFeatures

pytestmark = [pytest.mark.broker, pytest.mark.usefixtures("django_databases")]


class DjangoContract(InboxContract):
    alias = ""

    @pytest.fixture
    def inbox(self, django_emptied):
        from django.db import connections  # noqa: PLC0415 -- needs settings

        from cqrs_sync.integrations.django import DjangoInbox  # noqa: PLC0415 -- as above

        number = {"postgresql": "serial", "mariadb": "integer AUTO_INCREMENT", "sqlite": "integer"}[self.alias]
        with connections[self.alias].cursor() as cursor:
            cursor.execute(f"CREATE TABLE effects (number {number} PRIMARY KEY, text varchar(255))")
        inbox = DjangoInbox(using=self.alias)
        yield inbox
        inbox.let_go()
        with connections[self.alias].cursor() as cursor:
            cursor.execute("DROP TABLE effects")
        inbox.let_go()

    @pytest.fixture
    def atomic(self, django_databases):
        from django.db import transaction  # noqa: PLC0415 -- as above

        return lambda: transaction.atomic(using=self.alias)

    @pytest.fixture
    def write(self, django_databases):
        from django.db import connections  # noqa: PLC0415 -- as above

        def write(text):
            with connections[self.alias].cursor() as cursor:
                cursor.execute("INSERT INTO effects (text) VALUES (%s)", [text])

        return write

    @pytest.fixture
    def written(self, django_databases):
        from django.db import connections  # noqa: PLC0415 -- as above

        def read():
            with connections[self.alias].cursor() as cursor:
                cursor.execute("SELECT text FROM effects ORDER BY number")
                return [text for (text,) in cursor.fetchall()]

        return read


class TestOnPostgreSQL(DjangoContract):
    alias = "postgresql"


class TestOnMariaDB(DjangoContract):
    alias = "mariadb"


class TestOnSQLite(DjangoContract):
    alias = "sqlite"
    features = InboxFeatures(has_concurrent_writers=False)
