"""When what failed is tried again, and when it is given up."""

from __future__ import annotations

import enum
import random
from collections.abc import Mapping

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
    further one, `ceiling` at most; each pause is shortened at random by up to a half,
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
        return grown(attempts, self.first, self.ceiling, self.factor)

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


def grown(failures: int, first: float, ceiling: float, factor: float = 2.0) -> float:
    """Return the pause after so many failures: `first` seconds, `factor` times as many after each further one."""
    # Beyond this the ceiling has been reached long since, and floats overflow.
    exponent = min(failures - 1, 64)
    return shortened(min(ceiling, first * factor**exponent))


def shortened(pause: float) -> float:
    """Return a pause that is shorter by up to a half: what failed together is not to come back together."""
    return pause * random.uniform(0.5, 1.0)  # noqa: S311 -- no secret
