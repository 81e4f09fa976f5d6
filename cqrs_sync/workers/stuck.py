"""Name what was not finished, and show where it is."""

from __future__ import annotations

import logging
import threading
from collections import Counter

from cqrs_sync.threads.running import running_calls
from cqrs_sync.threads.watchdog import stacks_of
from cqrs_sync.workers.held import Held

logger = logging.getLogger(__name__)


def tell_of_what_is_stuck(held: Held) -> None:
    """Name handlers and topics that were not settled within the grace, and log the stacks of their threads."""
    messages: Counter[str] = Counter()
    for each in held.under_way():
        if each.handler is None:
            messages[each.target] += 1
        else:
            logger.error(
                "the handler %s was not finished within the grace: %s %s, attempt %d; another process runs it again",
                *(each.handler, each.message.type, each.message.id, each.attempts),
            )
    for topic, count in messages.items():
        logger.error(
            "%d message(s) for %s were not settled within the grace; another process publishes them again",
            *(count, topic),
        )
    for name, stack in _stacks():
        logger.error("the thread %s is left, at:\n%s", name, stack)


def _stacks() -> list[tuple[str, str]]:
    """Return the stacks of the relay's own threads, and of those in which its handlers run, by their names."""
    running = running_calls.threads()
    names = {
        thread.ident: thread.name
        for thread in threading.enumerate()
        if thread.ident is not None and (thread.ident in running or thread.name.startswith("cqrs-relay-"))
    }
    return [(names[thread], stack) for thread, stack in stacks_of(names).items()]
