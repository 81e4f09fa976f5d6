"""
The inbox socket: what was done once is not done again.

A row per *key* and *handler* is inserted in the handler's own transaction, before the handler runs: whoever comes
second waits for that transaction and finds the row. Each promise stands on the method that gives it, and
`cqrs_sync.testing.contracts.inbox` holds a store to it.

The pattern: Chris Richardson, *Idempotent consumer*, microservices.io.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from cqrs_sync.serializer import LONGEST, is_key
from cqrs_sync.transactions import Transactions

#: The name under which a store may count the attempts of a key; no handler has it.
ATTEMPTS = " attempts"


class Receipt(Protocol):
    """What the inbox knows of a key and a handler, in the transaction in which it was asked."""

    @property
    def first(self) -> bool:
        """Whether nobody has done it: the caller is to do it now, in this transaction."""

    @property
    def result(self) -> bytes | None:
        """What was kept by whoever did it; None where nothing was."""

    def keep(self, result: bytes, /) -> None:
        """Keep a result for those who come later, in the same transaction. Raises ValueError unless it is the first."""


class Inbox(Protocol):
    """
    Remembers what was done, in the database and the transaction in which it was done.

    Safe from any thread and in a forked child. All of it raises InboxUnavailable where the database
    cannot be reached, InboxNotInstalled where its table is missing.
    """

    @property
    def transactions(self) -> Transactions:
        """The transactions that it joins."""

    def once(self, key: str, handler: str = "", /) -> AbstractContextManager[Receipt]:
        """
        Join the transaction of the calling thread, or open one, and tell whether this was done before.

        Of several at a time, one is first; the others wait until its transaction has ended, and are first themselves
        where that was rolled back. What is raised in the block takes the receipt back, and rolls back the transaction
        that was opened for it; one that was open already is its owner's to roll back.

        Raises TransactionLost where the block raises nothing, and the transaction is lost by then with all that was
        done in it: an error that was caught has aborted it, or it was rolled back by hand.

        Raises NotInTransaction where none is open and it cannot open the one that the handler would use;
        ValueError for a key that is empty, and for what is longer than 255 characters or has a NUL in it. What the
        database itself raises in the caller's transaction is let through: a deadlock, or that the transaction
        began too early to see who was first (REPEATABLE READ). Do all of it again then.
        """

    def attempt(self, key: str, /) -> int:
        """
        Count an attempt before it is made, in a transaction of its own; returns how many there were, this one included.

        A process that dies in an attempt has counted it.
        """

    def attempts_at(self, key: str, /) -> int:
        """Return how many attempts were counted; counts none."""

    def take_back_attempt(self, key: str, /) -> None:
        """Count one attempt less, in a transaction of its own: it has ended, whatever came of it."""

    def forget_attempts(self, key: str, /) -> None:
        """Begin to count anew, in a transaction of its own."""

    def purge(self, older_than: float, /, *, limit: int = 1000) -> int:
        """
        Forget at most `limit` of what was first asked for more than `older_than` seconds ago; returns how many.

        What comes again after that is done again.
        """

    def release_connection(self) -> None:
        """Give up the connection of the calling thread, until it needs one again."""


def key_of(attributes: Mapping[str, str]) -> str:
    """Return the key of a received CloudEvent: its source and id together name it."""
    key = f"{attributes['source']} {attributes['id']}"
    if len(key) <= LONGEST:
        return key
    return f"blake2b {hashlib.blake2b(key.encode(errors='surrogatepass'), digest_size=32).hexdigest()}"


def check_key(key: str, handler: str) -> None:
    """Raise ValueError for what no row can hold, TypeError for what is no text."""
    for what, text in (("key", key), ("name of a handler", handler)):
        if not isinstance(text, str):
            raise TypeError(f"the {what} must be a str, not the {type(text).__name__} {text!r:.80}")
        if not is_key(text) or (what == "key" and not text):
            raise ValueError(f"the {what} must have 1 to {LONGEST} characters and no NUL, not {text!r:.80}")
    if handler == ATTEMPTS:
        raise ValueError(f"no handler can be named {handler!r}: attempts are counted under it")
