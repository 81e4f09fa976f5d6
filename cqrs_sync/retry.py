"""When a failed attempt is made again: retry policies, kinds of errors, circuit breaker, backoff, few log lines."""

from __future__ import annotations

import enum
import logging
import math
import random
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from cqrs_sync.errors import ConfigurationError, CqrsError, PermanentError, TemporaryError, check_above_zero

#: Errors of database drivers that may pass by themselves (PEP 249).
_TRANSIENT = {"OperationalError", "InterfaceError"}


class OnDeadLetter(enum.Enum):
    """What a dead letter of the outbox means for later deliveries with its key."""

    #: They wait until an operator replays or discards it. The order is exact.
    BLOCK = "block"
    #: They are delivered without it, in order. Those of its batch may even arrive before its last attempt.
    SKIP = "skip"


def _seconds(delays: Iterable[float] | None) -> tuple[float, ...] | None:
    return None if delays is None else tuple(delays)


def _most_attempts(policy: RetryPolicy) -> int:
    return 10 if policy.delays is None else 1 + len(policy.delays)


@attrs.frozen
class RetryPolicy:
    """
    How often something is attempted, and how many seconds pass between two attempts.

    The delays grow: `first` seconds, `factor` times as many after each further failure, at most `ceiling`.
    `RetryPolicy(delays=(0.1, 1.0, 10.0))` names them instead; the number of attempts is then one more. Jitter makes
    each delay shorter by up to a half, so that retries spread. An attempt counts from its start, so a crash counts.

    The outbox, the consumer and `RetryMiddleware` use the same policy. After the last attempt a delivery or message
    is a dead letter, and the middleware raises the last error. Only the outbox reads `on_dead_letter`.
    """

    delays: tuple[float, ...] | None = attrs.field(default=None, kw_only=True, converter=_seconds)
    attempts: int = attrs.field(default=attrs.Factory(_most_attempts, takes_self=True))
    first: float = 1.0
    factor: float = 2.0
    ceiling: float = 300.0
    on_dead_letter: OnDeadLetter = OnDeadLetter.BLOCK

    def __attrs_post_init__(self) -> None:
        check_above_zero(attempts=self.attempts)
        numbers = all(isinstance(each, (int, float)) for each in (self.first, self.factor, self.ceiling))
        if not (numbers and self.first > 0 and self.factor >= 1 and math.inf > self.ceiling >= self.first):
            raise ConfigurationError(
                "a retry policy needs first > 0, factor >= 1 and ceiling >= first, "
                f"not {self.first!r}, {self.factor!r} and {self.ceiling!r}"
            )
        if not isinstance(self.on_dead_letter, OnDeadLetter):
            raise ConfigurationError(
                f"on_dead_letter must be one of {', '.join(map(str, OnDeadLetter))}, not {self.on_dead_letter!r}"
            )
        if self.delays is not None:
            self._check(self.delays)

    def _check(self, delays: tuple[float, ...]) -> None:
        if not all(isinstance(delay, (int, float)) and 0 < delay < math.inf for delay in delays):
            raise ConfigurationError(f"delays must be numbers of seconds above 0, not {delays!r}")
        if self.attempts != 1 + len(delays) or (self.first, self.factor, self.ceiling) != (1.0, 2.0, 300.0):
            raise ConfigurationError(
                "a retry policy has either delays, or attempts, first, factor and ceiling: leave out one of them"
            )

    def base_delay(self, attempts: int) -> float | None:
        """Return the seconds to wait after so many failed attempts, without jitter; None if there is no other one."""
        if attempts >= self.attempts:
            return None
        if self.delays is not None:
            return self.delays[attempts - 1]
        return _exponential(attempts, self.first, self.ceiling, self.factor)

    def delay(self, attempts: int, error: BaseException | None = None) -> float | None:
        """
        Return the seconds to wait after so many failed attempts; None if there is no other one.

        There is none after `PermanentError` either. `TemporaryError(after=...)` makes the delay as long as it asks for.
        """
        seconds = self.base_delay(attempts)
        if seconds is None or (error is not None and is_permanent(error)):
            return None
        return max(with_jitter(seconds), 0.0 if error is None else requested_delay(error))

    @property
    def blocks(self) -> bool:
        """Whether a dead letter holds up later deliveries with its key."""
        return self.on_dead_letter is OnDeadLetter.BLOCK


@attrs.frozen
class RetryPolicies:
    """One retry policy for each topic and durable handler: `targets`, by topic or stable name, otherwise `default`."""

    default: RetryPolicy = attrs.field(factory=RetryPolicy)
    targets: Mapping[str, RetryPolicy] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        # The relay would find out with the first failure.
        if not isinstance(self.targets, Mapping):
            raise ConfigurationError(
                f'targets must be a dict of policies, {{"name": RetryPolicy()}}, not {self.targets!r}'
            )
        for name, policy in {"default": self.default, **self.targets}.items():
            if not isinstance(policy, RetryPolicy):
                raise ConfigurationError(f"the retry policy {name!r} must be a RetryPolicy, not {policy!r}")

    def of(self, target: str) -> RetryPolicy:
        """Return the policy of a topic or a durable handler."""
        return self.targets.get(target, self.default)


def is_permanent(error: BaseException) -> bool:
    """Tell whether another attempt is of no use: `PermanentError`, or a group of nothing else."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_permanent, error.exceptions))
    return isinstance(error, PermanentError)


def is_transient(error: BaseException) -> bool:
    """Tell whether an error may pass without a change to the message: something is away, too slow, or wired wrongly."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_transient, error.exceptions))
    if isinstance(error, CqrsError):
        # The next deploy repairs an application that is wired wrongly: the message is not at fault.
        return isinstance(error, (TemporaryError, ConfigurationError)) or error.retryable
    return isinstance(error, OSError) or any(base.__name__ in _TRANSIENT for base in type(error).__mro__)


def requested_delay(error: BaseException) -> float:
    """Return how many seconds an error asks to wait: `TemporaryError(after=...)`, the longest of a group."""
    if isinstance(error, BaseExceptionGroup):
        return max(map(requested_delay, error.exceptions))
    return (error.after or 0.0) if isinstance(error, TemporaryError) else 0.0


def exponential_delay(failures: int, first: float, ceiling: float, factor: float = 2.0) -> float:
    """Return the delay after so many failures, with jitter: `first` seconds, `factor` times as many after each one."""
    return with_jitter(_exponential(failures, first, ceiling, factor))


def _exponential(failures: int, first: float, ceiling: float, factor: float) -> float:
    try:
        return min(ceiling, first * float(factor) ** (failures - 1))
    except OverflowError:
        return ceiling


def with_jitter(delay: float) -> float:
    """Return a delay that is shorter by up to a half, so that retries spread."""
    return delay * random.uniform(0.5, 1.0)  # noqa: S311 -- no secret


class CircuitBreaker:
    """
    Stops attempts after `threshold` failures in a row, until one attempt succeeds.

    While it is open it allows one attempt after each delay: `first` seconds, twice as many after each further
    failure, at most `ceiling`, with jitter. Safe from any thread.
    """

    def __init__(self, first: float, ceiling: float, *, threshold: int = 1) -> None:
        self._first, self._ceiling = first, ceiling
        self._threshold = threshold
        self._lock = threading.Lock()
        self._blocked_until = 0.0
        #: Failures since the last success.
        self.failures: int = 0

    @property
    def is_open(self) -> bool:
        """Whether only one attempt at a time is allowed."""
        return self.failures >= self._threshold

    def delay(self) -> float:
        """Return the seconds until an attempt is allowed, 0 if it is allowed now."""
        return max(0.0, self._blocked_until - time.monotonic())

    def record_failure(self) -> bool:
        """Count a failure; returns whether it opened the circuit."""
        with self._lock:
            self.failures += 1
            if self.is_open:
                delay = exponential_delay(self.failures - self._threshold + 1, self._first, self._ceiling)
                self._blocked_until = time.monotonic() + delay
            return self.failures == self._threshold

    def record_success(self) -> bool:
        """Forget all failures; returns whether that closed the circuit."""
        if not self.failures:
            return False
        with self._lock:
            was_open, self.failures, self._blocked_until = self.is_open, 0, 0.0
        return was_open

    def postpone(self, seconds: float) -> None:
        """Allow no attempt for so many seconds. That counts no failure."""
        self._blocked_until = time.monotonic() + seconds


#: Seconds in which the same line is not logged twice.
_QUIET = 30.0


class LogThrottle:
    """Tells when to log something that happens again and again: at once, and then every half a minute."""

    def __init__(self) -> None:
        self._logged_at: float | None = None
        self._suppressed = 0

    def due(self) -> str | None:
        """
        Return the end of the line: how many were suppressed since the last one. None if this one is suppressed as well.

        Two threads that ask at the same moment may both be told to log.
        """
        now = time.monotonic()
        if self._logged_at is not None and now - self._logged_at < _QUIET:
            self._suppressed += 1
            return None
        suppressed, self._suppressed, self._logged_at = self._suppressed, 0, now
        return f" (and {suppressed} more like it)" if suppressed else ""


class Backoff:
    """
    Delays between the attempts at something that fails, with few log lines.

    The first delay is `first` seconds; each further failure doubles it up to `ceiling`. Jitter makes each shorter by
    up to a half.
    """

    def __init__(self, logger: logging.Logger, first: float, ceiling: float) -> None:
        self._logger = logger
        self._first, self._ceiling = first, ceiling
        self._throttle = LogThrottle()
        #: Failures since the last success.
        self.failures: int = 0

    def record_failure(self, level: int, message: str, *arguments: object, exc_info: Any = None) -> float:
        """Count a failure, and log it if the last line is half a minute old; returns the seconds to wait."""
        self.failures += 1
        suffix = self._throttle.due()
        if suffix is not None:
            text = message + suffix
            self._logger.log(level, text, *arguments, exc_info=exc_info, stacklevel=2)
        return exponential_delay(self.failures, self._first, self._ceiling)

    def record_success(self) -> bool:
        """Forget all failures; returns whether there were any. The next failure is logged at once."""
        if not self.failures:
            return False
        self.failures = 0
        self._throttle = LogThrottle()
        return True
