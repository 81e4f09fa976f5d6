"""DjangoInbox keeps the promises of its socket on each database."""

from __future__ import annotations

import pytest

from cqrs_sync.testing.contracts.inbox import InboxContract, InboxFeatures
from tests.contracts.effects_django import by_statement, careless, create, drop, insert, texts

pytestmark = [pytest.mark.broker, pytest.mark.usefixtures("django_databases")]


class DjangoContract(InboxContract):
    alias = ""

    @pytest.fixture
    def inbox(self, django_emptied):
        from cqrs_sync.integrations.django import DjangoInbox  # noqa: PLC0415 -- needs settings

        create(self.alias)
        inbox = DjangoInbox(using=self.alias)
        yield inbox
        inbox.release_connection()
        drop(self.alias)

    @pytest.fixture
    def atomic(self, django_databases):
        from django.db import transaction  # noqa: PLC0415 -- as above

        return lambda: transaction.atomic(using=self.alias)

    @pytest.fixture
    def write(self, django_databases):
        return lambda text: insert(self.alias, text)

    @pytest.fixture
    def written(self, django_databases):
        return lambda: texts(self.alias)

    @pytest.fixture
    def careless(self, django_databases):
        return careless(self.alias) | by_statement(self.alias)


class TestOnPostgreSQL(DjangoContract):
    alias = "postgresql"


class TestOnMariaDB(DjangoContract):
    alias = "mariadb"


class TestOnSQLite(DjangoContract):
    alias = "sqlite"
    features = InboxFeatures(has_concurrent_writers=False)
