"""
The context of the running handler: the events it raises, the attributes they carry, its deadline.

It is kept in `contextvars`, so it follows a call to the pool, and never
leaks from one request into another.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import TypeAlias

from cqrs_sync.errors import DeadlineExceeded, RaisedOutsideHandler
from cqrs_sync.messages import Event

#: CloudEvents attributes that all messages published from here carry.
Flow: TypeAlias = "dict[str, str]"
#: An event, and the event whose handler raised it, and so on up to the first.
Lineage: TypeAlias = "tuple[Event, Lineage | None]"
#: The events that the running handler has raised so far, its flow, and the event it handles.
Scope: TypeAlias = "tuple[list[Event], Flow, Lineage | None]"

# One variable, not three: each request sets it, and that costs time.
current: ContextVar[Scope | None] = ContextVar("cqrs_sync.current", default=None)
_deadline: ContextVar[float | None] = ContextVar("cqrs_sync.deadline", default=None)
#: Returns the deadline of this context, by `time.monotonic`; None if it has none.
deadline_at: Callable[[], float | None] = _deadline.get
#: Sets it in one step: a signal handler could leave a block in the middle.
set_deadline: Callable[[float | None], Token[float | None]] = _deadline.set

#: Messages that follow from a received message carry these on.
_TRACE = ("traceparent", "tracestate")
# CloudEvents or the serializer sets these for each message.
_RESERVED = frozenset(
    {
        "data",
        "datacontenttype",
        "dataschema",
        "eventversion",
        "id",
        "partitionkey",
        "source",
        "specversion",
        "subject",
        "time",
        "type",
    }
)


def raise_event(event: Event, /) -> None:
    """
    Raise an event from the running handler, before it returns.

    It is dispatched after the handler has returned, and dropped if the handler fails.
    For handlers that are functions, and for code that handlers call.
    Raises RaisedOutsideHandler where no handler runs.
    """
    scope = current.get()
    (outside if scope is None else scope[0]).append(event)


@contextmanager
def message_attributes(**attributes: str) -> Iterator[None]:
    """
    Add attributes to all messages published from this block. Put it around `send`.

    A block inside a handler has no effect: the messages of its events are made after the handler has returned.
    For a correlation id, a tenant, a trace context. CloudEvents allows lower-case letters and digits in names,
    20 at most. Without a `correlationid`, one is made.
    """
    for name, value in attributes.items():
        if name in _RESERVED or not (name.isascii() and name.isalnum() and name.islower() and len(name) <= 20):
            raise ValueError(f"{name!r} cannot be an attribute: use lower-case letters and digits, 20 at most")
        if not isinstance(value, str):
            raise TypeError(f"the attribute {name!r} must be a string, not {value!r}")
    scope = current.get()
    raised, flow, lineage = scope if scope is not None else (outside, {}, None)
    # Made now: code after the block has to get the same one.
    correlation_of(flow)
    token = current.set((raised, {**flow, **attributes}, lineage))
    try:
        yield
    finally:
        current.reset(token)


def set_cause(attributes: Mapping[str, str]) -> None:
    """
    Let events raised from here on carry the correlation id and trace of a received message, and its id as causation.

    The caller sets `current` back. Not a context manager, because each received message would pay for it.
    """
    cause = attributes["id"]
    before = current.get()
    raised, around, lineage = before if before is not None else (outside, {}, None)
    # Without a correlation id, its own id serves as one: that costs less than making one.
    flow = {**around, "causationid": cause, "correlationid": attributes.get("correlationid", cause)}
    for name in _TRACE:
        if name in attributes:
            flow[name] = attributes[name]
    current.set((raised, flow, lineage))


@contextmanager
def stored_attributes(attributes: Mapping[str, str]) -> Iterator[None]:
    """Let events raised in this block carry the attributes of a stored event, and its id as causation."""
    kept = {name: value for name, value in attributes.items() if name not in _RESERVED and name != "causationid"}
    with message_attributes(**kept, causationid=attributes["id"]):
        yield


def current_attributes() -> Mapping[str, str]:
    """Return the attributes that messages published from here carry."""
    scope = current.get()
    return {} if scope is None else dict(scope[1])


def correlation_id() -> str | None:
    """
    Return the correlation id of all that the running request or message leads to, for log lines and calls to others.

    None outside of handlers, middlewares and `message_attributes` blocks.
    """
    scope = current.get()
    return None if scope is None else correlation_of(scope[1])


def correlation_of(flow: Flow) -> str:
    """Return the correlation id of a flow. The first use makes it, for all threads of the flow."""
    known = flow.get("correlationid")
    return known if known is not None else flow.setdefault("correlationid", str(uuid.uuid4()))


def checked_deadline(timeout: float) -> float:
    """Do what `earliest_deadline` does. Raises ValueError or TypeError for an invalid timeout."""
    # Written so that NaN fails as well, and a time that no lock can wait.
    if not isinstance(timeout, (int, float)):
        raise TypeError(f"a timeout must be a number of seconds, not {timeout!r}")
    if not 0 < timeout <= threading.TIMEOUT_MAX:
        raise ValueError(f"a timeout must be a number of seconds above 0 and below 292 years, not {timeout!r}")
    return earliest_deadline(timeout)


def earliest_deadline(timeout: float) -> float:
    """Return the moment in `timeout` seconds, or the current deadline if that is earlier."""
    until = time.monotonic() + timeout
    outer = _deadline.get()
    return until if outer is None else min(until, outer)


@contextmanager
def deadline(timeout: float) -> Iterator[None]:
    """Let nothing in this block wait longer than `timeout` seconds. Of nested deadlines, the earliest counts."""
    token = _deadline.set(checked_deadline(timeout))
    try:
        yield
    finally:
        _deadline.reset(token)


@contextmanager
def extended_deadline(timeout: float) -> Iterator[None]:
    """Give this block `timeout` seconds, even if the current deadline is earlier."""
    token = _deadline.set(time.monotonic() + timeout)
    try:
        yield
    finally:
        _deadline.reset(token)


def forget_deadline() -> None:
    """Remove the deadline from this context: no caller waits for it."""
    _deadline.set(None)


class _Outside(list[Event]):
    """Refuses events that are raised outside a handler: they would be lost."""

    def append(self, event: Event, /) -> None:
        raise RaisedOutsideHandler(
            f"{type(event).__qualname__} was raised outside a handler: send a command whose handler raises it, or call "
            "mediator.publish(event) inside the transaction. In a thread that a handler has started, run it in a copy "
            "of the handler's context (contextvars.copy_context)"
        )


outside: _Outside = _Outside()


def time_left() -> float | None:
    """
    Return the seconds until the deadline, None if there is none.

    For handlers that can shorten their own waits. Raises DeadlineExceeded if the deadline has passed.
    """
    until = _deadline.get()
    if until is None:
        return None
    left = until - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded("the deadline of this request has passed")
    return left


def reserve(deadline: float) -> float:
    """Return how many of the seconds until a deadline are reserved for publishing."""
    return min(1.0, max(0.0, deadline - time.monotonic()) / 10)
