"""
Every exception of this library, as one tree.

```text
CqrsError
├── ConfigurationError            the application is wired wrongly
│   ├── InvalidBinding            this cannot be bound to that
│   │   └── AlreadyBound          a request has one handler
│   ├── InvalidMessage            a message class lacks what it needs
│   ├── HandlerNotFound           nothing is bound to this request
│   ├── HandlerNotBuilt           the container could not build a handler
│   ├── HandlerReused             events of one request would leak into the next
│   ├── BrokerNotConfigured       a notification event has nowhere to go
│   ├── NotInTransaction          an event is to be kept, and no transaction is open
│   ├── OutboxNotInstalled        the tables of the outbox are not there
│   └── InboxNotInstalled         the table of the inbox is not there
├── Closed                        it was used after `close()`
├── DeadlineExceeded              the time given to `send` is over (a TimeoutError)
│   └── HandlerOverran            a handler was not finished by then
├── Fatal                         raised by a handler: trying again is of no use
├── Retryable                     raised by a handler: it will work, later
├── AlreadyUsed                   an idempotency key came with another request
├── EventCycle                    events raise each other without end
├── EventsFailed                  what came after the response failed (an ExceptionGroup)
├── SerializationError
│   ├── EventNotSerializable      an event cannot become bytes
│   ├── EventTooLarge             an event is larger than an outbox takes
│   ├── MalformedMessage          bytes cannot become an event
│   └── UnknownMessageType        no bound event has this name
├── OutboxUnavailable             the database of the outbox cannot be reached
├── InboxUnavailable              the database of the inbox cannot be reached
├── TransactionLost               what was to be committed would have been rolled back, without a word
├── PublishFailed                 some messages of a batch were not confirmed
└── DeliveryError                 why one message was not confirmed
    ├── MessageRejected           the message is at fault: never send it again as it is
    └── BrokerUnavailable         the broker is: outcome unknown, send it again later
```

A message of an exception names the thing and the way out. Facts are attributes.
All of them survive pickling, for Celery and multiprocessing.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import attrs

if TYPE_CHECKING:
    from cqrs_sync.broker import OutgoingMessage


class CqrsError(Exception):
    """The base of every exception this library raises."""

    #: Whether doing the same again later may succeed.
    retryable: bool = False


class ConfigurationError(CqrsError):
    """The application is wired wrongly; the message says what to change."""


class InvalidBinding(ConfigurationError):
    """This cannot be bound to that."""


class AlreadyBound(InvalidBinding):
    """A request has one handler, and an event handler is bound to an event once."""


class InvalidMessage(ConfigurationError):
    """A message class lacks what it needs, such as a topic or a stable name."""


class HandlerNotFound(ConfigurationError):
    """Nothing is bound to this request."""


class HandlerNotBuilt(ConfigurationError):
    """The container could not build a handler; the cause says why."""


class HandlerReused(ConfigurationError):
    """
    A handler that keeps its own list of events was handed out twice.

    Its events would leak from one request into the next.
    """


class BrokerNotConfigured(ConfigurationError):
    """A notification event has nowhere to go."""


class NotInTransaction(ConfigurationError):
    """
    An event is to be kept in the outbox, and no transaction is open to keep it in.

    Outside of one, what it tells of and the event itself could not be true together.
    """


class OutboxNotInstalled(ConfigurationError):
    """The tables of the outbox are not there, or not as this version needs them."""


class InboxNotInstalled(ConfigurationError):
    """The table of the inbox is not there, or not as this version needs it."""


class Closed(CqrsError):
    """It was used after `close()`."""


class DeadlineExceeded(CqrsError, TimeoutError):
    """The time given to `send` is over."""


class HandlerOverran(DeadlineExceeded):
    """
    A handler was not finished at the deadline; it was not stopped.

    The message holds the stack it was seen with.
    """


class Fatal(CqrsError):
    """
    Raise it, or a subclass, from a handler if another attempt is of no use.

    A received message, or the event of a durable handler, becomes a dead letter at once. `RetryMiddleware` does not
    retry.
    """


class Retryable(CqrsError):
    """
    Raise it, or a subclass, from a handler if something it needs is not available now.

    The next attempt comes after `after` seconds at the earliest, if that is given. A consumer counts no attempt
    while no other message succeeds either.
    """

    retryable = True

    def __init__(self, *args: object, after: float | None = None) -> None:
        super().__init__(*args)
        self.after = after

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args, self.__dict__


class AlreadyUsed(CqrsError):
    """An idempotency key came a second time, with another request than the first time."""


class EventCycle(CqrsError):
    """Events raise each other without end."""


class SerializationError(CqrsError):
    """An event and its bytes do not go together."""


class EventNotSerializable(SerializationError):
    """An event cannot become bytes."""


class EventTooLarge(SerializationError):
    """An event is larger than an outbox takes."""


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
    A transaction was to be committed, and had been lost before: nothing that was done in it is there.

    A database, a session, or Django would have rolled it back without a word, and it would be taken for done.
    """


class DeliveryError(CqrsError):
    """Why one message was not confirmed."""


class MessageRejected(DeliveryError):
    """The message is at fault: sending it again as it is cannot succeed."""


class BrokerUnavailable(DeliveryError):
    """
    The broker is at fault, or the way to it: whether the message arrived is unknown.

    Sending it again is safe for receivers that drop ids they have seen.
    """

    retryable = True


# Without slots, since those would leave notes behind when it is pickled.
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
    #: The event it was given, None for "publish".
    event: Any
    error: BaseException


class EventsFailed(CqrsError, ExceptionGroup[Exception]):
    """
    The request succeeded, something that came after it did not.

    Every handler has run and every notification event was given to the broker.
    `response` is what the request's handler returned, `failures` tells which
    handler failed with which event. `except*` reaches the single errors.
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
        """Make the group, with its facts beside it."""
        group = super().__new__(cls, message, errors)
        group.response = response
        group.failures = tuple(failures)
        return group

    def __init__(self, *_: Any) -> None:
        # The base class takes two arguments and `__new__` has used them all.
        pass

    def derive(self, errors: Sequence[Exception], /) -> EventsFailed:  # type: ignore[override]
        """Keep the facts when `except*` or `split` takes the group apart."""
        leaves = {id(leaf) for error in errors for leaf in _leaves(error)}
        kept = [failure for failure in self.failures if any(id(leaf) in leaves for leaf in _leaves(failure.error))]
        return EventsFailed(self.message, errors, self.response, kept)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.exceptions), self.__dict__


def _leaves(error: BaseException) -> list[BaseException]:
    """Return the errors that are no group: taking a group apart makes new groups, of the same leaves."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    return [error]


#: Characters of an error and of a reason that are kept.
LONGEST_ERROR, LONGEST_REASON = 2000, 255
#: Where the files of this library are.
_OWN = f"{os.path.dirname(__file__)}{os.sep}"  # noqa: PTH120 -- as the names of files in tracebacks are written


def describe_error(error: BaseException) -> str:
    """Say what an error is; of an EventsFailed, what each handler has raised."""
    if isinstance(error, EventsFailed) and error.failures:
        return "; ".join(f"{failure.handler}: {_words(failure.error)}" for failure in error.failures)
    return _words(error)


def fingerprint(words: str) -> str:
    """Reduce an error to what it has in common with others: without numbers, ids and quotations."""
    line = printable(words.strip().partition("\n")[0])
    line = re.sub(r"'[^']*'|\"[^\"]*\"|\b[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}\b|\d+", "…", line)
    return line[:LONGEST_REASON]


def describe_with_location(error: BaseException) -> str:
    """Say in one line what an error is, and where it was raised: its message alone seldom names what to mend."""
    line = str(error).strip().partition("\n")[0]
    frames = traceback.extract_tb(error.__traceback__)
    # Whoever gave this library something wrong has nothing to mend in it.
    frame = next((each for each in reversed(frames) if not each.filename.startswith(_OWN)), None)
    place = "" if frame is None else f" (line {frame.lineno} of {frame.filename})"
    # A SyntaxError has its place in the message; the frames are those of whoever wanted to import it.
    return f"{type(error).__name__}: {line}{'' if isinstance(error, SyntaxError) else place}"


def printable(text: str) -> str:
    """Return a text with nothing in it that a terminal or a database would trip over."""
    return "".join(each if each.isprintable() or each == "\n" else f"\\x{ord(each):02x}" for each in text)


def _words(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 -- an error that cannot say what is wrong is no reason to lose its message
        return f"{type(error).__name__}, which cannot be shown"
