"""
The inbox socket: a handler has its effect once for each key.

A row per *key* and *handler* is inserted in the handler's own transaction, before the handler runs. A second caller
waits for that transaction and finds the row. Each promise stands on the method that gives it, and
`cqrs_sync.testing.contracts.inbox` holds a store to it.

The pattern: Chris Richardson, *Idempotent consumer*, microservices.io.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from cqrs_sync.serializer import LONGEST, is_key
from cqrs_sync.transactions import Transactions

#: The name under which a store may count the attempts at a key. No handler may have it.
ATTEMPTS = " attempts"


class Receipt(Protocol):
    """What the inbox knows of a key and a handler, in the transaction of the question."""

    @property
    def first(self) -> bool:
        """Whether it was not done before: the caller has to do it now, in this transaction."""

    @property
    def result(self) -> bytes | None:
        """The result that the first caller kept; None if it kept none."""

    def keep(self, result: bytes, /) -> None:
        """Keep a result for later callers, in the same transaction. Raises ValueError if this is not the first one."""


class Inbox(Protocol):
    """
    Keeps receipts of what was done, in the database and the transaction of its effect.

    Safe from any thread and in a forked child. Every method raises InboxUnavailable if the database cannot be
    reached, and InboxNotInstalled if its table is missing.
    """

    @property
    def transactions(self) -> Transactions:
        """The transactions that it joins."""

    def once(self, key: str, handler: str = "", /) -> AbstractContextManager[Receipt]:
        """
        Join the transaction of the calling thread, or open one, and tell whether this was done before.

        Of several callers one is first. The others wait until its transaction has ended; after a rollback one of
        them is first. An error in the block takes the receipt back, and rolls back the transaction that was opened
        for it; the owner of a transaction that was open already has to roll it back.

        Raises TransactionLost if the block raises nothing but the transaction is lost with all that was done in
        it: an error that was caught has aborted it, or the block has rolled it back.

        Raises NotInTransaction if none is open and it cannot open the one that the handler would use; ValueError for
        an empty key, and for a key or name that is longer than 255 characters or has a NUL in it. Errors of the
        database in the caller's transaction pass through: a deadlock, or a transaction that began too early to
        see who was first (REPEATABLE READ). Then do all of it again.
        """

    def attempt(self, key: str, /) -> int:
        """
        Count an attempt before it begins, in a transaction of its own; returns how many there were, including this one.

        So an attempt that kills its process is counted.
        """

    def attempts_at(self, key: str, /) -> int:
        """Return how many attempts were counted. Counts none itself."""

    def take_back_attempt(self, key: str, /) -> None:
        """Count one attempt less, in a transaction of its own: it has ended without killing its process."""

    def forget_attempts(self, key: str, /) -> None:
        """Set the count to zero, in a transaction of its own."""

    def purge(self, older_than: float, /, *, limit: int = 1000) -> int:
        """
        Delete at most `limit` receipts that are older than `older_than` seconds; returns how many.

        A message that comes again after that is handled again.
        """

    def release_connection(self) -> None:
        """Release the connection of the calling thread. The next call opens one again."""


def key_of(attributes: Mapping[str, str]) -> str:
    """Return the key of a received CloudEvent: its source and id together identify it."""
    key = f"{attributes['source']} {attributes['id']}"
    if len(key) <= LONGEST:
        return key
    import hashlib  # noqa: PLC0415 -- loading OpenSSL is a tenth of the time that importing the package may take

    return f"blake2b {hashlib.blake2b(key.encode(errors='surrogatepass'), digest_size=32).hexdigest()}"


def check_key(key: str, handler: str) -> None:
    """Raise ValueError for a text that no row can hold, TypeError for anything but a text."""
    for what, text in (("key", key), ("name of a handler", handler)):
        if not isinstance(text, str):
            raise TypeError(f"the {what} must be a str, not the {type(text).__name__} {text!r:.80}")
        if not is_key(text) or (what == "key" and not text):
            raise ValueError(f"the {what} must have 1 to {LONGEST} characters and no NUL, not {text!r:.80}")
    if handler == ATTEMPTS:
        raise ValueError(f"no handler can be named {handler!r}: attempts are counted under it")
