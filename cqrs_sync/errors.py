"""
Every exception of this library, as one tree.

```text
CqrsError
├── ConfigurationError            the application is wired wrongly
│   ├── InvalidBinding            a handler or a message type cannot be bound
│   │   └── AlreadyBound          a request has one handler
│   ├── InvalidMessage            a message class lacks a topic, a name or a key
│   ├── HandlerNotFound           no handler is bound to the request, or has this durable name
│   ├── HandlerNotBuilt           the container could not build a handler
│   ├── HandlerReused             events of one request would leak into the next
│   ├── BrokerNotConfigured       a notification event was raised, and there is no broker
│   ├── RaisedOutsideHandler      `raise_event` was called where no handler runs (a RuntimeError)
│   ├── NotInTransaction          an event needs the outbox, and no transaction is open
│   ├── OutboxNotInstalled        the tables of the outbox are missing
│   └── InboxNotInstalled         the table of the inbox is missing
├── ClosedError                   something was used after `close()`
├── DeadlineExceeded              the time given to `send` is over (a TimeoutError)
│   └── HandlerOverran            a handler had not finished by then
├── PermanentError                raised by a handler: another attempt is of no use
├── TemporaryError                raised by a handler: a later attempt may succeed
├── IdempotencyKeyConflict        an idempotency key came with another request
├── EventCycle                    events raise each other in a cycle
├── EventsFailed                  the request succeeded; event handlers or publishing failed (an ExceptionGroup)
├── SerializationError
│   ├── EventNotSerializable      an event cannot become bytes
│   ├── EventTooLarge             an event is larger than an outbox takes
│   ├── MalformedMessage          bytes cannot become an event
│   └── UnknownMessageType        no bound event has this name
├── OutboxUnavailable             the database of the outbox cannot be reached
├── InboxUnavailable              the database of the inbox cannot be reached
├── TransactionLost               the commit would have been a silent rollback
├── PublishFailed                 some messages of a batch were not confirmed
└── DeliveryError                 why one message was not confirmed
    ├── MessageRejected           the message is at fault: it will never be accepted as it is
    └── BrokerUnavailable         the broker is at fault: outcome unknown, send it again later
```

The message of an exception names the thing and the way out. Facts are attributes.
All exceptions survive pickling, for Celery and multiprocessing.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

import attrs

if TYPE_CHECKING:
    from cqrs_sync.broker import OutgoingMessage

#: Seconds for which `TemporaryError` may ask: every database can add so many to the present moment.
_LONGEST_AFTER = 1_000_000_000


class CqrsError(Exception):
    """The base of every exception this library raises."""

    #: Whether another attempt may succeed later.
    retryable: bool = False


class ConfigurationError(CqrsError):
    """The application is wired wrongly; the message says what to change."""


class InvalidBinding(ConfigurationError):
    """A handler or a message type cannot be bound."""


class AlreadyBound(InvalidBinding):
    """A request has a handler already, or an event has this handler already."""


class InvalidMessage(ConfigurationError):
    """A message class lacks a constructor, a topic, a stable name or the field of its key."""


class HandlerNotFound(ConfigurationError):
    """No handler is bound to the request, or no durable handler has this name."""


class HandlerNotBuilt(ConfigurationError):
    """The container could not build a handler; the cause says why."""


class HandlerReused(ConfigurationError):
    """
    The container returned a handler that keeps its own list of events a second time.

    Its events would leak from one request into the next.
    """


class BrokerNotConfigured(ConfigurationError):
    """A notification event was raised, and the mediator has no broker."""


class RaisedOutsideHandler(ConfigurationError, RuntimeError):
    """`raise_event` was called where no handler runs: nothing would dispatch the event."""


class NotInTransaction(ConfigurationError):
    """
    An event needs the outbox, and no transaction is open.

    Without a transaction, the change and its event could not be committed together.
    """


class OutboxNotInstalled(ConfigurationError):
    """The tables of the outbox are missing, or are those of another version."""


class InboxNotInstalled(ConfigurationError):
    """The table of the inbox is missing, or is that of another version."""


class ClosedError(CqrsError):
    """Something was used after `close()`."""


class DeadlineExceeded(CqrsError, TimeoutError):
    """The time given to `send` is over."""


class HandlerOverran(DeadlineExceeded):
    """
    A handler had not finished at the deadline. It was not stopped.

    The message contains its stack at the deadline.
    """


class PermanentError(CqrsError):
    """
    Raise it, or a subclass, from a handler if another attempt is of no use.

    A received message, or the event of a durable handler, becomes a dead letter at once. `RetryMiddleware` does not
    retry.
    """


class TemporaryError(CqrsError):
    """
    Raise it, or a subclass, from a handler if something it needs is not available now.

    The next attempt comes after `after` at the earliest, if that is given: seconds, or a timedelta. A consumer counts
    no attempt while no other message succeeds either.
    """

    retryable = True
    #: Seconds until the next attempt, at the earliest; None if the retry policy alone says when.
    after: float | None = None

    def __init__(self, *args: object, after: float | timedelta | None = None) -> None:
        """Raise TypeError or ValueError for an `after` that is no time, or is below 0, and for a number alone."""
        if len(args) == 1 and isinstance(args[0], (int, float, timedelta)):
            raise TypeError(f"write {type(self).__name__}(after=...): {args[0]!r} would be the text of the error")
        super().__init__(*args)
        if isinstance(after, timedelta):
            after = after.total_seconds()
        if after is not None and (isinstance(after, bool) or not isinstance(after, (int, float))):
            raise TypeError(f"after= must be a number of seconds or a timedelta, not {after!r}")
        if after is not None and not 0 <= after <= _LONGEST_AFTER:
            raise ValueError(f"after= must be a number of seconds from 0 to {_LONGEST_AFTER:,}, not {after!r}")
        self.after = after

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args, self.__dict__


class IdempotencyKeyConflict(CqrsError):
    """An idempotency key came a second time, with another request."""


class EventCycle(CqrsError):
    """Events raise each other in a cycle."""


class SerializationError(CqrsError):
    """An event cannot become bytes, or bytes cannot become an event."""


class EventNotSerializable(SerializationError):
    """An event cannot become bytes."""


class EventTooLarge(SerializationError):
    """An event is larger than the outbox accepts."""


class MalformedMessage(SerializationError):
    """Bytes cannot become the event they claim to be."""


class UnknownMessageType(SerializationError):
    """No event with this name is bound here."""


class OutboxUnavailable(CqrsError):
    """The database of the outbox cannot be reached, or is too busy; the cause says why."""

    retryable = True


class InboxUnavailable(CqrsError):
    """The database of the inbox cannot be reached, or is too busy; the cause says why."""

    retryable = True


class TransactionLost(CqrsError):
    """
    A transaction was lost before its commit: none of its changes are in the database.

    The database, the session or Django would have rolled it back silently, and the caller would have taken it for
    committed.
    """


class DeliveryError(CqrsError):
    """Why one message was not confirmed."""


class MessageRejected(DeliveryError):
    """The message is at fault: sending it again as it is cannot succeed."""


class BrokerUnavailable(DeliveryError):
    """
    The broker or the connection is at fault. It is unknown whether the message arrived.

    Send it again: receivers that skip known ids handle it once.
    """

    retryable = True


# Without slots: pickling a slotted class loses its notes.
@attrs.define(eq=False, slots=False)
class PublishFailed(CqrsError):
    """
    Some messages of a batch were not confirmed; all others were.

    `failures` pairs each message with its DeliveryError.
    """

    failures: Sequence[tuple[OutgoingMessage, DeliveryError]]

    @property
    def retryable(self) -> bool:  # type: ignore[override]
        """Whether every message that failed may succeed later."""
        return all(error.retryable for _, error in self.failures)

    def __str__(self) -> str:
        shown = "; ".join(
            f"{message.type} {message.id} to {message.topic!r}: {error}" for message, error in self.failures[:3]
        )
        more = f"; and {len(self.failures) - 3} more" if len(self.failures) > 3 else ""
        return f"{len(self.failures)} message(s) not confirmed: {shown}{more}"


@attrs.frozen
class Failure:
    """One thing that failed after the request's handler had succeeded."""

    #: The name of the handler, or "publish".
    handler: str
    #: The event it handled, None for "publish".
    event: Any
    error: BaseException


class EventsFailed(CqrsError, ExceptionGroup[Exception]):
    """
    The request's handler succeeded; then event handlers or publishing failed.

    `failures` has one entry for each failure, `response` is the request's response. Write
    `except EventsFailed as failed`: `except*` catches the single errors, and type checkers then know no `response`.
    """

    response: Any
    failures: tuple[Failure, ...]

    def __new__(
        cls,
        message: str,
        errors: Sequence[Exception],
        /,
        response: Any = None,
        failures: Sequence[Failure] = (),
    ) -> Self:
        """Make the group, with the response and the failures."""
        group = super().__new__(cls, message, errors)
        group.response = response
        group.failures = tuple(failures)
        return group

    def __init__(self, *_: Any) -> None:
        # The base class takes two arguments and `__new__` has used them all.
        pass

    def derive(self, errors: Sequence[Exception], /) -> EventsFailed:  # type: ignore[override]
        """Keep the response and the failures when `except*` or `split` takes the group apart."""
        leaves = {id(leaf) for error in errors for leaf in _leaves(error)}
        kept = [failure for failure in self.failures if any(id(leaf) in leaves for leaf in _leaves(failure.error))]
        return EventsFailed(self.message, errors, self.response, kept)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.exceptions), self.__dict__


def _leaves(error: BaseException) -> list[BaseException]:
    """Return the single errors of a group. Splitting it makes new groups of the same errors."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    return [error]


#: Characters to which stores cut an error, and a reason.
LONGEST_ERROR, LONGEST_REASON = 2000, 255
#: The folder of this library.
_OWN = f"{os.path.dirname(__file__)}{os.sep}"  # noqa: PTH120 -- as the names of files in tracebacks are written


def check_above_zero(**numbers: Any) -> None:
    """Raise ConfigurationError, with its name, for anything but a whole number above 0."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ConfigurationError(f"{name} must be a whole number above 0, not {number!r}")


def describe_error(error: BaseException | str) -> str:
    """Return the type and message of an error, as a store can keep it; for an EventsFailed, those of each handler."""
    return _printable(_words(error))[:LONGEST_ERROR]


def fingerprint(error: BaseException | str) -> str:
    """Return what an error has in common with others of its kind: no numbers, ids or quotations."""
    line = _printable(_words(error).strip().partition("\n")[0])
    line = re.sub(r"'[^']*'|\"[^\"]*\"|\b[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}\b|\d+", "…", line)
    return line[:LONGEST_REASON]


def describe_with_location(error: BaseException) -> str:
    """Return one line with the error and where it was raised: the message alone rarely says what to fix."""
    line = str(error).strip().partition("\n")[0]
    frames = traceback.extract_tb(error.__traceback__)
    # The fault is in the caller's code, not in the library.
    frame = next((each for each in reversed(frames) if not each.filename.startswith(_OWN)), None)
    location = "" if frame is None else f" (line {frame.lineno} of {frame.filename})"
    # The message of a SyntaxError has its location; the frames are those of the import.
    return f"{type(error).__name__}: {line}{'' if isinstance(error, SyntaxError) else location}"


def _printable(text: str) -> str:
    """Escape the characters of a text that a terminal or a database cannot take."""
    return "".join(each if each.isprintable() or each == "\n" else f"\\x{ord(each):02x}" for each in text)


def _words(error: BaseException | str) -> str:
    if isinstance(error, str):
        return error
    if isinstance(error, EventsFailed) and error.failures:
        return "; ".join(f"{failure.handler}: {_type_and_message(failure.error)}" for failure in error.failures)
    return _type_and_message(error)


def _type_and_message(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 -- an error whose str() fails must not hide where it came from
        return f"{type(error).__name__}, which cannot be shown"
