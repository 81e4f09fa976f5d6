"""How a consumer is, for those who watch its process, and what to say of what it could not finish."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import attrs

from cqrs_sync.consumer import Consumer, Health, InFlightMessage
from cqrs_sync.threads.running import running_calls
from cqrs_sync.threads.watchdog import stacks_of

logger = logging.getLogger(__name__)

#: Characters of what senders have made up that are shown.
_SHOWN = 100


@attrs.frozen
class Running:
    """A message whose handlers run."""

    type: str
    id: str
    #: Those that are bound to its type.
    handlers: tuple[str, ...]
    #: For so long.
    seconds: float


@attrs.frozen
class Vitals:
    """How a consumer is, at one moment."""

    #: `receiving`, `waiting` for the broker, `ending`, `ended`, or `stuck`.
    state: str
    is_alive: bool
    is_ready: bool
    trouble: str
    received: int
    handled: int
    delayed: int
    dead: int
    dropped: int
    in_hand: int
    running: int
    #: What runs for the longest time.
    oldest: Running | None

    def facts(self) -> dict[str, Any]:
        """Return it as what becomes JSON."""
        facts = attrs.asdict(self)
        oldest = facts["oldest"]
        if oldest is not None:
            oldest["seconds"] = round(oldest["seconds"], 3)
        return {"state": facts.pop("state"), "alive": facts.pop("is_alive"), "ready": facts.pop("is_ready"), **facts}


class Lookout:
    """Looks at a consumer; any thread may ask."""

    def __init__(self, consumer: Consumer, stall: float, overdue: Callable[[], str]) -> None:
        """Take what it does not know from `overdue`: what is wrong with single handlers of one that is alive."""
        self._consumer = consumer
        self._stall = stall
        self._overdue = overdue
        #: It was told to end, and it has.
        self.is_ending = self.has_ended = False

    def look(self) -> Vitals:
        """Tell how the consumer is."""
        consumer, counts = self._consumer, self._consumer.counts
        health = consumer.health(self._stall)
        running = sorted(consumer.running(), key=lambda item: item.begun)
        return Vitals(
            state=self._state(is_alive=health.is_alive, is_ready=health.is_ready),
            is_alive=health.is_alive,
            is_ready=health.is_ready and not self.is_ending,
            trouble="" if self.has_ended else self._trouble(health),
            received=consumer.received,
            handled=counts.handled,
            delayed=counts.delayed,
            dead=counts.dead,
            dropped=counts.dropped,
            in_hand=consumer.in_flight_count,
            running=len(running),
            oldest=running_of(consumer, running[0]) if running else None,
        )

    def _trouble(self, health: Health) -> str:
        # One that is stuck has said it all.
        overdue = self._overdue() if health.is_alive else ""
        return "; ".join(filter(None, (health.trouble, overdue)))

    def _state(self, *, is_alive: bool, is_ready: bool) -> str:
        if self.has_ended:
            return "ended"
        if not is_alive:
            return "stuck"
        if self.is_ending:
            return "ending"
        return "receiving" if is_ready else "waiting"


def running_of(consumer: Consumer, item: InFlightMessage) -> Running:
    """Tell what runs."""
    attributes, events = item.delivery.message.attributes, consumer.mediator.wiring.event_map
    name = attributes.get("type", "?")
    event_type = events.types.get(name)
    handlers = () if event_type is None else tuple(binding.name for binding in events.find(event_type))
    return Running(name[:_SHOWN], attributes.get("id", "?")[:_SHOWN], handlers, time.monotonic() - item.begun)


def tell_of_what_runs(consumer: Consumer, stall: float) -> None:
    """
    Name the handlers and messages that were not finished, and log the stacks of their threads.

    The thread that receives is shown where it is at fault: it hangs for more than `stall` seconds, or no handler runs.
    """
    running = consumer.running()
    for item in running:
        told = running_of(consumer, item)
        logger.error(
            "%s was not finished in time: %r %r, for %.1f s; it comes again, to whoever receives then",
            *(", ".join(told.handlers) or "a message", told.type, told.id, told.seconds),
        )
    is_intake_at_fault = not running or consumer.health(stall).is_receiver_hung
    names = {thread.ident: thread.name for thread in threading.enumerate() if thread.ident is not None}
    shown = running_calls.threads()
    if is_intake_at_fault:
        shown |= {thread for thread, name in names.items() if name == "cqrs-receiver"}
    for thread, stack in stacks_of(shown & names.keys()).items():
        logger.error("the thread %s is left, at:\n%s", names[thread], stack)
