"""When what failed is tried again, and when it is given up."""

from __future__ import annotations

import enum
import logging
import random
import time
from collections.abc import Mapping
from typing import Any

import attrs

from cqrs_sync.errors import ConfigurationError


class WhenDead(enum.Enum):
    """What a delivery that was given up means for those that come after it with its key."""

    #: They wait until somebody has replayed or discarded it: order is exact.
    BLOCK = "block"
    #: They go on without it, in order. Those in a batch with it may even arrive before its last attempt.
    STEP_OVER = "step over"


@attrs.frozen
class RetryPolicy:
    """
    Exponential back-off with jitter.

    Between attempts there are `first` seconds, `factor` times as many after each
    further one, `ceiling` at most; each pause is with_jitter at random by up to a half,
    so that what failed together does not come back together. After `attempts` it is
    dead. An attempt counts from the moment it begins: one that ended its process as well.
    A broker that cannot be reached costs none.
    """

    attempts: int = attrs.field(default=10)
    first: float = 1.0
    factor: float = 2.0
    ceiling: float = 300.0
    when_dead: WhenDead = WhenDead.BLOCK

    def __attrs_post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 1:
            raise ConfigurationError(f"attempts must be a whole number above 0, not {self.attempts!r}")
        if not (self.first > 0 and self.factor >= 1 and self.ceiling >= self.first):
            raise ConfigurationError(
                "a retry policy needs first > 0, factor >= 1 and ceiling >= first, "
                f"not {self.first!r}, {self.factor!r} and {self.ceiling!r}"
            )
        if not isinstance(self.when_dead, WhenDead):
            raise ConfigurationError(
                f"when_dead must be one of {', '.join(map(str, WhenDead))}, not {self.when_dead!r}"
            )

    def pause(self, attempts: int) -> float | None:
        """Return the seconds until the next attempt, None where there is none."""
        if attempts >= self.attempts:
            return None
        return exponential_delay(attempts, self.first, self.ceiling, self.factor)

    @property
    def blocks(self) -> bool:
        """Whether what is dead holds up what comes after it with its key."""
        return self.when_dead is WhenDead.BLOCK


@attrs.frozen
class Retries:
    """The retry policy of each topic and each durable handler: `targets` by topic or stable name, else `default`."""

    default: RetryPolicy = attrs.field(factory=RetryPolicy)
    targets: Mapping[str, RetryPolicy] = attrs.field(factory=dict)

    def of(self, target: str) -> RetryPolicy:
        """Return the policy of a topic or a durable handler."""
        return self.targets.get(target, self.default)


def exponential_delay(failures: int, first: float, ceiling: float, factor: float = 2.0) -> float:
    """Return the pause after so many failures: `first` seconds, `factor` times as many after each further one."""
    # Beyond this the ceiling has been reached long since, and floats overflow.
    exponent = min(failures - 1, 64)
    return with_jitter(min(ceiling, first * factor**exponent))


def with_jitter(pause: float) -> float:
    """Return a pause that is shorter by up to a half: what failed together is not to come back together."""
    return pause * random.uniform(0.5, 1.0)  # noqa: S311 -- no secret


#: Seconds for which what was said is not said again.
_QUIET = 30.0


class LogThrottle:
    """Tells when something that happens again and again is to be said: at once, and half a minute after that."""

    def __init__(self) -> None:
        self._said: float | None = None
        self._unsaid = 0

    def due(self) -> int | None:
        """
        Return how often it was not said since it was; None where it is not to be said yet.

        Threads that ask at the same moment may both be told to.
        """
        now = time.monotonic()
        if self._said is not None and now - self._said < _QUIET:
            self._unsaid += 1
            return None
        unsaid, self._unsaid, self._said = self._unsaid, 0, now
        return unsaid


class Backoff:
    """
    Something that fails, until it succeeds again.

    Between attempts there are `first` seconds, twice as many after each further failure, `ceiling` at most; each
    pause is with_jitter at random, by up to a half.
    """

    def __init__(self, logger: logging.Logger, first: float, ceiling: float) -> None:
        self._logger = logger
        self._first, self._ceiling = first, ceiling
        self._seldom = LogThrottle()
        #: How often it has failed since it last succeeded.
        self.failures = 0

    def failed(self, level: int, words: str, *arguments: object, exc_info: Any = None) -> float:
        """Note a failure, and say so unless that was said a moment ago; returns the seconds until the next attempt."""
        self.failures += 1
        unsaid = self._seldom.due()
        if unsaid is not None:
            text = f"{words}{suppressed_suffix(unsaid)}"
            self._logger.log(level, text, *arguments, exc_info=exc_info, stacklevel=2)
        return exponential_delay(self.failures, self._first, self._ceiling)

    def is_over(self) -> bool:
        """Note that it succeeds; True where it failed before. The next failure is said at once."""
        if not self.failures:
            return False
        self.failures = 0
        self._seldom = LogThrottle()
        return True


def suppressed_suffix(unsaid: int) -> str:
    """Return what to add to a line that was held back so often."""
    return f" (and {unsaid} more like it)" if unsaid else ""
