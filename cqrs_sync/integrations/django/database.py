"""The outbox and the inbox in a database of `settings.DATABASES`, and how they reach it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Unpack

import attrs
from django.db import Error, connections, transaction

from cqrs_sync.errors import ConfigurationError, CqrsError
from cqrs_sync.integrations.django.transactions import (
    DjangoTransactions,
    check_not_aborted,
    check_not_rolled_back,
    connection_of,
)
from cqrs_sync.lifecycle import reset_in_child
from cqrs_sync.sql import OutboxOptions, SqlInbox, SqlOutbox
from cqrs_sync.sql.database import (
    INBOX,
    OUTBOX,
    PsycopgListener,
    StoreKind,
    TransactionStatus,
    can_listen,
    is_conflict,
    is_missing,
    transaction_status,
)
from cqrs_sync.sql.dialects import DIALECTS, Dialect


class DjangoDatabase:
    """A database of `settings.DATABASES`, by its alias."""

    def __init__(self, using: str, store: StoreKind) -> None:
        self.using = using
        self._store = store
        #: The application's transactions on this database.
        self.transactions: DjangoTransactions = DjangoTransactions(using)
        # The driver connections of the library's own threads. A forked child does not have these threads. The
        # references keep their connections open there: some drivers close them by telling the parent's server.
        self._kept_connections: dict[int, Any] = {}
        reset_in_child(self)

    def reset_in_child(self) -> None:
        """Leave this thread's connection to the parent process, which owns it. Django makes another one."""
        connection = connection_of(self.using)
        if connection.connection is not None and not connection.in_atomic_block:
            self._kept_connections[0] = connection.connection
            connection.connection = None

    @property
    def dialect(self) -> Dialect:
        """The SQL that the database speaks."""
        vendor = connection_of(self.using).vendor
        if vendor not in DIALECTS:
            raise ConfigurationError(
                f"the {self._store.name} supports PostgreSQL, MariaDB, MySQL and SQLite; "
                f"{self.using!r} is none of them: {vendor}"
            )
        return DIALECTS[vendor]

    def current_connection(self) -> DjangoConnection | None:
        """Return the connection on which the calling thread is inside `atomic`, None if it is not."""
        if not self.transactions.active():
            return None
        check_not_aborted(connection_of(self.using))
        return DjangoConnection(connection_of(self.using), is_nested=True, translate=self._roll_back_and_translate)

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[DjangoConnection]:
        """
        Open a transaction of the library's own and commit it at the end of the block.

        Inside `atomic` it is a savepoint. A durable block raises ConfigurationError there, except in Django's
        TestCase, which never commits anything.
        """
        connection = connection_of(self.using)
        # The admin does this under ATOMIC_REQUESTS.
        is_nested = connection.in_atomic_block
        try:
            if not is_nested:
                self._check_autocommit(connection)
            with ExitStack() as stack:
                try:
                    stack.enter_context(transaction.atomic(using=self.using, durable=durable))
                except RuntimeError as error:
                    raise ConfigurationError(
                        f"the {self._store.name} needs a transaction of its own for this, and this thread is inside "
                        f"`atomic` on {self.using!r}: call it outside of `atomic`, or in another thread"
                    ) from error
                self._keep(connection)
                yield DjangoConnection(connection, is_nested=is_nested)
        except Error as error:
            # Django checks this at the end of a request, and threads of the library have no requests.
            if not connection.in_atomic_block:
                _close_if_broken(connection)
            raise self._translate(error) from error

    @contextmanager
    def application_transaction(self) -> Iterator[DjangoConnection]:
        """Open `atomic` for the block, and commit it at the end."""
        connection = connection_of(self.using)
        try:
            with ExitStack() as stack:
                try:
                    self._check_autocommit(connection)
                    stack.enter_context(transaction.atomic(using=self.using))
                    self._keep(connection)
                except Error as error:
                    raise self._translate(error) from error
                yield DjangoConnection(
                    connection,
                    is_nested=False,
                    translate=lambda error: self._translate(error) if isinstance(error, Error) else None,
                )
                check_not_rolled_back(connection)
        except Exception:
            # As in `transaction`.
            if connection.errors_occurred:
                _close_if_broken(connection)
            raise

    def is_conflict(self, error: BaseException, /) -> bool:
        """Tell whether `application_transaction` can be started again after this error."""
        return isinstance(error.__cause__, Error) and is_conflict(error.__cause__.__cause__)

    how_to_open = "Open one with transaction.atomic(), or around each handler with bootstrap(atomic=(Command, Event))"

    def other_database(self) -> str | None:
        """Name another database on which the calling thread is inside `atomic`."""
        others = [each.alias for each in connections.all(initialized_only=True) if each.in_atomic_block]
        return next((f"{alias!r}, DjangoOutbox(using={alias!r})" for alias in others if alias != self.using), None)

    def listener(self, channel: str, /) -> PsycopgListener | None:
        """Listen on a channel with a connection of its own; None if the database or its driver cannot."""
        if connection_of(self.using).vendor != "postgresql" or not can_listen(connection_of(self.using).Database):
            return None
        wrapper = connections.create_connection(self.using)
        # Not from Django's pool: it would miss this connection, and get it back still listening.
        options = {name: value for name, value in wrapper.settings_dict["OPTIONS"].items() if name != "pool"}
        wrapper.settings_dict = {**wrapper.settings_dict, "OPTIONS": options}
        try:
            wrapper.ensure_connection()
        except Error as error:
            raise self._translate(error) from error
        return PsycopgListener(wrapper.connection, channel)

    def release_connection(self) -> None:
        """Close the calling thread's connection, unless it is inside `atomic`."""
        connection = connection_of(self.using)
        self._kept_connections.pop(threading.get_ident(), None)
        if not connection.in_atomic_block:
            connection.close()

    def _translate(self, error: Error) -> CqrsError:
        """Make the store's error of a database error."""
        line = str(error).strip().partition("\n")[0]
        if is_missing(error.__cause__):
            return self._store.not_installed(
                f"the tables of the {self._store.name} in the database {self.using!r} are missing, or are older than "
                f"this version needs ({line}): put 'cqrs_sync.integrations.django' into INSTALLED_APPS, and run "
                f"`manage.py migrate cqrs_sync --database {self.using}`"
            )
        return self._store.unavailable(f"{type(error).__name__}: {line}")

    def _roll_back_and_translate(self, error: BaseException) -> CqrsError | None:
        """Keep the caller's transaction from committing only a part; only a missing table is an error of ours."""
        # After a lock wait timeout MariaDB rolls back that statement alone: if the error is caught, the rest commits.
        transaction.set_rollback(True, using=self.using)
        return self._translate(error) if isinstance(error, Error) and is_missing(error.__cause__) else None

    def _check_autocommit(self, connection: Any) -> None:
        if not connection.get_autocommit():
            raise ConfigurationError(
                f"autocommit is off on the database {self.using!r}, so `atomic` commits nothing there: leave "
                f'DATABASES[{self.using!r}]["AUTOCOMMIT"] at its default, and use `atomic` for transactions'
            )

    def _keep(self, connection: Any) -> None:
        """Keep a reference to the thread's connection. Set up a new one so that it takes all characters."""
        if self._kept_connections.get(threading.get_ident()) is not connection.connection:
            self._kept_connections[threading.get_ident()] = connection.connection
            # Before Django 5.2 the default is utf8mb3, which lacks some characters.
            if connection.vendor == "mysql" and connection.connection.character_set_name() != "utf8mb4":
                with connection.cursor() as cursor:
                    cursor.execute("SET NAMES utf8mb4")


@attrs.define(eq=False)
class DjangoConnection:
    """A connection with an open transaction; `translate` makes an error of the library, or returns None."""

    _connection: Any
    is_nested: bool
    _translate: Callable[[BaseException], CqrsError | None] = lambda _: None

    def execute(self, statement: str, parameters: Sequence[Any] = (), /) -> Sequence[Sequence[Any]]:
        """Execute a statement and return its rows, none if it returns no rows."""
        with self._run(statement, parameters) as cursor:
            rows: Sequence[Sequence[Any]] = cursor.fetchall() if cursor.description else ()
            return rows

    def change(self, statement: str, parameters: Sequence[Any] = (), /) -> int:
        """Execute a statement and return how many rows it changed."""
        with self._run(statement, parameters) as cursor:
            return int(cursor.rowcount)

    def is_open(self) -> bool:
        """Tell whether the transaction is open, as far as the driver knows. Raises TransactionLost."""
        check_not_rolled_back(self._connection)
        return transaction_status(self._connection.connection) is not TransactionStatus.NONE

    @contextmanager
    def _run(self, statement: str, parameters: Sequence[Any]) -> Iterator[Any]:
        try:
            with self._connection.cursor() as cursor:
                # Without parameters drivers leave per cent signs as they are, and take several statements at once.
                cursor.execute(statement if parameters else statement.replace("%%", "%"), list(parameters) or None)
                yield cursor
        except BaseException as error:
            translated = self._translate(error)
            if translated is None:
                raise
            raise translated from error


def _close_if_broken(connection: Any) -> None:
    if connection.connection is not None and not connection.is_usable():
        connection.close()


class DjangoOutbox(SqlOutbox):
    """
    An outbox in a database of `settings.DATABASES`: PostgreSQL, MariaDB, MySQL or SQLite.

    Its tables come with the app `cqrs_sync.integrations.django` and `manage.py migrate`.

    - `using` is the alias of the database that commands write to. A transaction is on one database: raising an event
      while `atomic` is open on another one is an error that names it.
    - `max_bytes`: larger bodies are refused before they are written.
    - `on_no_transaction`: what happens to an event that is added outside of `atomic`. By default that is an error.
    - `published_by`: the relay, or change data capture that reads the table; then only handlers are delivered.
    - `notify`: notify relays in other processes of each commit, on PostgreSQL.
    """

    def __init__(self, using: str = "default", **options: Unpack[OutboxOptions]) -> None:
        self.using = using
        super().__init__(DjangoDatabase(using, OUTBOX), **options)

    def __repr__(self) -> str:
        return f"DjangoOutbox(using={self.using!r})"


class DjangoInbox(SqlInbox):
    """
    An inbox in a database of `settings.DATABASES`: PostgreSQL, MariaDB, MySQL or SQLite.

    Its table comes with the app `cqrs_sync.integrations.django` and `manage.py migrate`. `using` is the alias of the
    database that handlers write to. The inbox joins the calling thread's `atomic` block, or opens one.
    """

    def __init__(self, using: str = "default") -> None:
        self.using = using
        super().__init__(DjangoDatabase(using, INBOX))

    def __repr__(self) -> str:
        return f"DjangoInbox(using={self.using!r})"
