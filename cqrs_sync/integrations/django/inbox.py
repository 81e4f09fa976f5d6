"""The inbox in a database of Django's."""

from __future__ import annotations

from cqrs_sync.integrations.django.database import DjangoDatabase
from cqrs_sync.sql import SqlInbox
from cqrs_sync.sql.database import INBOX


class DjangoInbox(SqlInbox):
    """
    An inbox in a database of `settings.DATABASES`: PostgreSQL, MariaDB, MySQL or SQLite.

    Its table comes with the app `cqrs_sync.integrations.django` and `manage.py migrate`. `using` is the alias of the
    database that handlers write to. It joins `atomic` where the calling thread is inside one, and opens it elsewhere.
    """

    def __init__(self, using: str = "default") -> None:
        self.using = using
        super().__init__(DjangoDatabase(using, INBOX))

    def __repr__(self) -> str:
        return f"DjangoInbox(using={self.using!r})"
