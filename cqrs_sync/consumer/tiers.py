"""When a received message that failed is tried again, and when it is given up."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable

import attrs

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.retry import with_jitter

#: Seconds an attempt may wait in hand, at most: what comes after it with its key waits for it, and so does a deploy.
_LONGEST_INLINE = 60.0
#: Seconds for which a message of an unknown type is parked, all in all.
PARKED = 86_400


class Unknown(enum.Enum):
    """What becomes of a message of a type that is not bound here."""

    #: It is set aside, and looked at again after the longest delay, for a day: a newer build may know it.
    PARK = "park"
    #: It is dropped: it concerns others.
    ACK = "ack"
    #: It becomes a dead letter.
    DEAD_LETTER = "dead letter"


def _tuple(pauses: Iterable[float]) -> tuple[float, ...]:
    # `tuple` itself says nothing to type checkers of what it takes.
    return tuple(pauses)


@attrs.frozen
class Pause:
    """Seconds until the next attempt, and whether the message stays in hand meanwhile."""

    seconds: float
    is_inline: bool


@attrs.frozen
class Tiers:
    """
    Pauses in seconds between the attempts at one message, first `inline` ones and then `delayed` ones.

    Inline: the message stays in hand, and what comes after it with its key waits, so order is kept. Each of
    these pauses is with_jitter at random by up to a half. Delayed: the broker keeps it for so
    long, meanwhile others go on, those of its key as well: it loses its place. After the
    last attempt it is a dead letter.
    """

    inline: tuple[float, ...] = attrs.field(default=(0.1, 1.0), converter=_tuple)
    delayed: tuple[float, ...] = attrs.field(default=(10.0, 60.0, 600.0), converter=_tuple)

    def __attrs_post_init__(self) -> None:
        for name, pauses in (("inline", self.inline), ("delayed", self.delayed)):
            if not all(isinstance(pause, (int, float)) and 0 < pause < math.inf for pause in pauses):
                raise ConfigurationError(f"{name} pauses are numbers of seconds above 0, not {pauses!r}")
        if any(pause > _LONGEST_INLINE for pause in self.inline):
            raise ConfigurationError(
                f"an inline pause is {_LONGEST_INLINE:g} s at most, not {max(self.inline):g}: "
                "let the broker keep the message for that long, with a delayed one"
            )

    @property
    def attempts(self) -> int:
        """How many attempts there are, at most."""
        return 1 + len(self.inline) + len(self.delayed)

    @property
    def delays(self) -> tuple[float, ...]:
        """The delays a group needs places for, shortest first."""
        return tuple(sorted(set(self.delayed)))

    def pause(self, attempts: int, wish: float = 0.0) -> Pause | None:
        """Return what is to be waited for after so many failed attempts, `wish` seconds at least; None for no more."""
        place = attempts - 1
        if place < len(self.inline):
            seconds = max(wish, with_jitter(self.inline[place]))
            if seconds <= _LONGEST_INLINE or not self.delayed:
                return Pause(min(seconds, _LONGEST_INLINE), is_inline=True)
            return Pause(self._at_least(wish), is_inline=False)
        place -= len(self.inline)
        return Pause(self._at_least(wish, self.delayed[place]), is_inline=False) if place < len(self.delayed) else None

    def _at_least(self, *seconds: float) -> float:
        """Return the shortest delay that is long enough; the longest one where none is."""
        return next((delay for delay in self.delays if delay >= max(seconds)), self.delays[-1])
