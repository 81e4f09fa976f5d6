"""What becomes of failures of event handlers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

from cqrs_sync.errors import EventsFailed, Failure

logger = logging.getLogger(__name__)


class FailurePolicy(Protocol):
    """Decides what a failing event handler means for its siblings and for the caller."""

    def goes_on(self, failure: Failure, /) -> bool:
        """Tell whether handlers that nobody has started are started after this failure; called by any thread."""

    def settle(self, failures: Sequence[Failure], response: Any, /) -> None:
        """Raise what the caller of `send` is to get, or return; called once, when everything is done."""


class Collect:
    """Every handler runs; all failures come back together as EventsFailed. The default."""

    def goes_on(self, failure: Failure, /) -> bool:
        """Go on: a handler is not to blame for its siblings."""
        del failure
        return True

    def settle(self, failures: Sequence[Failure], response: Any, /) -> None:
        """Raise EventsFailed."""
        raise events_failed(failures, response)


class FailFast:
    """The first failure keeps handlers that have not started from starting, and comes back as EventsFailed."""

    def goes_on(self, failure: Failure, /) -> bool:
        """Stop."""
        del failure
        return False

    def settle(self, failures: Sequence[Failure], response: Any, /) -> None:
        """Raise EventsFailed."""
        raise events_failed(failures, response)


class Log:
    """Every handler runs; failures are logged and `send` returns. Only unpublished events come back as EventsFailed."""

    def goes_on(self, failure: Failure, /) -> bool:
        """Go on."""
        del failure
        return True

    def settle(self, failures: Sequence[Failure], response: Any, /) -> None:
        """Log what handlers raised, raise what was not published."""
        log_failures([failure for failure in failures if failure.event is not None])
        unpublished = [failure for failure in failures if failure.event is None]
        if unpublished:
            raise events_failed(unpublished, response)


def events_failed(failures: Sequence[Failure], response: Any, what: str = "the request succeeded") -> EventsFailed:
    """Make the exception that carries these failures."""
    names = ", ".join(sorted({failure.handler for failure in failures}))
    errors = [failure.error for failure in failures if isinstance(failure.error, Exception)]
    return EventsFailed(f"{what}, then failed: {names}", errors, response, failures)


def log_failures(failures: Sequence[Failure]) -> None:
    """Log failures that nobody waits for, each with its traceback."""
    for failure in failures:
        event = "" if failure.event is None else f" with {type(failure.event).__qualname__}"
        logger.error("%s failed%s", failure.handler, event, exc_info=failure.error)
