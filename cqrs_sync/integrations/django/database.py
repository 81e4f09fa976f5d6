"""The way of the outbox and the inbox to a database, through Django."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from django.db import Error, connections, transaction

from cqrs_sync.errors import ConfigurationError, CqrsError, OutboxUnavailable
from cqrs_sync.integrations.django.transactions import DjangoTransactions, check_aborted, check_kept
from cqrs_sync.lifecycle import reset_in_child
from cqrs_sync.sql.database import OUTBOX, Purpose
from cqrs_sync.sql.dialects import DIALECTS, Dialect
from cqrs_sync.sql.drivers import State, state_of

#: A table or a column that is not there, as PostgreSQL says it, and as MySQL does.
_MISSING = {"42P01", "42703", 1146, 1054}
_MISSING_IN_SQLITE = ("no such table", "no such column", "has no column named")
#: A deadlock, and a row that was changed after the transaction's snapshot.
_CONFLICTS = {"40001", "40P01", 1213, 1020}
_NEVER_COMMITS = (
    "autocommit is off on the database {0!r}: `atomic` commits nothing there, so nothing here would ever be true; "
    'leave DATABASES[{0!r}]["AUTOCOMMIT"] as it is, and use `atomic` where you want transactions'
)


class DjangoDatabase:
    """A database of `settings.DATABASES`, by its alias."""

    def __init__(self, using: str, purpose: Purpose = OUTBOX) -> None:
        self.using = using
        self._purpose = purpose
        self._transactions = DjangoTransactions(using)
        # Of the library's own threads. In a forked child those are gone and their connections would be closed,
        # which some drivers do politely: by telling the parent's server.
        self._in_use: dict[int, Any] = {}
        reset_in_child(self)

    def reset_in_child(self) -> None:
        """Leave the connection of this thread to the parent, whose it is: Django makes another one."""
        connection = connections[self.using]
        if connection.connection is not None and not connection.in_atomic_block:
            self._in_use[0] = connection.connection
            connection.connection = None

    @property
    def dialect(self) -> Dialect:
        """The SQL it speaks."""
        vendor = connections[self.using].vendor
        if vendor not in DIALECTS:
            raise ConfigurationError(
                f"the {self._purpose.name} is for PostgreSQL, MariaDB, MySQL and SQLite; "
                f"{self.using!r} is none of them: {vendor}"
            )
        return DIALECTS[vendor]

    @property
    def transactions(self) -> DjangoTransactions:
        """The transactions of the application on this database."""
        return self._transactions

    def joined(self) -> _Open:
        """Return the connection on which the calling thread is inside `atomic`."""
        check_aborted(connections[self.using])
        return _Open(connections[self.using], is_nested=True, failed=self._failed_inside)

    @contextmanager
    def begun(self, *, durable: bool = False) -> Iterator[_Open]:
        """
        Open a transaction of the library's own, and commit it at the end of the block.

        Inside `atomic` it is a savepoint in that; what is durable is refused there, but in a TestCase of
        Django, where nothing is ever committed.
        """
        connection = connections[self.using]
        # As with ATOMIC_REQUESTS, when an operator uses the admin.
        is_nested = connection.in_atomic_block
        try:
            if not is_nested and not connection.get_autocommit():
                raise ConfigurationError(_NEVER_COMMITS.format(self.using))
            with self._atomic(durable=durable):
                opened = _Open(connection, is_nested=is_nested)
                self._meet(connection, opened)
                yield opened
        except Error as error:
            # Django would ask at the end of a request, which never comes here.
            if not connection.in_atomic_block and connection.connection is not None and not connection.is_usable():
                connection.close()
            raise translated(error, self.using, self._purpose) from error

    @contextmanager
    def opened(self) -> Iterator[_Open]:
        """Open `atomic` for the block, and commit it at the end."""
        connection = connections[self.using]
        try:
            with ExitStack() as stack:
                try:
                    if not connection.get_autocommit():
                        raise ConfigurationError(_NEVER_COMMITS.format(self.using))
                    stack.enter_context(transaction.atomic(using=self.using))
                    self._meet(connection, _Open(connection, is_nested=False))
                except Error as error:
                    raise translated(error, self.using, self._purpose) from error
                yield _Open(connection, is_nested=False, failed=self._ours)
                check_kept(connection)
        except Exception:
            # As in `begun`: on a thread of the library's own, nobody else asks.
            if connection.errors_occurred and connection.connection is not None and not connection.is_usable():
                connection.close()
            raise

    def conflicted(self, error: BaseException, /) -> bool:
        """Tell of an error of `opened` whether the transaction may be begun anew."""
        return isinstance(error.__cause__, Error) and bool(_codes(error.__cause__) & _CONFLICTS)

    def _ours(self, error: BaseException) -> CqrsError | None:
        """Make an error of ours: what went wrong was in statements of ours."""
        return translated(error, self.using, self._purpose) if isinstance(error, Error) else None

    def _failed_inside(self, error: BaseException) -> CqrsError | None:
        """Keep the caller's transaction from committing half of what was to be kept."""
        # MariaDB takes back a statement it waited for too long and nothing else: caught, the rest would commit.
        transaction.set_rollback(True, using=self.using)
        return self._ours(error) if isinstance(error, Error) and is_missing(error) else None

    def _meet(self, connection: Any, opened: _Open) -> None:
        """Remember a connection that the calling thread has made, and let errors of any language be written on it."""
        if self._in_use.get(threading.get_ident()) is not connection.connection:
            self._in_use[threading.get_ident()] = connection.connection
            # Before Django 5.2 it is a narrower one by default, in which many a text cannot be said.
            if connection.vendor == "mysql" and connection.connection.character_set_name() != "utf8mb4":
                opened.execute("SET NAMES utf8mb4")

    @contextmanager
    def _atomic(self, *, durable: bool) -> Iterator[None]:
        with ExitStack() as stack:
            try:
                stack.enter_context(transaction.atomic(using=self.using, durable=durable))
            except RuntimeError as error:
                raise ConfigurationError(
                    f"the {self._purpose.name} does this in transactions of its own, and {self.using!r} is inside "
                    "`atomic` here: do it outside of that, or in another thread"
                ) from error
            yield

    def elsewhere(self) -> str | None:
        """Name another database on which the calling thread is inside `atomic`."""
        others = [each.alias for each in connections.all(initialized_only=True) if each.in_atomic_block]
        return next((f"{alias!r}, DjangoOutbox(using={alias!r})" for alias in others if alias != self.using), None)

    def listener(self, channel: str, /) -> PsycopgListener | None:
        """Listen for what is notified on a channel."""
        try:
            return listener(self.using, channel)
        except Error as error:
            raise translated(error, self.using, self._purpose) from error

    def release_connection(self) -> None:
        """Close the connection of the calling thread, unless it is inside `atomic`."""
        connection = connections[self.using]
        self._in_use.pop(threading.get_ident(), None)
        if not connection.in_atomic_block:
            connection.close()


class _Open:
    """A connection of Django with a transaction open; `failed` makes errors of ours, or returns None."""

    def __init__(
        self,
        connection: Any,
        *,
        is_nested: bool,
        failed: Callable[[BaseException], CqrsError | None] = lambda _: None,
    ) -> None:
        self._connection = connection
        self._failed = failed
        self.is_nested = is_nested

    def execute(self, statement: str, parameters: Sequence[Any] = (), /) -> Sequence[Sequence[Any]]:
        """Execute a statement and return its rows; none where it returns no rows."""
        with self._executed(statement, parameters) as cursor:
            rows: Sequence[Sequence[Any]] = cursor.fetchall() if cursor.description else ()
            return rows

    def change(self, statement: str, parameters: Sequence[Any] = (), /) -> int:
        """Execute a statement and return how many rows it has changed."""
        with self._executed(statement, parameters) as cursor:
            return int(cursor.rowcount)

    def is_open(self) -> bool:
        """Tell whether the transaction is open, as far as the driver knows. Raises TransactionLost."""
        check_kept(self._connection)
        return state_of(self._connection.connection) is not State.NONE

    @contextmanager
    def _executed(self, statement: str, parameters: Sequence[Any]) -> Iterator[Any]:
        try:
            with self._connection.cursor() as cursor:
                # Without parameters drivers leave per cent signs as they are, and take several statements at once.
                cursor.execute(statement if parameters else statement.replace("%%", "%"), list(parameters) or None)
                yield cursor
        except BaseException as error:
            ours = self._failed(error)
            if ours is None:
                raise
            raise ours from error


def translated(error: Error, using: str, purpose: Purpose = OUTBOX) -> CqrsError:
    """Make an error of ours of what went wrong in a transaction of ours."""
    line = str(error).strip().partition("\n")[0]
    if is_missing(error):
        return purpose.not_installed(
            f"the tables of the {purpose.name} are not in the database {using!r}, or not as this version needs them "
            f"({line}): put 'cqrs_sync.integrations.django' into INSTALLED_APPS, and run "
            f"`manage.py migrate cqrs_sync --database {using}`"
        )
    return purpose.unavailable(f"{type(error).__name__}: {line}")


def is_missing(error: Error) -> bool:
    """Tell whether a table or a column is not there."""
    first = next(iter(getattr(error.__cause__, "args", ())), None)
    return bool(_codes(error) & _MISSING) or any(words in str(first) for words in _MISSING_IN_SQLITE)


def _codes(error: BaseException) -> set[Any]:
    """Return what the driver says by numbers, or as SQLSTATE."""
    cause: Any = error.__cause__
    first = next(iter(getattr(cause, "args", ())), None)
    return {first, getattr(cause, "sqlstate", None), getattr(cause, "pgcode", None)}


def listener(using: str, channel: str) -> PsycopgListener | None:
    """Listen on a channel with a connection of its own; None where the database or its driver has no such thing."""
    if connections[using].vendor != "postgresql" or not _can_wait():
        return None
    wrapper = connections.create_connection(using)
    # A connection of a pool would come back to it listening, and be missed there until then.
    options = {name: value for name, value in wrapper.settings_dict["OPTIONS"].items() if name != "pool"}
    wrapper.settings_dict = {**wrapper.settings_dict, "OPTIONS": options}
    return PsycopgListener(wrapper, channel)


def _can_wait() -> bool:
    """Tell whether the driver waits for notifications, and for a time only."""
    from django.db.backends.postgresql.psycopg_any import is_psycopg3  # noqa: PLC0415 -- needs its driver

    if not is_psycopg3:
        return False
    import psycopg  # noqa: PLC0415 -- as above

    major, minor = psycopg.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (3, 2)


class PsycopgListener:
    """
    Listens on a connection of Django's making, which it closes.

    What is notified while it is not connected is heard by nobody: it is a hint, no more.
    """

    def __init__(self, wrapper: Any, channel: str) -> None:
        self._wrapper = wrapper
        try:
            with wrapper.cursor() as cursor:
                cursor.execute(f'LISTEN "{channel}"')
        except BaseException:
            wrapper.close()
            raise

    def wait(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds. Raises OutboxUnavailable where the connection is broken: open another one."""
        try:
            with self._wrapper.wrap_database_errors:
                return bool(list(self._wrapper.connection.notifies(timeout=timeout, stop_after=1)))
        except (Error, OSError) as error:
            raise OutboxUnavailable(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Let go of the connection."""
        self._wrapper.close()
