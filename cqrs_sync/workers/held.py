"""What this process has claimed and not settled."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Sequence
from typing import Any

from cqrs_sync.outbox import Claimed, Outbox, Outcome, Verdict

#: Seconds for which a delivery that did not reach the broker counts as unreached after it is due again.
_LATE = 2.0


class Held:
    """
    An outbox that notes what is claimed and settled through it; everything else is passed on.

    What is not settled by the end of its lease is anyone's, and held no more.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._lock = threading.Lock()
        self._held: dict[int, tuple[Claimed, float]] = {}
        self._unreached: dict[int, float] = {}
        self._claiming = 0
        self._claims = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._outbox, name)

    def claim(
        self, limit: int, lease: float, *, handlers: Collection[str] | None = None, besides: Collection[str] = ()
    ) -> Sequence[Claimed]:
        """Claim deliveries for `lease` seconds, oldest first."""
        with self._lock:
            self._claiming += 1
            self._claims += 1
        claimed: Sequence[Claimed] = ()
        until = time.monotonic() + lease
        try:
            claimed = self._outbox.claim(limit, lease, handlers=handlers, besides=besides)
        finally:
            with self._lock:
                self._claiming -= 1
                for each in claimed:
                    self._held[each.number] = each, until
                    self._unreached.pop(each.number, None)
        return claimed

    def renew(self, tokens: Collection[str], lease: float) -> int:
        """Keep what was claimed for `lease` more seconds."""
        until = time.monotonic() + lease
        renewed = self._outbox.renew(tokens, lease)
        with self._lock:
            for number, (claimed, _) in self._held.items():
                if claimed.token in tokens:
                    self._held[number] = claimed, until
        return renewed

    def settle(self, outcomes: Sequence[Outcome], /) -> int:
        """Write down what became of deliveries."""
        settled = self._outbox.settle(outcomes)
        now = time.monotonic()
        with self._lock:
            for outcome in outcomes:
                number = outcome.claimed.number
                self._held.pop(number, None)
                if _missed_the_broker(outcome):
                    self._unreached[number] = now + outcome.after + _LATE
        return settled

    def under_way(self) -> list[Claimed]:
        """Return what was claimed here, and is neither settled nor anyone's again."""
        now = time.monotonic()
        with self._lock:
            return [claimed for claimed, until in self._held.values() if until > now]

    def at_rest(self) -> int | None:
        """
        Return a number that stays the same until something is claimed; None where something is under way.

        What did not reach the broker and is due in a moment is under way as well.
        """
        with self._lock:
            now = time.monotonic()
            for kept in [number for number, (_, until) in self._held.items() if until <= now]:
                del self._held[kept]
            for kept in [number for number, until in self._unreached.items() if until <= now]:
                del self._unreached[kept]
            busy = self._claiming or self._held or self._unreached
            return None if busy else self._claims


def _missed_the_broker(outcome: Outcome) -> bool:
    is_put_off = outcome.verdict is Verdict.AGAIN and not outcome.counted and outcome.after > 0
    return is_put_off and outcome.claimed.handler is None
