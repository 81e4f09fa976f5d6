"""
The inbox socket, and the middlewares that use it: a handler has its effect once for each key.

A row per *key* and *handler* is inserted in the handler's own transaction, before the handler runs. A second caller
waits for that transaction and finds the row. Each promise stands on the method that gives it, and
`cqrs_sync.testing.contracts.inbox` holds a store to it.

The pattern: Chris Richardson, *Idempotent consumer*, microservices.io.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import cache, partial
from typing import Any, Protocol

from cqrs_sync import json_codec
from cqrs_sync.errors import ConfigurationError, IdempotencyKeyConflict, SerializationError
from cqrs_sync.messages import UNDECLARED, response_type_of
from cqrs_sync.middleware import CallNext
from cqrs_sync.serializer import LONGEST, is_key, json_converter
from cqrs_sync.transactions import Transactions

logger: logging.Logger = logging.getLogger(__name__)

#: The name under which a store may count the attempts at a key. No handler may have it.
ATTEMPTS = " attempts"
#: Starts the stored form of a key that has a scope.
_SCOPED = "\x1f"
#: Bytes of the digest of a request that is stored with its response.
_DIGEST = 16

_key: ContextVar[str] = ContextVar("cqrs_sync.idempotency_key")


class Receipt(Protocol):
    """What the inbox knows of a key and a handler, in the transaction of the question."""

    @property
    def is_first(self) -> bool:
        """Whether it was not done before: the caller has to do it now, in this transaction."""

    @property
    def result(self) -> bytes | None:
        """The result that the first caller kept; None if it kept none."""

    def keep_result(self, result: bytes, /) -> None:
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

    def count_attempt(self, key: str, /) -> int:
        """
        Count an attempt before it begins, in a transaction of its own; returns how many there were, including this one.

        So an attempt that kills its process is counted.
        """

    def counted_attempts(self, key: str, /) -> int:
        """Return how many attempts were counted. Counts none itself."""

    def uncount_attempt(self, key: str, /) -> None:
        """Count one attempt less, in a transaction of its own: it has ended without killing its process."""

    def reset_attempts(self, key: str, /) -> None:
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


def scoped_key(key: str | None, scope: str) -> str:
    """
    Return the key under which the inbox stores an idempotency key of this scope.

    Raises ConfigurationError for a scope without a key, TypeError and ValueError for what cannot be a key or a scope.
    """
    # A scope of None, from a user who is not logged in, would be one for all of them.
    _check_text("scope", scope, shortest=0)
    if key is None:
        raise ConfigurationError(f"scope={scope!r:.80} needs an idempotency_key: it says whose key it is")
    _check_text("idempotency_key", key)
    if key.startswith(_SCOPED):
        raise ValueError(f"an idempotency_key must not start with a control character, as {key!r:.80} does")
    # Subclasses of str may format themselves as another text, such as the name of an enum's member.
    key, scope = str.__str__(key), str.__str__(scope)
    if not scope:
        return key
    # The length keeps ("a", "b c") apart from ("a b", "c").
    stored = f"{_SCOPED}{len(scope)} {scope} {key}"
    if (excess := len(stored) - LONGEST) > 0:
        raise ValueError(
            f"idempotency_key and scope may have {len(key) + len(scope) - excess} characters together, and have "
            f"{len(key)} and {len(scope)}: key {key!r:.80}, scope {scope!r:.80}"
        )
    return stored


def _key_title(stored: str) -> str:
    """Name a key as its sender wrote it, for errors."""
    if not stored.startswith(_SCOPED):
        return f"the key {stored!r:.80}"
    length, _, rest = stored[1:].partition(" ")
    return f"the key {rest[int(length) + 1 :]!r:.80} of the scope {rest[: int(length)]!r:.80}"


def check_key(key: str, handler: str) -> None:
    """Raise ValueError for a text that no row can hold, TypeError for anything but a text."""
    _check_text("key", key)
    _check_text("name of a handler", handler, shortest=0)
    if handler == ATTEMPTS:
        raise ValueError(f"no handler can be named {handler!r}: attempts are counted under it")


def _check_text(what: str, text: object, *, shortest: int = 1) -> None:
    if not isinstance(text, str):
        raise TypeError(f"the {what} must be a str, not the {type(text).__name__} {text!r:.80}")
    if len(text) < shortest or not is_key(text):
        raise ValueError(f"the {what} must have {shortest} to {LONGEST} characters and no NUL, not {text!r:.80}")


@contextmanager
def idempotency_key(key: str) -> Iterator[None]:
    """Give the idempotent handlers that are called in this block their key."""
    token = _key.set(key)
    try:
        yield
    finally:
        _key.reset(token)


class IdempotentEvent:
    """
    Skips an event handler that has a receipt for the `idempotency_key`.

    The innermost middleware, so that the receipt is in the handler's own transaction.
    """

    def __init__(self, inbox: Inbox, handler: str) -> None:
        self._inbox = inbox
        self._handler = handler

    def __call__(self, event: Any, call_next: CallNext, /) -> None:
        """Run the handler, or skip it."""
        with self._inbox.once(_key.get(), self._handler) as receipt:
            if receipt.is_first:
                call_next(event)
            else:
                logger.debug("%s has handled %r before: skipped", self._handler, _key.get())


class IdempotentRequest:
    """
    Runs the handler of a request once for the `idempotency_key`, and answers from the inbox after that.

    The innermost middleware, as for events. It stores a digest of the request with the response, and raises
    IdempotencyKeyConflict if the key comes with another request.
    """

    def __init__(self, inbox: Inbox, request_type: type) -> None:
        import hashlib  # noqa: PLC0415 -- loading OpenSSL is a tenth of the time that importing the package may take

        self._inbox = inbox
        self._name = f"{request_type.__module__}:{request_type.__qualname__}"
        self._request = request_type.__qualname__
        self._response_type = _response_type_of(request_type)
        self._hash = partial(hashlib.blake2b, digest_size=_DIGEST)

    def __call__(self, request: Any, call_next: CallNext, /) -> Any:
        """Run the handler, or return its response of the first time."""
        key = _key.get()
        digest = self._hash(self._dump(request, "the request", json_codec.canonical)).digest()
        with self._inbox.once(key, self._name) as receipt:
            if receipt.is_first:
                response = call_next(request)
                receipt.keep_result(digest + self._response_bytes(response))
                return response
            kept = receipt.result
            if kept is None:
                raise ConfigurationError(
                    f"the inbox stores no responses, so it cannot answer {self._request} a second time"
                )
            if not kept.startswith(digest):
                raise IdempotencyKeyConflict(
                    f"{_key_title(key)} was used for another {self._request}, with other content: "
                    "use a new key for another request"
                )
            return self._load(kept[_DIGEST:])

    def _response_bytes(self, response: Any) -> bytes:
        answer = self._dump(response, "the response", json_codec.dump)
        try:
            # Found out now, while the handler can still fail, and not by a later send.
            self._load(answer)
        except Exception as error:
            raise SerializationError(
                f"{self._request} returned {type(response).__qualname__}, which cannot be read back as the "
                f"{getattr(self._response_type, '__qualname__', self._response_type)} that it declares: {error}"
            ) from error
        return answer

    def _dump(self, value: Any, what: str, write: Callable[[Any], bytes]) -> bytes:
        try:
            return write(_converter().unstructure(value))
        except Exception as error:
            raise SerializationError(
                f"{what} of {self._request}, {type(value).__qualname__}, cannot become JSON, so the inbox cannot keep "
                f"it: use only types that JSON has, or send it without an idempotency key: {error}"
            ) from error

    def _load(self, answer: bytes) -> Any:
        return _converter().structure(json_codec.load(answer), self._response_type)


@cache
def _converter() -> Any:
    return json_converter()


def _response_type_of(request_type: type) -> Any:
    """Return the type of the response, as the class of the request declares it."""
    answer = response_type_of(request_type)
    if answer is not UNDECLARED:
        return answer
    raise ConfigurationError(
        f"{request_type.__qualname__} does not declare the type of its response, so the inbox cannot return it a "
        f"second time: write `class {request_type.__qualname__}(cqrs.Command[...])`, "
        "or send it without an idempotency key"
    )
