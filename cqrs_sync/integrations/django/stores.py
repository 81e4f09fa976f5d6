"""The outbox in a database of Django's."""

from __future__ import annotations

from cqrs_sync.integrations.django.database import DjangoDatabase
from cqrs_sync.sql import SqlInbox, SqlOutbox
from cqrs_sync.sql.database import INBOX


class DjangoOutbox(SqlOutbox):
    """
    An outbox in a database of `settings.DATABASES`: PostgreSQL, MariaDB, MySQL or SQLite.

    Its tables come with the app `cqrs_sync.integrations.django` and `manage.py migrate`.

    - `using` is the alias of the database that commands write to. One transaction is on one
      database: an event raised while another one is in `atomic` is an error that names it.
    - `max_bytes`: larger bodies are refused before they are written.
    - `strict`: keeping an event outside of `atomic` is an error; otherwise it gets a transaction of its own.
    - `relayed`: False where change data capture reads messages from the table; only handlers are delivered then.
    - `notify`: tell relays in other processes of each commit, on PostgreSQL.
    """

    def __init__(
        self,
        using: str = "default",
        *,
        max_bytes: int = 1_048_576,
        strict: bool = True,
        relayed: bool = True,
        notify: bool = False,
    ) -> None:
        self.using = using
        super().__init__(DjangoDatabase(using), max_bytes=max_bytes, strict=strict, relayed=relayed, notify=notify)

    def __repr__(self) -> str:
        return f"DjangoOutbox(using={self.using!r})"


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
