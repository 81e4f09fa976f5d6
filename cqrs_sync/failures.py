"""What a failed event handler means for the caller."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

from cqrs_sync.errors import EventsFailed, Failure

logger: logging.Logger = logging.getLogger(__name__)


class FailurePolicy(Protocol):
    """Decides what a failed event handler means for the other handlers and for the caller."""

    def should_continue(self, failure: Failure, /) -> bool:
        """Return whether handlers that have not started yet still run. Any thread may call it."""

    def report(self, failures: Sequence[Failure], response: Any, /) -> None:
        """Raise an exception for the caller of `send`, or return. Called once, after all handlers."""


class CollectFailures:
    """Every handler runs; all failures come back together as EventsFailed. The default."""

    def should_continue(self, failure: Failure, /) -> bool:
        """Return True: a failure of one handler is no reason to stop the others."""
        del failure
        return True

    def report(self, failures: Sequence[Failure], response: Any, /) -> None:
        """Raise EventsFailed."""
        raise events_failed(failures, response)


class FailFast:
    """The first failure keeps handlers that have not started from starting, and comes back as EventsFailed."""

    def should_continue(self, failure: Failure, /) -> bool:
        """Return False."""
        del failure
        return False

    def report(self, failures: Sequence[Failure], response: Any, /) -> None:
        """Raise EventsFailed."""
        raise events_failed(failures, response)


class LogFailures:
    """Every handler runs; failures are logged and `send` returns. Only unpublished events come back as EventsFailed."""

    def should_continue(self, failure: Failure, /) -> bool:
        """Return True."""
        del failure
        return True

    def report(self, failures: Sequence[Failure], response: Any, /) -> None:
        """Log failures of handlers; raise EventsFailed for events that were not published."""
        log_failures([failure for failure in failures if failure.event is not None])
        unpublished = [failure for failure in failures if failure.event is None]
        if unpublished:
            raise events_failed(unpublished, response)


def events_failed(failures: Sequence[Failure], response: Any, what: str = "the request succeeded") -> EventsFailed:
    """Return an EventsFailed with these failures."""
    names = ", ".join(sorted({failure.handler for failure in failures}))
    errors = [failure.error for failure in failures if isinstance(failure.error, Exception)]
    return EventsFailed(f"{what}, but then these failed: {names}", errors, response, failures)


def log_failures(failures: Sequence[Failure]) -> None:
    """Log failures that no caller gets, each with its traceback."""
    for failure in failures:
        if failure.event is not None:
            event = type(failure.event).__qualname__
            logger.error("%s failed while handling %s", failure.handler, event, exc_info=failure.error)
        elif failure.handler == "publish":
            logger.error("publishing notification events failed", exc_info=failure.error)
        else:
            logger.error("%s failed", failure.handler, exc_info=failure.error)
