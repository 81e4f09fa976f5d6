"""
What surrounds the handler that is running: what it raises, what its events carry, how long it may take.

All of it lives in `contextvars`, so it follows a call on to the pool and never
crosses from one request into another.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

from cqrs_sync.errors import DeadlineExceeded
from cqrs_sync.messages import Event

#: Attributes (as in CloudEvents) that every message published from here carries.
Flow: TypeAlias = "dict[str, str]"
#: An event, and the event whose handler raised it, and so on up to the first.
Lineage: TypeAlias = "tuple[Event, Lineage | None]"
#: The events raised so far by the handler that runs, its flow, and the event it handles.
Scope: TypeAlias = "tuple[list[Event], Flow, Lineage | None]"

# One variable, not three: every request sets it, and setting is what costs.
current: ContextVar[Scope | None] = ContextVar("cqrs_sync.current", default=None)
_deadline: ContextVar[float | None] = ContextVar("cqrs_sync.deadline", default=None)
#: Returns the deadline of this context, by `time.monotonic`; None if it has none.
deadline_at = _deadline.get
#: Sets it in one step: a signal handler could leave a block in the middle.
set_deadline = _deadline.set

#: What follows from a received message carries these on from it.
_TRACE = ("traceparent", "tracestate")
# What CloudEvents or the serializer says of a message itself.
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
    Raise an event from the handler that is running, before it returns.

    It is dispatched after the handler has returned, and dropped when the handler
    fails. For handlers that are plain functions, and for code below a handler.
    Raises RuntimeError outside a handler.
    """
    scope = current.get()
    (outside if scope is None else scope[0]).append(event)


@contextmanager
def annotate(**attributes: str) -> Iterator[None]:
    """
    Put attributes on every message published from this block: put it around `send`.

    Messages of a handler's events are made when the handler has returned, so a block
    inside a handler is left by then. For a correlation id, a tenant, a trace context:
    names as CloudEvents wants them, lower-case letters and digits, 20 at most.
    `correlationid` is made where nobody gives one.
    """
    for name, value in attributes.items():
        if name in _RESERVED or not (name.isascii() and name.isalnum() and name.islower() and len(name) <= 20):
            raise ValueError(f"{name!r} cannot be an attribute: use lower-case letters and digits, 20 at most")
        if not isinstance(value, str):
            raise TypeError(f"the attribute {name!r} must be a string, not {value!r}")
    scope = current.get()
    raised, flow, lineage = scope if scope is not None else (outside, {}, None)
    # The correlation id is made late; without this, code after the block would get another one.
    correlation_of(flow)
    token = current.set((raised, {**flow, **attributes}, lineage))
    try:
        yield
    finally:
        current.reset(token)


def follow(attributes: Mapping[str, str]) -> None:
    """
    Let what is raised from here on follow from a received message: its correlation and trace, its id as cause.

    Whoever calls it sets `current` back to what it was. Not a block: each received message pays for it.
    """
    cause = attributes["id"]
    before = current.get()
    raised, around, lineage = before if before is not None else (outside, {}, None)
    # Where it has no correlation, all that follows from it is known by it: making one up would cost more than this.
    flow = {**around, "causationid": cause, "correlationid": attributes.get("correlationid", cause)}
    for name in _TRACE:
        if name in attributes:
            flow[name] = attributes[name]
    current.set((raised, flow, lineage))


@contextmanager
def resuming(attributes: Mapping[str, str]) -> Iterator[None]:
    """Let what is raised in this block follow from a stored event of ours: all that it carried, its id as cause."""
    kept = {name: value for name, value in attributes.items() if name not in _RESERVED and name != "causationid"}
    with annotate(**kept, causationid=attributes["id"]):
        yield


def carried() -> Mapping[str, str]:
    """Return the attributes that messages published from here carry."""
    scope = current.get()
    return {} if scope is None else dict(scope[1])


def correlation_of(flow: Flow) -> str:
    """Return the correlation id of a flow, made at its first use, the same for all its threads."""
    known = flow.get("correlationid")
    return known if known is not None else flow.setdefault("correlationid", str(uuid.uuid4()))


def nearest(timeout: float) -> float:
    """Do what `within` does, and raise ValueError for a timeout that is none."""
    # The same words for NaN, which no comparison is true of, and for what no lock can wait.
    if not 0 < timeout <= threading.TIMEOUT_MAX:
        raise ValueError(f"a timeout is a number of seconds above 0 and below 292 years, not {timeout!r}")
    return within(timeout)


def within(timeout: float) -> float:
    """Return the moment that `timeout` seconds are over, or that of the deadline around, whichever is first."""
    until = time.monotonic() + timeout
    outer = _deadline.get()
    return until if outer is None else min(until, outer)


@contextmanager
def deadline(timeout: float) -> Iterator[None]:
    """Let nothing in this block wait longer than `timeout` seconds; the nearest deadline counts."""
    token = _deadline.set(nearest(timeout))
    try:
        yield
    finally:
        _deadline.reset(token)


@contextmanager
def allowing(timeout: float) -> Iterator[None]:
    """Give this block `timeout` seconds, whatever the deadline around it."""
    token = _deadline.set(time.monotonic() + timeout)
    try:
        yield
    finally:
        _deadline.reset(token)


def forget_deadline() -> None:
    """Let this context have no deadline: nobody waits for it."""
    _deadline.set(None)


class _Outside(list[Event]):
    """Where events go that nobody would ever see."""

    def append(self, event: Event, /) -> None:
        raise RuntimeError(
            f"{type(event).__qualname__} was raised outside a handler; "
            "in a thread of your own, run it in a copy of the handler's context (contextvars.copy_context)"
        )


outside = _Outside()


def time_left() -> float | None:
    """
    Return the seconds that are left until the deadline, None where there is none.

    For handlers that can give up or shorten their own waits. Raises
    DeadlineExceeded when nothing is left.
    """
    until = _deadline.get()
    if until is None:
        return None
    left = until - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded("the deadline of this request is over")
    return left


def reserve(deadline: float) -> float:
    """Return the seconds of the time until a deadline which are kept for publishing."""
    return min(1.0, max(0.0, deadline - time.monotonic()) / 10)
